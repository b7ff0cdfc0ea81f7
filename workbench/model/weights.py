"""Plain models and tokenizers from Hugging Face names and folders. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from workbench.core.errors import WorkbenchError
from workbench.core.hashing import fingerprint

LEFT_OUT = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
LEFT_OUT += ("generation_config.json",)
"""Files of a model that need not be there: where one is lost nobody complains, and it is another model."""

_log = logging.getLogger("workbench")
_building = threading.RLock()


class ModelError(WorkbenchError):
    """A model that can't be found, fetched, read or run."""


@contextlib.contextmanager
def building() -> Iterator[None]:
    """One model is built or saved at a time, without progress bars and warnings: transformers keeps switches for the
    whole process while it does so, and two at once have left weights out."""
    from transformers.utils import logging as spoken

    with _building:
        shown, level = spoken.is_progress_bar_enabled(), spoken.get_verbosity()
        spoken.disable_progress_bar()
        spoken.set_verbosity_error()
        try:
            yield
        finally:
            spoken.set_verbosity(level)
            if shown:
                spoken.enable_progress_bar()


def read_tokenizer(source: Path | str, **where: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, **where)


def read_huggingface(source: str) -> tuple[nn.Module, Any, str]:
    """A Hugging Face name or a local folder: plain model in float32, tokenizer, fingerprint of its weights.

    What Hugging Face's cache holds whole is taken from there and the hub is not asked for it: without a network, each
    file would take half a minute to give up, and with one, the weights could change from one day to the next.

    Raises:
        ModelError: there is no such model, or no network to fetch it.
    """
    if Path(source).exists() and not (Path(source) / "config.json").exists():
        raise ModelError(f"{source!r} is not a model folder: it has no config.json.")
    if Path(source).is_absolute() and not Path(source).exists():
        raise ModelError(f"There is no folder {source!r}.")
    try:
        module, info, tokenizer = _from_huggingface(source)
    except (OSError, ValueError, KeyError, SafetensorError, ConnectionError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise ModelError(
            f"No model could be loaded from {source!r}: {reason}; give a folder, a Hugging Face name "
            f"(which needs the network the first time), or nothing for the default model."
        ) from error
    if info["missing_keys"]:  # transformers fills them with random numbers
        raise ModelError(f"{source!r} has no weights for {min(info['missing_keys'])}; copy or save it again.")
    return module, tokenizer, fingerprint(parameters_of(module))


def _from_huggingface(source: str) -> tuple[nn.Module, dict[str, Any], Any]:
    """Model, what was amiss in loading it, and tokenizer; from the cache if all is there."""
    from transformers import AutoModelForCausalLM

    def load(**where: Any) -> tuple[nn.Module, dict[str, Any], Any]:
        tokenizer = read_tokenizer(source, **where)
        with building():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **where
            )
        return *loaded, tokenizer

    if not Path(source).exists() and _knows_small_files(source):
        with contextlib.suppress(OSError, ValueError):  # weights or vocabulary are not there
            return load(local_files_only=True)
    return load()


def _knows_small_files(source: str) -> bool:
    """Whether Hugging Face's cache has, or knows that there is none of, each file that is left out in silence."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return all(try_to_load_from_cache(source, name) is not None for name in LEFT_OUT)
    except HFValidationError:
        return False


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """A model's parameters by name, a tied one once."""
    return {name: parameter.detach() for name, parameter in module.named_parameters(remove_duplicate=True)}
