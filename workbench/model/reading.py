"""Plain models and tokenizers from Hugging Face names and folders. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from workbench.core.steady import read_steadily
from workbench.core.type_words import reason_of
from workbench.model.checkpoint_files import (
    check_checkpoint,
    check_claims,
    check_left_over,
    check_settings,
    no_code,
    plain_files,
)
from workbench.model.hub import (
    in_words,
    is_gated,
    is_repository,
    models_here,
    send_no_telemetry,
    why_unreachable,
)
from workbench.model.placing import check_memory, chosen_dtype, placed
from workbench.model.stored_types import exact_type, mixed_identity, own_type, stored_values
from workbench.model.unread import reading_in_pieces
from workbench.model.weights import LEFT_OUT, ModelError, building, identity

T = TypeVar("T")

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")
"""Patterns of the names of a tokenizer's files."""

GGUF = ".gguf"
"""How the names of GGUF files end."""

ADAPTER = "adapter_config.json"
"""The file that marks a folder of an adapter."""


@contextlib.contextmanager
def _refusing(source: object, *known: type[Exception]) -> Iterator[None]:
    """Raise a `ModelError` in place of the errors that damaged files bring out of transformers, but for the known.

    A checkpoint that brings code of its own is refused too.
    """
    try:
        with no_code(source, ModelError):
            yield
    except known:
        raise
    except Exception as error:  # what a damaged file raises there has no kind of its own
        raise ModelError(f"Its files are damaged: {reason_of(error)}; copy them again.") from error


def read_tokenizer(source: Path | str, *, trust_remote_code: bool = False, **where: Any) -> Any:
    """The Hugging Face tokenizer of a folder or a name; `where` as for `from_pretrained`."""
    from transformers import AutoTokenizer

    with _refusing(source, OSError, ValueError, KeyError, ConnectionError, RuntimeError):
        where = plain_files(source) | where
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **where)


def read_config(source: Path | str, *, trust_remote_code: bool = False, **where: Any) -> Any:
    """The Hugging Face configuration of a folder or a name; `where` as for `from_pretrained`."""
    from transformers import AutoConfig

    with _refusing(source, OSError, ValueError, KeyError, ConnectionError, RuntimeError):
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **where)


@dataclass(frozen=True)
class Opened:
    """A plain model as it was opened.

    Args:
        module: the plain model, on its device and in its type.
        tokenizer: its Hugging Face tokenizer, or None.
        weights_hash: the `identity` of the checkpoint, whatever the type that it was opened in.
        rounded_hash: the `identity` of the module where its type rounds the checkpoint's values; empty elsewhere.
        own: the type of the checkpoint.
    """

    module: Any
    tokenizer: Any
    weights_hash: str
    rounded_hash: str = ""
    own: torch.dtype = torch.float32


def settled(module: Any, tokenizer: Any, hash: str, device: torch.device, dtype: torch.dtype) -> Opened:
    """A model that was read in a type that rounds nothing, on a device in a type.

    Args:
        module: the plain model on the processor; the caller does not use it afterwards.
        tokenizer: its tokenizer.
        hash: its `identity`.
        device: where it goes.
        dtype: its type.

    Raises:
        ModelError: the device has too little memory for it.
    """
    own = module.dtype
    made: Any = placed(module, device, dtype, ModelError)
    rounded = "" if made.dtype in (own, torch.float32) else identity(made)
    return Opened(made, tokenizer, hash, "" if rounded == hash else rounded, own)


def read_huggingface(
    source: str,
    device: torch.device,
    dtype: str | torch.dtype,
    *,
    trust_remote_code: bool = False,
    fetch: bool = True,
) -> Opened:
    """The plain model and tokenizer of a Hugging Face name or a local folder.

    A model that Hugging Face's cache holds whole is read from there, and the hub is not asked: its weights could change
    from one day to the next. Otherwise the hub is asked if one short request reaches it. Weights are read from
    safetensors only. The files are mapped into memory: weights in the type that they are stored in are not copied.
    Those in another type are read from the files in pieces, so that memory holds them once.

    Args:
        source: the name or the folder.
        device: where the model goes.
        dtype: its type, as for `chosen_dtype`.
        trust_remote_code: run the code that the model brings.
        fetch: ask the hub for a model that is not on this machine.

    Raises:
        ModelError: there is no such model, or no network to fetch it; it brings code, or leads out of its folder; the
            device can't compute in the type, or has too little memory for it.
    """
    _check_place(source)
    folder = Path(source)
    load = functools.partial(_load, source, device, dtype, trust_remote_code=trust_remote_code)
    with _in_one_sentence(source):
        if folder.exists():
            here = functools.partial(load, local_files_only=True)
            return read_steadily(here, (folder, folder / "config.json"), ModelError)
        return _read(source, load, fetch=fetch)


def _check_place(source: str) -> None:
    """Refuse a path that is there and is no folder of a checkpoint, and an absolute one that is not there."""
    if Path(source).exists() and not (Path(source) / "config.json").exists():
        file = next(iter(sorted(Path(source).glob(f"*{GGUF}"))), None) if Path(source).is_dir() else None
        advice = f"give the path of {file.name} in it" if file else "it has no config.json"
        raise ModelError(f"{source!r} is not a model folder: {advice}.")
    if Path(source).is_absolute() and not Path(source).exists():
        raise ModelError(f"There is no folder {source!r}.")


def checkpoint_folder(source: str) -> Path:
    """The folder that holds the checkpoint of a Hugging Face name or a local folder, with everything checked that comes
    before weights are read.

    Of a name it is that of Hugging Face's cache; the hub is asked as in `read_huggingface`, for weights in safetensors,
    configuration and tokenizer.

    Raises:
        ModelError: as `read_huggingface`.
    """
    _check_place(source)
    if Path(source).exists():
        check_opening(Path(source))
        return Path(source)
    with _in_one_sentence(source):
        return _read(source, functools.partial(_cached_folder, source), fetch=True)


def _cached_folder(source: str, **where: Any) -> Path:
    """The folder of a name in Hugging Face's cache, which holds it whole."""
    from huggingface_hub import try_to_load_from_cache

    config = _check_opening(source, **where)
    stored_values(source, config.to_dict().get("transformers_weights"), **where)
    with contextlib.suppress(ModelError, OSError, ValueError, KeyError):  # it has none
        read_tokenizer(source, **where)
    found = try_to_load_from_cache(source, "config.json")
    if not isinstance(found, str):
        raise ModelError(f"{source!r} has no config.json in the cache of Hugging Face; load it once with load_model.")
    return Path(found).parent


def read_module(folder: Path) -> nn.Module:
    """The plain model in float32 of a local folder, on the processor, without its tokenizer.

    Raises:
        ModelError: as `read_huggingface`.
    """
    with _in_one_sentence(str(folder)):
        _check_opening(str(folder), local_files_only=True)
        return _load_module(str(folder), torch.float32, local_files_only=True)


@contextlib.contextmanager
def _in_one_sentence(source: str) -> Iterator[None]:
    """What transformers and the hub raise becomes a `ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, ConnectionError, RuntimeError, ImportError) as error:
        if is_gated(error):
            raise ModelError(
                f"{source!r} is a model to which its owners give access one by one: ask for it at "
                f"https://huggingface.co/{source}, then log in on this machine with `hf auth login` or set HF_TOKEN."
            ) from error
        reason = reason_of(error)
        raise ModelError(
            f"No model could be loaded from {source!r}: {reason}; give a folder, a Hugging Face name "
            f"(which needs the network the first time), or nothing for the default model."
        ) from error


def _read(source: str, load: Callable[..., T], *, fetch: bool) -> T:
    """What `load` opens: from the cache, or the hub."""
    send_no_telemetry()
    if not is_repository(source):
        return load(local_files_only=True)
    if _knows_small_files(source):
        with contextlib.suppress(OSError, ValueError):  # weights or vocabulary are not in the cache
            return load(local_files_only=True)
    unreachable = why_unreachable() if fetch else "nothing is fetched because a folder names it"
    if unreachable is None:
        return load()
    try:
        return load(local_files_only=True)
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        has = f"{source} only in part" if source in models_here() else in_words(models_here())
        raise ModelError(
            f"No model could be loaded from {source!r}: {unreachable}, and this machine has {has}; give another name, "
            "a folder, or nothing for the default model, or connect once."
        ) from error


def _load(
    source: str, device: torch.device, dtype: str | torch.dtype, *, trust_remote_code: bool = False, **where: Any
) -> Opened:
    """The model. The tokenizer is read while the weights are hashed, which takes as long."""
    config = _check_opening(source, trust_remote_code=trust_remote_code, **where)
    stored = stored_values(source, config.to_dict().get("transformers_weights"), **where)
    chosen = chosen_dtype(dtype, device, own_type(stored), ModelError)
    check_memory(source, sum(stored.values()) * chosen.itemsize, device, chosen, ModelError)
    widest = exact_type(stored)
    exact = chosen in (torch.float32, widest)
    if not exact and widest == torch.float32:
        module = _load_module(source, chosen, trust_remote_code=trust_remote_code, **where)
        with ThreadPoolExecutor(1) as pool:
            named = config.to_dict().get("transformers_weights")
            hashed = pool.submit(mixed_identity, module, source, named, **where)
            tokenizer = _own_tokenizer(source, trust_remote_code=trust_remote_code, **where)
            hash = hashed.result()
        if hash:
            rounded = identity(module)
            return Opened(module.to(device), tokenizer, hash, "" if rounded == hash else rounded, own_type(stored))
        del module
    module = _load_module(source, chosen if exact else widest, trust_remote_code=trust_remote_code, **where)
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(identity, module)
        tokenizer = _own_tokenizer(source, trust_remote_code=trust_remote_code, **where)
        hash = hashed.result()
    own = own_type(stored)
    if exact:
        return Opened(module.to(device), tokenizer, hash, own=own)
    del module  # buffers follow the type in which a module is built, so it is built anew
    module = _load_module(source, chosen, trust_remote_code=trust_remote_code, **where)
    rounded = identity(module)
    return Opened(module.to(device), tokenizer, hash, "" if rounded == hash else rounded, own)


def _own_tokenizer(source: str, **how: Any) -> Any:
    """The tokenizer of a name or folder; None for a folder without a file of one, of which transformers would make an
    empty one."""
    folder = Path(source)
    has = not folder.exists() or any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern))
    return read_tokenizer(source, **how) if has else None


def _load_module(source: str, dtype: torch.dtype, *, trust_remote_code: bool = False, **where: Any) -> Any:
    from transformers import AutoModelForCausalLM

    known = (OSError, ValueError, KeyError, SafetensorError, ConnectionError, RuntimeError)
    with building(), reading_in_pieces(), _refusing(source, *known):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **where,
        )
    module, info = loaded
    if info["missing_keys"]:  # transformers fills them with random numbers
        raise ModelError(f"{source!r} has no weights for {min(info['missing_keys'])}; copy or save it again.")
    check_left_over(source, module, info["unexpected_keys"], ModelError, **where)
    return module


def check_opening(folder: Path) -> None:
    """Refuse a local folder that `read_module` would refuse before it reads weights.

    Raises:
        ModelError: as `read_huggingface`.
    """
    with _in_one_sentence(str(folder)):
        _check_opening(str(folder), local_files_only=True)


def _check_opening(source: str, *, trust_remote_code: bool = False, **where: Any) -> Any:
    """The configuration of a checkpoint that passes every check that comes before its weights are read."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    check_checkpoint(source, ModelError, **where)
    config = read_config(source, trust_remote_code=trust_remote_code, **where)
    check_kind(source, config)
    check_settings(source, config, ModelError)
    own_code = trust_remote_code and "AutoModelForCausalLM" in (config.to_dict().get("auto_map") or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        raise ModelError(
            f"{source!r} is a {config.model_type}, which transformers has no model for that continues a text."
        )
    check_claims(source, config, ModelError)
    if (Path(source) / ADAPTER).is_file():  # transformers applies it only where PEFT is installed
        raise ModelError(f"{source!r} holds an adapter beside a model; move one of them to a folder of its own.")
    return config


def check_kind(name: str, config: Any) -> None:
    """Refuse a configuration of a model that does not write text from left to right, or whose weights are no floats.

    Args:
        name: of the model, for the sentence.
        config: the Hugging Face configuration.

    Raises:
        ModelError: an encoder, an encoder with a decoder, another kind of model, or a quantised checkpoint.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    kind, settings = config.model_type or type(config).__name__, config.to_dict()
    if settings.get("is_encoder_decoder"):
        raise ModelError(
            f"{name!r} is a {kind}, which encodes a text and writes another; Workbench opens models that continue a "
            "text."
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and settings.get("is_decoder") is False:
        raise ModelError(
            f"{name!r} is a {kind}, an encoder whose tokens see later ones; Workbench opens models that continue a "
            "text."
        )
    if stored := settings.get("quantization_config"):
        method = str(stored.get("quant_method") or "bitsandbytes") if isinstance(stored, dict) else str(stored)
        raise ModelError(
            f"{name!r} is quantised ({method}), and Workbench reads and edits plain weights: open the checkpoint that "
            "it was made from, or save a dequantised copy with transformers."
        )


def _knows_small_files(source: str) -> bool:
    """Whether Hugging Face's cache has each optional file, or the note that the model has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return all(try_to_load_from_cache(source, name) is not None for name in LEFT_OUT)
    except HFValidationError:
        return False
