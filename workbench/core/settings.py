"""Settings that decide about a result, kept beside it as plain data and compared before work on it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.core.type_words import shown


def difference(kept: Mapping[str, Any], wanted: Mapping[str, Any], of: str = "") -> str:
    """The first setting that differs, in words; empty if none does."""
    for name in {**kept, **wanted}:
        one, other = kept.get(name), wanted.get(name)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                return difference(one, other, f"{name}.")
            return f"its {of}{name} is {shown(one)}, not {shown(other)}"
    return ""
