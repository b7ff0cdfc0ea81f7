"""Checks of values by pydantic that end at the first fault of a list: a million faults would be a million objects."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

_LISTS = ("list", "tuple", "set", "frozenset")
"""Schemas of pydantic that can end at their first fault; those of mappings can't."""


def validator(form: Any) -> SchemaValidator:
    """The check of a type."""
    return SchemaValidator(_quick(TypeAdapter(form).core_schema))


def _quick(schema: Any) -> Any:
    """A schema whose lists end at their first fault."""
    if isinstance(schema, dict):
        quick = {name: _quick(inner) for name, inner in schema.items()}
        return quick | {"fail_fast": True} if schema.get("type") in _LISTS else quick
    return [_quick(inner) for inner in schema] if isinstance(schema, list) else schema
