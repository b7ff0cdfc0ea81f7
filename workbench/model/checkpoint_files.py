"""What the files of a checkpoint may make a reader do: it reads safetensors inside the folder, and runs no code."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
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
SAFE = (".safetensors", ".safetensors.index.json")
"""Ends of names of weights that are opened; transformers unpickles others."""

_NUMBER = re.compile(r"\.[0-9]+(?=\.|$)")
"""Numbers of layers and experts in a path."""
LAYERS = "num_hidden_layers"
SIZES = ("hidden_size", "vocab_size", "intermediate_size", "moe_intermediate_size", "head_dim", "num_attention_heads")
SIZES += ("num_key_value_heads", "num_experts", "num_local_experts", "n_routed_experts")
"""Names that configurations have for sizes of weights."""
MASK = re.compile(r"(\.(attn|attention)\.bias|\.causal_mask)$")
"""How names of attention masks end in checkpoints of old versions of transformers, where masks were saved buffers."""
CONSTANT = ("masked_bias", "inv_freq")
"""Ends of names of other buffers that were saved, which the configuration decides."""

_log = logging.getLogger("workbench")


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


def check_settings(source: str, config: Any, error: type[WorkbenchError]) -> None:
    """Refuse a configuration that names weights or attention outside of its own folder, or weights in a pickle.

    Args:
        source: folder or name, for the sentence.
        config: the Hugging Face configuration; those inside it are looked at too.
        error: the room's own error.

    Raises:
        WorkbenchError: of the given kind.
    """
    for one in _configurations(config):
        weights = getattr(one, "transformers_weights", None)
        if weights is not None and not (isinstance(weights, str) and is_plain_name(weights)):
            raise error(f"{source!r} names its weights by a path, {shown(weights)}; put the file into its folder.")
        if weights is not None and not weights.endswith(SAFE):
            raise error(f"{source!r} names weights that are no safetensors file, {shown(weights)}; convert the model.")
        name = getattr(one, "_attn_implementation", None)
        if isinstance(name, str) and KERNEL.search(name):
            raise error(
                f"{source!r} asks for attention that is fetched as code from the hub, {shown(name)}; take "
                "attn_implementation out of its config.json."
            )


def _configurations(config: Any) -> list[Any]:
    """A configuration and all that it holds, at any depth."""
    from transformers import PreTrainedConfig

    found = [config]
    for one in found:
        found += [inner for inner in vars(one).values() if isinstance(inner, PreTrainedConfig)]
    return found


def check_claims(source: str, config: Any, error: type[WorkbenchError]) -> None:
    """Refuse a folder whose configuration claims more than its weights can hold, before its modules are built.

    Every layer has a tensor, and every size is that of a tensor's axis. Nothing is checked of a name on the hub, or of
    a folder without safetensors, which opening refuses.

    Raises:
        WorkbenchError: of the given kind: more layers than tensors, or a size of more values than the files have bytes.
    """
    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        return
    tensors, room = 0, sum(file.stat().st_size for file in files)
    for file in files:
        with safe_open(file, "pt") as opened:
            tensors += len(opened.keys())
    sizes = config.get_text_config()
    stated = sizes.to_dict()
    stated |= {name: stated[own] for name, own in sizes.attribute_map.items() if own in stated}
    for name in (LAYERS, *SIZES):
        size, most = stated.get(name), tensors if name == LAYERS else room
        if isinstance(size, int) and size > most:
            raise error(
                f"{source!r} has a configuration with {name} = {shown(size)}, more than its {tensors:,} tensors of "
                f"{room:,} bytes can hold; copy the model again."
            )


def check_left_over(
    source: str, module: nn.Module, names: Collection[str], error: type[WorkbenchError], **where: Any
) -> None:
    """Refuse weights of a file that the configuration leaves out of parts which the model has; say which others it
    leaves out.

    A part is a module of the model, whatever the numbers in its path: another layer, or a bias beside a weight, decides
    what the model computes. A head of another task does not, and neither does a mask or table that the configuration
    decides.

    Args:
        source: name or folder of the model.
        module: the model.
        names: of the weights that it did not take.
        error: the room's own error.
        where: as for `from_pretrained`.

    Raises:
        WorkbenchError: of the given kind: a weight of a part that the model has.
    """
    made = {name for name, _ in module.named_buffers()} - module.state_dict().keys()
    left = {name for name in names if name not in made and not name.endswith(CONSTANT)}
    left -= _masks(source, {name for name in left if MASK.search(name)}, where)
    parts = {_NUMBER.sub(".*", f".{path}") for path, _ in module.named_modules() if path}
    for name in sorted(left):
        if _NUMBER.sub(".*", f".{name.rpartition('.')[0]}") in parts:
            raise error(
                f"{source!r} holds the weights {name}, which its configuration does not ask for, so the model would be "
                "another than the one that was saved; copy its config.json again."
            )
    if left:
        more = f" and {len(left) - 1:,} more" * (len(left) > 1)
        _log.warning("%s holds weights that are no part of the model: %s%s.", source, min(left), more)


def _masks(source: str, names: Collection[str], where: dict[str, Any]) -> set[str]:
    """Those of some names that are masks wherever a checkpoint's files hold them: of bits or bytes, or [1, 1, n, n]."""
    held: dict[str, list[bool]] = {name: [] for name in names}
    for file in _weight_files(source, where) if names else ():
        with safe_open(file, "pt") as opened:
            for name in held.keys() & set(opened.keys()):
                tensor = opened.get_slice(name)
                shape = tensor.get_shape()
                square = len(shape) == 4 and shape[:2] == [1, 1] and shape[2] == shape[3]
                held[name].append(square or tensor.get_dtype() in ("BOOL", "U8"))
    return {name for name, found in held.items() if found and all(found)}


def _weight_files(source: str, where: dict[str, Any]) -> list[Path]:
    """The safetensors files of a folder, or of all snapshots in the cache of a name on the hub."""
    from transformers.utils.hub import cached_file

    if Path(source).is_dir():
        return sorted(Path(source).glob("*.safetensors"))
    with contextlib.suppress(OSError, ValueError):
        config = cached_file(source, "config.json", **where | {"local_files_only": True})
        return [] if config is None else sorted(Path(config).parent.parent.glob("*/*.safetensors"))
    return []


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
