"""Plain models and tokenizers from Hugging Face names and folders. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from workbench.core.errors import WorkbenchError
from workbench.core.hashing import fingerprint, not_finite
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

LEFT_OUT = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
LEFT_OUT += ("generation_config.json",)
"""Optional files of a model: transformers loads another model without an error where one is lost."""
CHECKPOINT_FILES = ("config.json", "model*.safetensors", "*.safetensors.index.json", "vocab.*", "merges.txt")
CHECKPOINT_FILES += ("tokenizer*.json", "*.model", "*.jinja", *LEFT_OUT)
"""Patterns of the names of a checkpoint's files, as `save_pretrained` of transformers writes them."""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")
"""Patterns of the names of a tokenizer's files."""

ADAPTER = "adapter_config.json"
"""The file that marks a folder of an adapter."""

_building = threading.RLock()


class ModelError(WorkbenchError):
    """A model that can't be found, fetched, read or run."""


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Lock the building and saving of models, without progress bars and warnings.

    transformers sets switches of the whole process meanwhile, and two threads at once leave weights out.
    """
    from transformers.utils import logging as messages

    with _building:
        shown, level = messages.is_progress_bar_enabled(), messages.get_verbosity()
        messages.disable_progress_bar()
        messages.set_verbosity_error()
        try:
            yield
        finally:
            messages.set_verbosity(level)
            if shown:
                messages.enable_progress_bar()


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


def read_huggingface(source: str, *, trust_remote_code: bool = False, fetch: bool = True) -> tuple[nn.Module, Any, str]:
    """Plain model in float32, tokenizer and `identity`, of a Hugging Face name or a local folder.

    A model that Hugging Face's cache holds whole is read from there, and the hub is not asked: its weights could change
    from one day to the next. Otherwise the hub is asked if one short request reaches it. Weights are read from
    safetensors only.

    Args:
        source: the name or the folder.
        trust_remote_code: run the code that the model brings.
        fetch: ask the hub for a model that is not on this machine.

    Raises:
        ModelError: there is no such model, or no network to fetch it; it brings code, or leads out of its folder.
    """
    if Path(source).exists() and not (Path(source) / "config.json").exists():
        raise ModelError(f"{source!r} is not a model folder: it has no config.json.")
    if Path(source).is_absolute() and not Path(source).exists():
        raise ModelError(f"There is no folder {source!r}.")
    folder = Path(source)
    with _in_one_sentence(source):
        if folder.exists():
            load = functools.partial(_load, source, trust_remote_code=trust_remote_code, local_files_only=True)
            return read_steadily(load, (folder, folder / "config.json"), ModelError)
        return _read(source, trust_remote_code=trust_remote_code, fetch=fetch)


def read_module(folder: Path) -> nn.Module:
    """The plain model in float32 of a local folder, without its tokenizer.

    Raises:
        ModelError: as `read_huggingface`.
    """
    with _in_one_sentence(str(folder)):
        return _load_module(str(folder), local_files_only=True)


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


def _read(source: str, *, trust_remote_code: bool, fetch: bool) -> tuple[nn.Module, Any, str]:
    """Model, tokenizer and hash: from the cache, or the hub."""
    send_no_telemetry()
    load = functools.partial(_load, source, trust_remote_code=trust_remote_code)
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


def _load(source: str, *, trust_remote_code: bool = False, **where: Any) -> tuple[nn.Module, Any, str]:
    """Model, tokenizer and hash. The tokenizer is read while the weights are hashed, which takes as long."""
    module = _load_module(source, trust_remote_code=trust_remote_code, **where)
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(identity, module)
        tokenizer = (
            read_tokenizer(source, trust_remote_code=trust_remote_code, **where) if _has_tokenizer(source) else None
        )
        return module, tokenizer, hashed.result()


def _has_tokenizer(source: str) -> bool:
    """Whether a folder has a file of a tokenizer, where transformers would make an empty one of the model's kind; a
    name of the hub is asked for one."""
    folder = Path(source)
    return not folder.exists() or any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern))


def _load_module(source: str, *, trust_remote_code: bool = False, **where: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    _check_opening(source, trust_remote_code=trust_remote_code, **where)
    with building(), _refusing(source, OSError, ValueError, KeyError, SafetensorError, ConnectionError, RuntimeError):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
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


def _check_opening(source: str, *, trust_remote_code: bool = False, **where: Any) -> None:
    """Every check of a checkpoint that comes before its weights are read."""
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


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """A model's parameters by name, tied ones once."""
    return {name: parameter.detach() for name, parameter in module.named_parameters(remove_duplicate=True)}


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """A model's buffers that its checkpoint holds, by name; most architectures have none."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: tensor.detach() for name, tensor in module.state_dict().items() if name not in parameters}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """All tensors that a model's checkpoint holds, by name: parameters, tied ones once, and buffers."""
    return parameters_of(module) | buffers_of(module)


def identity(module: nn.Module) -> str:
    """The hash of a model's weights: the fingerprint of all tensors that its checkpoint holds, tied ones once.

    Raises:
        ModelError: a weight that is no finite number.
    """
    check_weights(module)
    return fingerprint(state_of(module))


def check_weights(module: nn.Module) -> None:
    """Raise `ModelError` where a parameter is no finite number, or a saved buffer is NaN.

    A buffer may be infinite, as that of a mask is.
    """
    if wrong := not_finite(state_of(module), infinite=list(buffers_of(module))):
        raise ModelError(
            f"{wrong} of this model holds values that are not finite: its weights are damaged; load it again."
        )


def write_module(module: Any, folder: Path, error: type[WorkbenchError]) -> None:
    """Write a checkpoint with plain transformers; `error` is raised where that refuses a setting of the model."""
    try:
        with building():
            module.save_pretrained(folder)
    except WorkbenchError:  # of a model that no checkpoint holds
        raise
    except (ValueError, TypeError) as wrong:
        reasons = [line.strip("- ") for line in str(wrong).splitlines() if line.startswith("- ")]
        reason = reason_of(ValueError(reasons[0])) if reasons else reason_of(wrong)
        raise error(
            f"transformers does not write this model as it is ({reason}); correct network.module.generation_config or "
            "network.module.config of the model."
        ) from wrong
