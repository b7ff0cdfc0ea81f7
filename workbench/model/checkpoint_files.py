"""What the files of a checkpoint may make a reader do: it reads safetensors inside the folder, and runs no code."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from workbench.core.errors import WorkbenchError
from workbench.core.forms import read_json
from workbench.core.paths import check_links, is_plain_name
from workbench.core.type_words import shown

INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""Patterns of files that are unpickled by whoever opens them."""
KERNEL = re.compile(r"[^/:]+/[^/:]+")
"""How a configuration names attention that transformers would fetch from the hub as compiled code."""


class WeightIndex(TypedDict):
    """The part of an index of shards that names files."""

    weight_map: dict[str, str]


def check_checkpoint(source: str, error: type[WorkbenchError], **where: Any) -> None:
    """Refuse a checkpoint that leads to code, to pickles or out of its folder; its weights are not read.

    Args:
        source: a folder, or a name on Hugging Face.
        error: the room's own error.
        where: as for `from_pretrained`.

    Raises:
        WorkbenchError: of the given kind, in a sentence on the file.
    """
    folder = Path(source)
    if not folder.is_dir():
        _check_index(_index_of_name(source, where), error)
        return
    check_links(folder, error)
    for index in sorted(folder.glob("*.index.json")):
        if index.name.endswith(".safetensors.index.json"):
            _check_index(index, error)
    if not any(folder.glob("*.safetensors")):
        pickled = next((file for pattern in PICKLES for file in sorted(folder.glob(pattern))), None)
        if pickled is not None:
            raise error(
                f"{folder} has its weights in {pickled.name} only, a pickle, which can run code when it is opened; if "
                "you trust it, convert it: open it with transformers and save it with save_pretrained, as safetensors."
            )


def check_settings(source: str, settings: dict[str, Any], error: type[WorkbenchError]) -> None:
    """Refuse a configuration that names weights or attention outside of its own folder.

    Args:
        source: folder or name, for the sentence.
        settings: the configuration as plain data; `attn_implementation` is a list of what it asks for.
        error: the room's own error.

    Raises:
        WorkbenchError: of the given kind.
    """
    weights = settings.get("transformers_weights")
    if weights is not None and not (isinstance(weights, str) and is_plain_name(weights)):
        raise error(f"{source!r} names its weights by a path, {shown(weights)}; put the file into its folder.")
    for name in settings["attn_implementation"]:
        if isinstance(name, str) and KERNEL.search(name):
            raise error(
                f"{source!r} asks for attention that is fetched as code from the hub, {shown(name)}; take "
                "attn_implementation out of its config.json."
            )


def plain_files(source: str | Path) -> dict[str, None]:
    """Arguments for `from_pretrained` of tokenizers: None for each file that a folder's `tokenizer_config.json` names.

    Old versions of transformers wrote paths of the machine that saved a tokenizer there; a class that looks for no such
    file of its own would open them.
    """
    config = Path(source) / TOKENIZER
    if not config.is_file():
        return {}
    try:
        named = json.loads(config.read_bytes())  # transformers writes numbers of more than 64 bits there
    except (OSError, ValueError, RecursionError):  # transformers says what is wrong with it
        return {}
    pairs = named.items() if isinstance(named, dict) else ()
    return {name: None for name, value in pairs if name.endswith("_file") and isinstance(value, str)}


@contextlib.contextmanager
def no_code(source: object, error: type[WorkbenchError]) -> Iterator[None]:
    """A block that opens a checkpoint without its code; one that needs it is refused in one sentence."""
    try:
        yield
    except ValueError as wrong:
        if "trust_remote_code" not in str(wrong) or isinstance(wrong, WorkbenchError):
            raise
        raise error(
            f"{str(source)!r} brings code of its own (auto_map), which Workbench does not run; where you have read it "
            "and trust it, call wb.load_model(..., trust_remote_code=True)."
        ) from wrong


def _index_of_name(name: str, where: dict[str, Any]) -> Path | None:
    """The index of a model on the hub, fetched if need be; None for a model without one."""
    from transformers.utils.hub import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    with contextlib.suppress(OSError, ValueError):  # what is wrong with the name is said when its weights are opened
        file = cached_file(name, INDEX, **quiet, **where)
        return None if file is None else Path(file)
    return None


def _check_index(index: Path | None, error: type[WorkbenchError]) -> None:
    if index is None:
        return
    for name in sorted({*read_json(index, WeightIndex, error, "an index of weights")["weight_map"].values()}):
        if not is_plain_name(name) or not name.endswith(".safetensors"):
            raise error(
                f"{index} names weights that are no safetensors file in its own folder, {shown(name)}; convert or copy "
                "the model again."
            )
