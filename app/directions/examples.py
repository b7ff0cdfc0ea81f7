"""The examples of a concept: typed, a text a line, or from a file of JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import snippets

from workbench.core.forms import parse_json
from workbench.core.text import plain
from workbench.directions import DirectionError

if TYPE_CHECKING:
    from workbench.model import LanguageModel

ANIMALS = ("dog", "cat", "man", "girl", "king", "bird", "woman", "boy", "horse", "child", "doctor", "farmer")
GLAD = "\n".join(f"The {word} was happy and began to sing" for word in ANIMALS)
SAD = "\n".join(f"The {word} was sad and began to cry" for word in ANIMALS)
METHODS = {
    "difference": "difference of means",
    "pca": "PCA of pairs",
    "ridge": "ridge probe",
    "logistic": "logistic probe",
    "lda": "linear discriminant",
}
POSITIONS = {"last": "last token", "mean": "mean of all", "all": "each token"}
MOST = 1000
"""Texts of a class."""
HELP = (
    "One object a line: {“positive”: …, “negative”: …} for a pair, or {“text”: …, “label”: 1 or 0}. Pairs stay "
    "together when every third is held out."
)


@dataclass(frozen=True)
class DirectionRequest:
    """What a direction is found in, and how."""

    source: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    method: str
    position: str

    def key(self, model: LanguageModel) -> tuple[str, ...]:
        """All that the result depends on."""
        texts = ("\n".join(self.positives), "\n".join(self.negatives))
        return ("directions", caching.as_placed(model), *texts, self.method, self.position)

    def code(self) -> str:
        """The lines of a script that find the directions."""
        return (
            snippets.opening(self.source)
            + f"positives = {list(self.positives)!r}\nnegatives = {list(self.negatives)!r}\n"
            + f"found = wb.directions.find_directions(model, positives, negatives, method={self.method!r}, "
            + f"position={self.position!r})\n"
        )


def ask(source: str) -> tuple[DirectionRequest | None, bool]:
    """Draw the examples and the settings; returns the request, None for a file that is wrong, and whether to find."""
    file = st.file_uploader("Examples as JSONL", "jsonl", key="direction examples", max_upload_size=20, help=HELP)
    if file is None:
        left, right = st.columns(2, gap="medium")
        have = left.text_area(
            "Texts that have it", GLAD, height=190, key="direction positives", persist_state="session"
        )
        lack = right.text_area(
            "Texts that lack it", SAD, height=190, key="direction negatives", persist_state="session"
        )
        both = _told(lambda: _few((_lines(have), _lines(lack))))
    else:
        both = _told(lambda: read(file.getvalue()))
        if both is not None:
            st.caption(f"{len(both[0]):,} texts that have it and {len(both[1]):,} that lack it.")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        method = st.selectbox(
            "Method", list(METHODS), format_func=METHODS.__getitem__, key="direction method", persist_state="session"
        )
        position = st.selectbox(
            "Read at",
            list(POSITIONS),
            format_func=POSITIONS.__getitem__,
            key="direction position",
            persist_state="session",
        )
        wanted = st.button("Find", type="primary", icon=":material/search:", key="find direction")
    if both is None:
        return None, False
    return DirectionRequest(source, tuple(both[0]), tuple(both[1]), method, position), wanted


def read(data: bytes) -> tuple[list[str], list[str]]:
    """The positives and negatives of a file of JSON lines.

    Raises:
        DirectionError: another file, or too many texts.
    """
    try:
        lines = [line for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DirectionError("The file of examples is no text in UTF-8; save it as UTF-8.") from error
    found: tuple[list[str], list[str]] = ([], [])
    for number, line in enumerate(lines, 1):
        said = f"Line {number} of the examples is no record of texts"
        record = parse_json(line, dict[str, str | int | bool], DirectionError, said)
        if set(record) == {"positive", "negative"}:
            for texts, name in zip(found, ("positive", "negative"), strict=True):
                texts.append(str(record[name]))
        elif set(record) == {"text", "label"} and record["label"] in (0, 1):
            found[0 if record["label"] else 1].append(str(record["text"]))
        else:
            raise DirectionError(f"{said}: write positive and negative, or text and a label of 1 or 0.")
    return _few(found)


def _few(both: tuple[list[str], list[str]]) -> tuple[list[str], list[str]]:
    """The texts of both classes; raises `DirectionError` for more than `MOST` of one."""
    if max(map(len, both)) > MOST:
        raise DirectionError(f"The examples have {max(map(len, both)):,} texts of a class; give at most {MOST:,}.")
    return both


def _told(made: Callable[[], tuple[list[str], list[str]]]) -> tuple[list[str], list[str]] | None:
    """What a function gives; None where it refuses, which is shown."""
    try:
        return made()
    except DirectionError as error:
        st.error(plain(error), icon=":material/error:")
        return None


def _lines(typed: str) -> list[str]:
    return [line.strip() for line in typed.splitlines() if line.strip()]
