"""Settings that decide about a result, kept beside it as plain data and compared before work on it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.core.type_words import shown

HASHES = ("model_hash", "hash")
"""Settings that are the hash of a model or a dictionary. Beside one stands `former_hash`, as older versions had it."""


def difference(kept: Mapping[str, Any], wanted: Mapping[str, Any], of: str = "") -> str:
    """The first setting that differs, in words; empty if none does.

    Settings of older versions, which have no `former_hash`, are compared by that.
    """
    if "former_hash" in wanted and "former_hash" not in kept:
        former = wanted["former_hash"]
        kept = {"former_hash": former, **kept}
        for name in HASHES:
            if name in wanted and kept.get(name) == former:
                kept[name] = wanted[name]
    for name in {**kept, **wanted}:
        one, other = kept.get(name), wanted.get(name)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                if inside := difference(one, other, f"{name}."):
                    return inside
                continue
            return f"its {of}{name} is {shown(one)}, not {shown(other)}"
    return ""
