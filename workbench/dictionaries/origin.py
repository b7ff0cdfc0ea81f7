"""The model that a dictionary was made for, as its record says, beside the one that it is used on.

A dictionary may be used on another model of equal width, such as a child or a fine-tuned one; what its features mean
there is not known. A warning says so once for each pair.
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

ALIASES = {"gpt2small": "gpt2", "mistral7b": "mistral7bv01", "pythia": "pythia70m", "gptj": "gptj6b"}
"""Other names of models in SAELens, TransformerLens and Neuronpedia, without marks."""
_log = logging.getLogger("workbench")
_TOLD: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
"""Of each dictionary, the hashes of the models that were told."""


@runtime_checkable
class Recorded(Protocol):
    """A dictionary, as far as its record is asked for."""

    name: str
    provenance: dict[str, Any]


def tell_origin(dictionary: object, model: Any) -> None:
    """Log a warning where a dictionary's record names another model than this one.

    See `is_of_another`. A dictionary that the model itself runs through is its own.

    Args:
        dictionary: a dictionary; one without a record passes.
        model: the `LanguageModel` that it is used on.
    """
    if not isinstance(dictionary, Recorded) or not is_of_another(dictionary.provenance, model):
        return
    if any(one is dictionary for one in model.splices.values()):
        return
    told = _TOLD.setdefault(dictionary, set())
    if model.hash not in told:
        told.add(model.hash)
        _log.warning("%s", foreign_sentence(dictionary.name, dictionary.provenance, model))


def foreign_sentence(name: str, record: Mapping[str, Any], model: Any) -> str:
    """That a dictionary with this record was made for another model, in a sentence."""
    made_for, hash = record.get("model_name", "another model"), str(record.get("model_hash") or "")[:12]
    return (
        f"{name} was made for {made_for}{hash and f' ({hash})'} and is used on {model.name} ({model.hash[:12]}): what "
        "its features mean there is not known."
    )


def is_of_another(record: Mapping[str, Any], model: Any) -> bool:
    """Whether a record names another model than this one; False where it can't be known.

    A hash decides. Names are compared without owners, capitals and marks, since tools write them differently:
    "gemma-2-2b" and "google/gemma-2-2b", "llama3.1-8b" and "meta-llama/Meta-Llama-3.1-8B". A model that was opened from
    a folder or a module has no name to compare.
    """
    if recorded := record.get("model_hash"):
        return not model.is_named(recorded)
    stated, own = plain_name(record.get("model_name")), plain_name(model.name)
    unclear = own == type(model.network.module).__name__.lower() or Path(model.name).exists()
    return bool(stated and own) and not unclear and stated != own


def plain_name(name: Any) -> str:
    """A model's name without its owner, in small letters and digits, under one of the names that tools have for it."""
    last = str(name or "").rstrip("/").rpartition("/")[-1].lower()
    plain = re.sub(r"[^a-z0-9]", "", last.removeprefix("meta-").removesuffix("-hf"))
    return ALIASES.get(plain, plain)
