"""HTML of results for notebooks: facts, tables and texts of tokens. All text is escaped, nothing is a script.

Colours are tints of what lies below, so that they fit light and dark pages.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from workbench.core.text import counted, visible

LINES = 10
"""Rows of a table that are drawn."""
LONGEST = 160
"""Characters of a value."""
TOKEN = 24
"""Characters of a text that may be a token, whose spaces at the ends count."""
TINT, OTHER_TINT = "200, 100, 60", "31, 122, 109"
"""Of values above 0 and below it."""
_LINE = "padding: 2px 12px 2px 0; text-align: left; vertical-align: top;"
_TOKENS = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.8;"


def words(value: object, most: int = LONGEST) -> str:
    """A value as a text of one line, of at most so many characters; not escaped."""
    text = _words(value, most)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _words(value: object, most: int) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return _line(value[: most + 1])
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset | range):
        return _several(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__str__ is object.__str__:
        return f"a {type(value).__name__}"
    return " ".join(str(value).split())


def _line(text: str) -> str:
    """A text of one line; what may be a token shows its spaces."""
    if len(text) <= TOKEN and not (text.isprintable() and text == text.strip()):
        return visible(text)
    return "".join(one if one.isprintable() else visible(one) for one in text)


def _inner(value: object) -> str:
    """A member of a container, short."""
    if isinstance(value, Mapping | list | tuple) and len(value) > 4:
        return counted(len(value), "value")
    return words(value, 40)


def _array(value: Any) -> str:
    """A tensor or an array: its shape; its number where it has no axis."""
    return " × ".join(f"{size:,}" for size in value.shape) + " numbers" if value.shape else words(value.item())


def _several(value: Collection[object]) -> str:
    """The first members of a container."""
    if isinstance(value, Mapping):
        first = [f"{_inner(key)}: {_inner(one)}" for key, one in itertools.islice(value.items(), 6)]
    else:
        first = [_inner(one) for one in itertools.islice(value, 12)]
    return ", ".join([*first, *([f"… ({len(value):,} in all)"] if len(value) > len(first) else [])])


def escaped(value: object, most: int = LONGEST) -> str:
    """A value as HTML that shows it letter by letter."""
    return html.escape(words(value, most), quote=True)


def box(title: object, *parts: str) -> str:
    """Parts, which are HTML, below a title, which is not."""
    return f'<div style="margin: 4px 0"><b>{escaped(title)}</b>{"".join(parts)}</div>'


def facts(pairs: Mapping[str, object]) -> str:
    """Names and values below each other."""
    rows = "".join(
        f'<tr><td style="{_LINE} opacity: 0.7">{escaped(name)}</td><td style="{_LINE}">{escaped(value)}</td></tr>'
        for name, value in pairs.items()
        if not (value is None or (isinstance(value, str) and not value))
    )
    return f"<table>{rows}</table>" if rows else ""


def table(records: Iterable[Mapping[str, object]], title: object = "") -> str:
    """The first rows of a table; columns are those of the first row."""
    first = list(itertools.islice(records, LINES + 1))
    if not first:
        return ""
    names = list(first[0])
    head = "".join(f'<th style="{_LINE}">{escaped(name)}</th>' for name in names)
    rows = [
        "".join(f'<td style="{_LINE}">{escaped(one.get(name, ""), 80)}</td>' for name in names) for one in first[:LINES]
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    more = f'<div style="opacity: 0.7">the first {LINES} rows</div>' if len(first) > LINES else ""
    above = f'<div style="opacity: 0.7">{escaped(title)}</div>' if title else ""
    return f"{above}<table><tr>{head}</tr>{body}</table>{more}"


def tokens(
    texts: Sequence[str], values: Sequence[float | None] = (), *, full: float | None = None, unit: str = ""
) -> str:
    """A text, each token tinted by its value, with the value on hover.

    Args:
        texts: of the tokens.
        values: of each; None and NaN for none; empty for a text without colours.
        full: the value of the darkest colour; the largest if None.
        unit: stands behind the values.
    """
    known = [value if value is not None and math.isfinite(value) else 0.0 for value in values] or [0.0] * len(texts)
    full = full or max(map(abs, known), default=0.0) or 1.0
    spans = []
    for text, value in zip(texts, known, strict=True):
        letters = html.escape(text.replace("\n", "↵"), quote=True)
        if value:
            tint = TINT if value > 0 else OTHER_TINT
            style = f"background: rgba({tint}, {0.8 * min(abs(value) / full, 1.0):.3f})"
            spans.append(f'<span style="{style}" title="{escaped(f"{value:.4g} {unit}".strip())}">{letters}</span>')
        else:
            spans.append(f"<span>{letters}</span>")
    return f'<div style="{_TOKENS}">{"".join(spans)}</div>'


def grid(rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], columns: Sequence[str]) -> str:
    """A table of cells: each a text, a share from 0 to 1 that tints it, and a text on hover.

    Args:
        rows: names and cells.
        columns: names.
    """
    head = "".join(f'<th style="{_LINE}">{escaped(visible(name), 24)}</th>' for name in ("", *columns))
    lines = []
    for name, cells in rows:
        drawn = "".join(
            f'<td style="{_LINE} background: rgba({TINT}, {0.8 * share:.3f})" title="{escaped(hover)}">'
            f"{escaped(visible(text), 24)}</td>"
            for text, share, hover in cells
        )
        lines.append(f'<tr><td style="{_LINE} opacity: 0.7">{escaped(name)}</td>{drawn}</tr>')
    return f'<div style="overflow-x: auto"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
