"""Text of a model or a user on the page. The only file that writes HTML; all that is not its own is escaped.

Spaces stay spaces, so that text wraps and can be copied; a small dot is drawn behind each to make it visible.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import streamlit as st

TINT = "200, 100, 60"
FULL_TINT = 3.0
"""Nats at which the colour is at its strongest; the same on every page, so that two texts can be compared."""

STYLE = """<style>
.wb-text { font-size: 1.02rem; line-height: 1.85; white-space: pre-wrap; overflow-wrap: anywhere; }
.wb-text .t { position: relative; border-radius: 3px; padding: 2px 0; }
.wb-text .t:hover { outline: 1px solid #1f2b2a; }
.wb-text .t:hover::after { content: attr(data-value); position: absolute; left: 0; bottom: 100%; z-index: 10;
  padding: 1px 7px; border-radius: 4px; background: #1f2b2a; color: #fff; font-size: 0.8rem; line-height: 1.5;
  white-space: nowrap; pointer-events: none; }
.wb-text .s { background: radial-gradient(circle, rgba(31, 43, 42, 0.3) 0 1px, transparent 1.4px) center/100% 100%; }
.wb-text .n::before { content: "↵"; color: #7c8b93; font-size: 0.8em; }
.wb-chips { display: flex; flex-wrap: wrap; gap: 4px; }
.wb-chips > span { background: #f4f6f3; border: 1px solid #dfe5e0; border-radius: 4px; padding: 0 7px;
  font-size: 0.9rem; line-height: 1.6; white-space: pre; }
.wb-scale { display: inline-block; width: 90px; height: 10px; border-radius: 3px; vertical-align: middle;
  margin: 0 6px; border: 1px solid #dfe5e0; }
.st-key-card [data-testid="stPageLink-NavLink"] { background: transparent; }
.st-key-card [data-testid="stPageLink-NavLink"] * { font-weight: 400; }
.st-key-card [data-testid="stPageLink-NavLink"] strong { font-weight: 600; }
[class*="st-key-edit-"] [data-testid="stPageLink-NavLink"] { padding: 0; background: transparent; }
.wb-examples { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; align-items: baseline; }
.wb-examples .v { font-size: 0.85rem; color: #5c6b70; text-align: right; font-variant-numeric: tabular-nums; }
.wb-examples .wb-text { font-size: 0.95rem; line-height: 1.75; border-bottom: 1px solid #eef1ee; }
.wb-examples .wb-text:last-child { border-bottom: none; }
.wb-text .p { box-shadow: 0 2px 0 #c8643c; }
.st-key-card [data-testid="stExpander"] details { border-color: #eef1ee; }
.wb-legend { font-size: 0.85rem; color: #5c6b70; }
</style>"""

_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in r"\`*_{}[]()<>#+-.!|~$:&^@="} | {"\n": " "})


def plain(text: object) -> str:
    """A text as Markdown that shows it letter by letter."""
    return str(text).translate(_MARKDOWN)


def use_style() -> None:
    """Bring the style of this file into the page; once per run."""
    st.html(STYLE)


def show_text(text: str, place: Any = None) -> None:
    """A text as it is, with its spaces visible."""
    show_tokens([text], [], place)


def show_tokens(pieces: Sequence[str], values: Sequence[float], place: Any = None, unit: str = "KL") -> None:
    """Pieces of a text, tinted by their values, with the value on hover.

    Args:
        pieces: what each token adds to the text; empty ones lend their value to the next.
        values: one per piece, from 0; none for a text without colours.
        place: where to draw it; here if None.
        unit: what the values are.
    """
    parts, held = [], 0.0
    for number, piece in enumerate(pieces):
        if not values:
            parts.append(_letters(piece))
            continue
        held = max(held, values[number])
        if piece:
            tint = min(held / FULL_TINT, 1.0) * 0.8
            title = html.escape(f"{unit} {held:.3f} nats", quote=True)
            style = f"background: rgba({TINT}, {tint:.3f})"
            parts.append(f'<span class="t" style="{style}" data-value="{title}">{_letters(piece)}</span>')
            held = 0.0
    (place or st).html(f'<div class="wb-text">{"".join(parts) or "&nbsp;"}</div>')


def show_examples(examples: Sequence[Any], highest: float) -> None:
    """Examples of a feature, one below the other: its value, and the text around, tinted by its value on each token.

    Args:
        examples: as an index gives them.
        highest: the value of the strongest colour.
    """
    rows = []
    for example in examples:
        spans = []
        for place, (token, value) in enumerate(zip(example.tokens, example.activations, strict=True)):
            spans.append(_tinted(token, value or 0.0, highest, f"{value or 0:.3g}", peak=place == example.peak))
        rows.append(f'<span class="v">{example.value:.3g}</span><span class="wb-text">{"".join(spans)}</span>')
    st.html(f'<div class="wb-examples">{"".join(rows)}</div>')


def show_strengths(pieces: Sequence[str], values: Sequence[float], labels: Sequence[str], least: float = 0.0) -> None:
    """A text whose tokens are tinted by a value of each, from `least` to the highest; what is `said` shows on hover."""
    full = max(values, default=0.0) - least
    spans = [
        _tinted(piece, value - least, full, what) for piece, value, what in zip(pieces, values, labels, strict=True)
    ]
    st.html(f'<div class="wb-text">{"".join(spans)}</div>')


def _tinted(token: str, value: float, full: float, labels: str, *, peak: bool = False) -> str:
    """A token on a line of its own text: a new line is only a sign."""
    letters = _letters(token).replace("\n", "")
    if value <= 0 and not peak:
        return (
            letters
            if not labels
            else f'<span class="t" data-value="{html.escape(labels, quote=True)}">{letters}</span>'
        )
    tint = min(value / full, 1.0) * 0.8 if full > 0 else 0.0
    kind = "t p" if peak else "t"
    title = html.escape(labels, quote=True)
    return f'<span class="{kind}" style="background: rgba({TINT}, {tint:.3f})" data-value="{title}">{letters}</span>'


def show_scale() -> None:
    """What the colours of `show_tokens` mean."""
    ramp = f"linear-gradient(to right, rgba({TINT}, 0), rgba({TINT}, 0.8))"
    st.html(
        f'<div class="wb-legend">Colour: how far the edited model predicts this token differently from the plain one '
        f'(KL divergence), 0<span class="wb-scale" style="background: {ramp}"></span>{FULL_TINT:g} nats and more. '
        "Point at a token for its value; dots are spaces.</div>"
    )


def show_chips(texts: Sequence[str]) -> None:
    """Tokens side by side, each in its own frame."""
    chips = "".join(f'<span class="wb-text">{_letters(text)}</span>' for text in texts)
    st.html(f'<div class="wb-chips">{chips}</div>')


def _letters(text: str) -> str:
    escaped = html.escape(text, quote=True)
    return escaped.replace(" ", '<span class="s"> </span>').replace("\n", '<span class="n">\n</span>')
