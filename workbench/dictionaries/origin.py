"""The model that a dictionary was made for, as its record says, beside the one that it is used on.

A dictionary may be used on another model of equal width, such as a child or a fine-tuned one; what its features mean
there is not known. A warning says so once for each pair.
"""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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

    A hash decides; a name alone does where both are names of the hub. A dictionary that the model itself runs through
    is its own.

    Args:
        dictionary: a dictionary; one without a record passes.
        model: the `LanguageModel` that it is used on.
    """
    if not isinstance(dictionary, Recorded) or not _is_another(dictionary.provenance, model):
        return
    if any(one is dictionary for one in model.splices.values()):
        return
    told = _TOLD.setdefault(dictionary, set())
    if model.hash not in told:
        told.add(model.hash)
        made_for = dictionary.provenance.get("model_name", "another model")
        hash = str(dictionary.provenance.get("model_hash") or "")[:12]
        _log.warning(
            "%s was made for %s%s and is used on %s (%s): what its features mean there is not known.",
            dictionary.name,
            made_for,
            f" ({hash})" if hash else "",
            model.name,
            model.hash[:12],
        )


def _is_another(record: dict[str, Any], model: Any) -> bool:
    if recorded := record.get("model_hash"):
        return not model.is_named(recorded)
    name, own = _last(record.get("model_name")), _last(model.name)
    unclear = not name or own == type(model.network.module).__name__.lower() or Path(model.name).exists()
    return not (unclear or name.startswith(own) or own.startswith(name))


def _last(name: Any) -> str:
    """A model's name without its owner, in small letters."""
    return str(name or "").rstrip("/").rpartition("/")[-1].lower()
