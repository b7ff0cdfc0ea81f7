"""Texts of models and users on the page. The only file that writes HTML; it escapes all text from elsewhere.

Spaces stay spaces, so that text wraps and can be copied; a small dot behind each makes it visible.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import streamlit as st

TINT = "200, 100, 60"
FULL_TINT = 3.0
"""Nats at which the colour is darkest; the same on every page, so that texts can be compared."""

CELL, FRAME = 16, 22
"""Pixels that a table's cell, and the frame of a token in it, take beside the letters."""

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
[data-testid="stPageLink-NavLink"] span, [data-testid="stPageLink-NavLink"] p { white-space: normal;
  overflow: visible; text-overflow: clip; overflow-wrap: anywhere; }
[data-testid="stPageLink-NavLink"] { height: auto; }
[class*="st-key-edit-"] [data-testid="stPageLink-NavLink"] { padding: 0; background: transparent; }
.wb-examples { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; align-items: baseline; }
.wb-examples .v { font-size: 0.85rem; color: #5c6b70; text-align: right; font-variant-numeric: tabular-nums; }
.wb-examples .wb-text { font-size: 0.95rem; line-height: 1.75; border-bottom: 1px solid #eef1ee; }
.wb-examples .wb-text:last-child { border-bottom: none; }
.wb-text .p { box-shadow: 0 2px 0 #c8643c; }
.st-key-card [data-testid="stExpander"] details { border-color: #eef1ee; }
[data-testid="stMainBlockContainer"] { padding-left: clamp(1rem, 4vw, 5rem); padding-right: clamp(1rem, 4vw, 5rem); }
[data-testid="stMultiSelectTagsContainer"] { flex-wrap: wrap; overflow: visible; height: auto; mask-image: none; }
.stMultiSelect .react-aria-ComboBox, .stMultiSelect .react-aria-ComboBox > div { height: auto; max-height: none; }
.wb-legend { font-size: 0.85rem; color: #5c6b70; }
</style>"""


def use_style() -> None:
    """Add the style of this file to the page; call this once in each run."""
    st.html(STYLE)


def show_text(text: str, place: Any = None) -> None:
    """Draw a text with its spaces visible."""
    show_tokens([text], [], place)


def show_tokens(pieces: Sequence[str], values: Sequence[float], place: Any = None, unit: str = "KL") -> None:
    """Draw the pieces of a text, tinted by their values, with the value on hover.

    Args:
        pieces: the text that each token adds; an empty piece passes its value on to the next.
        values: one per piece, at least 0; empty for a text without colours.
        place: the container to draw in; the page if None.
        unit: the name of the values.
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
    """Draw the examples of a feature below each other: its value, and the text tinted by its value on each token.

    Args:
        examples: `Example`s of a feature index.
        highest: the value of the darkest colour.
    """
    rows = []
    for example in examples:
        spans = []
        for place, (token, value) in enumerate(zip(example.tokens, example.activations, strict=True)):
            spans.append(_tinted(token, value or 0.0, highest, f"{value or 0:.3g}", peak=place == example.peak))
        rows.append(f'<span class="v">{example.value:.3g}</span><span class="wb-text">{"".join(spans)}</span>')
    st.html(f'<div class="wb-examples">{"".join(rows)}</div>')


def show_strengths(pieces: Sequence[str], values: Sequence[float], labels: Sequence[str], least: float = 0.0) -> None:
    """Draw a text, each token tinted by its value from `least` to the highest, with its label on hover."""
    full = max(values, default=0.0) - least
    rows = zip(pieces, values, labels, strict=True)
    spans = [_tinted(piece, value - least, full, label) for piece, value, label in rows]
    st.html(f'<div class="wb-text">{"".join(spans)}</div>')


def _tinted(token: str, value: float, full: float, label: str, *, peak: bool = False) -> str:
    """The HTML of a token; a line break in it shows as a sign only."""
    letters = _letters(token).replace("\n", "")
    title = html.escape(label, quote=True)
    if value <= 0 and not peak:
        return f'<span class="t" data-value="{title}">{letters}</span>' if label else letters
    tint = min(value / full, 1.0) * 0.8 if full > 0 else 0.0
    kind = "t p" if peak else "t"
    return f'<span class="{kind}" style="background: rgba({TINT}, {tint:.3f})" data-value="{title}">{letters}</span>'


def show_scale() -> None:
    """Draw the legend of `show_tokens`."""
    what = "KL divergence of the edited and the plain prediction of this token"
    note = "Point at a token for its value; dots are spaces."
    show_legend(what, TINT, 0.8, f"{FULL_TINT:g} nats and more", note)


def show_legend(what: str, colour: str, darkest: float, full: str, note: str) -> None:
    """Draw the legend of a colour.

    Args:
        what: the name of the values.
        colour: red, green and blue, as CSS writes them.
        darkest: its opacity at the full value; at 0 there is none.
        full: the full value.
        note: sentences behind it.
    """
    ramp = f"linear-gradient(to right, rgba({colour}, 0), rgba({colour}, {darkest}))"
    what, full, note = map(html.escape, (what, full, note))
    st.html(
        f'<div class="wb-legend">Colour: {what}, 0<span class="wb-scale" style="background: {ramp}"></span>{full}. '
        f"{note}</div>"
    )


def show_chips(texts: Sequence[str]) -> None:
    """Draw tokens side by side, each in its own frame."""
    chips = "".join(f'<span class="wb-text">{_letters(text)}</span>' for text in texts)
    st.html(f'<div class="wb-chips">{chips}</div>')


def that_fit(tokens: Sequence[str], width: int, kept: str | None = None) -> list[str]:
    """The first of the tokens that stand whole in a cell of a table, in pixels; at least one.

    Args:
        tokens: as they are shown, each in a frame of its own.
        width: of the column.
        kept: one of the tokens that is among them in any case, the last of them if it is not among the first.
    """
    found, room = [], width - CELL - (0 if kept is None else _wide(kept))
    for token in tokens:
        room -= 0 if token == kept else _wide(token)
        if room < 0:
            break
        found.append(token)
    if kept is not None and kept not in found:
        found.append(kept)
    return found or list(tokens[:1])


def _wide(token: str) -> float:
    """The pixels of a token in its frame, rather more than fewer."""
    return FRAME + sum(15.0 if ord(letter) > 0x2E7F else 11.0 if letter in "mwMW@%—…" else 7.6 for letter in token)


def _letters(text: str) -> str:
    escaped = html.escape(text, quote=True)
    return escaped.replace(" ", '<span class="s"> </span>').replace("\n", '<span class="n">\n</span>')
