"""Text files of strangers: in UTF-8, or refused by what they are."""

from __future__ import annotations

import codecs
from pathlib import Path

from workbench.core.errors import WorkbenchError
from workbench.core.paths import check_ordinary
from workbench.core.type_words import reason_of

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""How files of other encodings begin; UTF-32's mark begins with one of UTF-16's."""
_START = 4096
"""Bytes of a file that are looked at for NULs, of which UTF-16 has one in each ASCII character."""


def read_utf8(file: Path, error: type[WorkbenchError]) -> str:
    """The text of a file in UTF-8, without its byte order mark; line ends stay as they are.

    Args:
        file: with or without a byte order mark.
        error: the room's own error.

    Raises:
        WorkbenchError: of the given kind: the file can't be read, is no ordinary one, or is in another encoding.
    """
    check_ordinary(file, error)
    try:
        data = file.read_bytes()
    except OSError as wrong:
        raise error(f"{file} can't be read: {reason_of(wrong)}.") from wrong
    other = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "")
    if not other and 8 * data[:_START].count(0) > len(data[:_START]):
        other = "UTF-16 or no text"
    if other:
        raise error(f"{file} is {other}, not UTF-8 text; save it as UTF-8 first.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        place = f"byte {wrong.object[wrong.start]:#04x} at {wrong.start:,}"
        raise error(f"{file} is not UTF-8 text ({place}); convert it first.") from wrong
