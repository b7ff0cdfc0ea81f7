"""Plant faults by hand, one by one, and show that the laws find each: `make mutants`.

Each fault of `tests/mutants.py` is planted in a copy of the package, in a temporary folder from which alone the tests
are run; the checkout is never changed. A fault is found where the law tests that are named for it fail. First the same
tests run on the package as it is, where all have to pass. The slow libraries are imported once, and each run is a fork.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("workbench", "tests")
LINKED = ("data", "docs", "scripts", "analyses", "app", "benchmarks", "pyproject.toml", "README.md", "CONTRIBUTING.md")
IMPORTS = ("numpy", "pandas", "pyarrow", "torch", "transformers", "transformer_lens", "pydantic", "pytest")
PASSED, FAILED = 0, 1
"""Of pytest: all passed, some failed; other numbers say that the tests were not run."""


def copy_of_package(folder: Path) -> None:
    """The package with its tests in a folder; data and pages are links."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)


def start(folder: Path, tests: Sequence[str], log: Path) -> int:
    """Begin these tests in a fork whose package is that of the folder; the number of the process."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        sys.path = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
        os.environ["PYTHONPATH"] = str(folder)
        sys.dont_write_bytecode = True
        import pytest

        import workbench

        if not str(workbench.__file__).startswith(str(folder)):
            raise RuntimeError(f"{workbench.__file__} is not the copy in {folder}")
        status = int(pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]))
    except BaseException:  # noqa: BLE001 - whatever it is, the log shows it
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_all(jobs: Sequence[tuple[str, Path, Sequence[str], Path]], at_once: int) -> dict[str, tuple[int, float]]:
    """The status of pytest and the seconds of each job: name, folder, tests, log."""
    waiting, running, done = list(jobs), {}, {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name, folder, tests, log = waiting.pop(0)
            running[start(folder, tests, log)] = name, time.monotonic()
        process, status = os.wait()
        name, began = running.pop(process)
        done[name] = os.waitstatus_to_exitcode(status), time.monotonic() - began
        print(f"{done[name][1]:6.1f} s  status {done[name][0]}  {name}", flush=True)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of faults, or parts of names; all without any")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()) / "workbench-mutants")
    parser.add_argument("--no-baseline", action="store_true", help="don't run the tests on the package as it is first")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from mutants import MUTANTS, planted

    chosen = [one for one in MUTANTS if not asked.names or any(word in one.name for word in asked.names)]
    for module in IMPORTS:
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)  # a fork has no other threads
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "WORKBENCH_LAWS": "all",
        "WORKBENCH_TORTURE": "1",
        "WORKBENCH_FUZZ": "10000",
        "HF_HUB_OFFLINE": "1",
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain"
        copy_of_package(plain)
        if not asked.no_baseline:
            every = sorted({test for one in chosen for test in one.tests})
            (status, _) = run_all([("the package as it is", plain, every, asked.logs / "plain.log")], 1).popitem()[1]
            if status != PASSED:
                print(f"The laws don't pass on the package as it is; see {asked.logs / 'plain.log'}.")
                return 2
        jobs = []
        for number, one in enumerate(chosen):
            folder = Path(scratch) / str(number)
            shutil.copytree(plain, folder, symlinks=True)
            file = folder / "workbench" / one.file
            file.write_text(planted(one, file.read_text()))
            jobs.append((one.name, folder, one.tests, asked.logs / f"{one.name.replace(' ', '-')}.log"))
        done = run_all(jobs, asked.jobs)
    missed = [one for one in chosen if done[one.name][0] == PASSED]
    broken = [one for one in chosen if done[one.name][0] not in (PASSED, FAILED)]
    print(f"\n{len(chosen)} faults, {len(chosen) - len(missed) - len(broken)} found, {time.monotonic() - began:.0f} s")
    for words, some in (("missed", missed), ("not run", broken)):
        for one in some:
            print(f"{words}: {one.name} ({one.file}), by {' '.join(one.tests)}; see {asked.logs}")
    return 1 if missed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
