"""Text of models, files and addresses, made safe to show."""

from __future__ import annotations

import html

_SHOWN = str.maketrans({" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\xa0": "⍽"})
_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in r"\`*_{}[]()<>#+-.!|~$:&^@="} | {"\n": " ", "\r": " "})


def visible(text: str) -> str:
    """A token with its white space and control characters made visible: `␣dog`."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text.translate(_SHOWN))


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its word: "1 text", "2,048 texts"; the plural is the word with an s unless it is given."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def plain(text: object) -> str:
    """A text as Markdown that shows it letter by letter."""
    return str(text).translate(_MARKDOWN)


def code_span(text: object) -> str:
    """A text as Markdown's code in a line, without its grave accents."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split()) or ' '}`"


def figure_text(text: str) -> str:
    """A text as a name or a title that Plotly can't take for markup or mathematics.

    Quotes stay: Plotly knows no name for them, and shows `&quot;` as it is.
    """
    return html.escape(text, quote=False).replace("$", "&#36;")


def figure_label(text: str) -> str:
    """As `figure_text`, with white space made visible."""
    return figure_text(visible(text))
