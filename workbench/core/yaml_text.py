"""YAML of files and strangers as plain data: no tags, no anchors, no key twice."""

from __future__ import annotations

from typing import Any

import yaml

from workbench.core.errors import WorkbenchError
from workbench.core.forms import DEEPEST
from workbench.core.paths import has_halves
from workbench.core.type_words import reason_of, shown

LARGEST_YAML = 2**16
"""Characters of a YAML text that is read."""


def parse_yaml(text: str, error: type[WorkbenchError], complaint: str) -> Any:
    """The content of a YAML text: mappings, lists, texts, numbers, truth values and None.

    `yaml.safe_load` reads it. Tags, anchors and aliases are refused before anything is made of them, and so is a key
    that stands twice in one mapping.

    Args:
        text: one YAML document.
        error: the room's own error.
        complaint: begins the sentence of the error: "recipe.yaml is not a recipe".

    Raises:
        WorkbenchError: of the given kind: it is no YAML, too large or too deep, or has one of the above.
    """
    if len(text) > LARGEST_YAML:
        raise error(f"{complaint}: it has more than {LARGEST_YAML:,} characters.")
    if has_halves(text):
        raise error(f"{complaint}: it holds halves of characters (lone surrogates).")
    try:
        _check_events(text, error, complaint)
        _check_keys(yaml.compose(text, Loader=yaml.SafeLoader), error, complaint)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as wrong:
        if isinstance(wrong, WorkbenchError):
            raise
        mark = getattr(wrong, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        reason = str(getattr(wrong, "problem", None) or reason_of(wrong))
        raise error(f"{complaint}: it is no YAML ({shown(reason)[1:-1]}{where}).") from wrong


def _check_events(text: str, error: type[WorkbenchError], complaint: str) -> None:
    """Refuse tags, anchors and aliases, and what is nested deeper than `DEEPEST`, before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or (isinstance(event, yaml.NodeEvent) and event.anchor is not None):
            raise error(f"{complaint}: line {line} has an anchor or alias (& or *); write the value out.")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise error(
                f"{complaint}: line {line} has the tag {shown(event.tag)}, and tags are not read; leave it out."
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise error(f"{complaint}: it is nested too deeply.")


def _check_keys(node: Any, error: type[WorkbenchError], complaint: str) -> None:
    """Refuse keys that are no plain texts or numbers, and a key that stands twice in one mapping."""
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _check_keys(one, error, complaint)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise error(f"{complaint}: line {line} has a key that is no text.")
            if key.value in seen:
                raise error(f"{complaint}: line {line} has the key {shown(key.value)} a second time.")
            seen.add(key.value)
            _check_keys(value, error, complaint)
