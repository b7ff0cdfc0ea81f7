"""The grid layers × positions: the likeliest token of each cell, coloured; a click opens the cell."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import tokens

from read.reading import LayerReading
from read.request import KIND, PLACES, LensRequest, kept
from workbench.core.text import visible

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.model import LanguageModel

KEY, ROW, POSITION = "read grid", "read row", "read position"
"""Keys of the session: the grid, and the row and the position of the open cell."""
HERE = Path(__file__).parent
STRETCH = 128
"""Positions that are drawn at a time."""
SHOWN = 3
"""Tokens of a cell that show when it is pointed at."""
GREEN, RED = "31, 122, 109", tokens.TINT
COLOURS = {"probability": GREEN, "KL": RED, "entropy": RED}
TITLES = {"probability": "probability", "KL": "distance to the answer (KL)", "entropy": "entropy"}
DARKEST = 0.7
FULL = {"KL": 10.0, "entropy": 10.0}
"""Nats at which the colour is darkest; the same on every text, so that texts can be compared."""
MOST = 9999.0
"""Nats that stand for an infinite number."""
KINDS = {"logit": "logit lens: the stream as it is", "tuned": "tuned lens", "jacobian": "Jacobian lens"}

_grid = st.components.v2.component(
    "workbench.grid",
    html='<div class="whole"><div class="scroller"></div><div class="tip" hidden></div></div>',
    css=(HERE / "grid.css").read_text(),
    js=(HERE / "grid.js").read_text(),
)


def kinds(model: LanguageModel) -> list[str]:
    """The lenses that are there for the model: those without a fit, and the fitted ones that are kept for it."""
    from workbench.lens import Lens, LensError
    from workbench.lens.files import kept as kept_lens

    def there(kind: type[Lens]) -> bool:
        try:
            return not kind.fitted or bool(kept_lens(model, kind))
        except LensError:
            return False

    return kept(("lenses", caching.as_placed(model)), lambda: [word for word, one in Lens.kinds.items() if there(one)])


def ask(model: LanguageModel, kinds: list[str]) -> tuple[LensRequest, str]:
    """Draw the settings of the grid; returns how the layers are read, and by what cells are coloured."""
    if st.session_state.get("read lens", KIND) not in kinds:
        st.session_state["read lens"] = KIND
    what, lens, layer, colour = st.columns([3, 3, 1.2, 3], vertical_alignment="bottom")
    at = what.selectbox(
        "Read",
        list(PLACES),
        format_func=PLACES.__getitem__,
        key="read at",
        persist_state="session",
        help="The stream carries everything that layers have added; or each addition alone.",
    )
    kind = lens.selectbox(
        "Lens",
        kinds,
        format_func=lambda word: KINDS.get(word, word),
        key="read lens",
        persist_state="session",
        help="How a layer's stream becomes a prediction: through the model's final norm and LM head, as it is or "
        "behind a map that was fitted on texts.",
    )
    number = None
    if at == "heads":
        last = model.network.n_layers - 1
        st.session_state["read layer"] = min(st.session_state.get("read layer", last), last)
        number = int(layer.number_input("Layer", 0, last, key="read layer"))
    by = colour.segmented_control(
        "Colour by",
        list(COLOURS),
        key="read colour",
        required=True,
        default="probability" if "read colour" not in st.session_state else None,
        persist_state="session",
    )
    return LensRequest(kind, at, number), by or "probability"


def show(reading: LayerReading, lens: LensRequest, by: str) -> tuple[int, int]:
    """Draw the grid and its legend; returns the row and the position of the open cell."""
    length = len(reading.prompt)
    start = _stretch(length)
    cells = slice(start, min(start + STRETCH, length))
    rows = list(reversed(range(len(reading.labels))))
    opened = chosen(reading, cells)
    data = _data(reading, rows, cells, by, stands=lens.whole)
    data |= {
        "corner": "head" if lens.at == "heads" else "layer",
        "noun": "Head" if lens.at == "heads" else "Layer",
        "colour": COLOURS[by],
    }
    data["version"] = hashlib.sha256(repr(data).encode()).hexdigest()
    data["chosen"] = [reading.labels[opened[0]], opened[1]]
    _grid(key=KEY, data=data, on_cell_change=_picked)
    full = "100%" if by == "probability" else f"{FULL[by]:g} nats and more"
    tokens.show_legend(TITLES[by], COLOURS[by], DARKEST, full, note(reading, lens))
    return opened


def note(reading: LayerReading, lens: LensRequest) -> str:
    """What the grid's marks mean."""
    words = "Each cell is the token that the layer expects after the one on top; bold where the text goes on so. "
    if lens.whole and reading.doubt is not None:
        middle = int(reading.doubt.settled.median())
        words += (
            f"A line below a cell: from this layer on the answer stands; half of them stand from layer {middle} "
            "or an earlier one on. "
        )
    return words + "Click a cell to open it."


def _stretch(length: int) -> int:
    """The first position that is drawn; a longer text is drawn in stretches."""
    if length <= STRETCH:
        return 0
    starts = list(range(0, length, STRETCH))
    if st.session_state.get("read stretch", 0) not in starts:
        st.session_state["read stretch"] = 0
    return st.selectbox(
        "Tokens",
        starts,
        format_func=lambda one: f"{one} to {min(one + STRETCH, length) - 1} of {length}",
        key="read stretch",
        persist_state="session",
        width=220,
    )


def chosen(reading: LayerReading, cells: slice | None = None) -> tuple[int, int]:
    """The row and the position of the open cell: the last of each at first."""
    label, position = st.session_state.get(ROW), st.session_state.get(POSITION)
    if label not in reading.labels:
        label = reading.labels[-1]
    first, end = (0, len(reading.prompt)) if cells is None else (cells.start, cells.stop)
    if not isinstance(position, int) or not first <= position < end:
        position = end - 1
    st.session_state[ROW], st.session_state[POSITION] = label, position
    return reading.labels.index(label), position


def _picked() -> None:
    """Open the cell that was clicked."""
    label, position = st.session_state[KEY]["cell"]
    st.session_state[ROW], st.session_state[POSITION] = str(label), int(position)


def _data(reading: LayerReading, rows: list[int], cells: slice, by: str, *, stands: bool) -> dict[str, Any]:
    """What the grid draws, as plain data; texts stand in `words` once each."""
    used: dict[str, int] = {}

    def word(text: str) -> int:
        return used.setdefault(visible(text), len(used))

    def numbers(values: Tensor) -> list[list[float]]:
        finite = values[rows, cells].nan_to_num(posinf=MOST, neginf=-MOST)
        return [[round(value, 3) for value in line] for line in finite.tolist()]

    names = {id: word(text) for id, text in reading.words.items()}
    tops, shares = reading.tops[rows, cells, :SHOWN], reading.probabilities[rows, cells, :SHOWN]
    following = [*reading.ids[1:], -1][cells]
    data: dict[str, Any] = {
        "rows": [reading.labels[row] for row in rows],
        "first": cells.start,
        "tokens": [word(text) for text in reading.prompt[cells]],
        "tops": [[[names[id] for id in cell] for cell in line] for line in tops.tolist()],
        "right": [[int(cell[0] == id) for cell, id in zip(line, following, strict=True)] for line in tops.tolist()],
        "shares": [[[float(f"{share:.3g}") for share in cell] for cell in line] for line in shares.tolist()],
        "entropy": numbers(reading.entropy),
        "kl": numbers(reading.kl),
        "from": [-1] * len(following),
    }
    if stands and reading.doubt is not None:
        data["from"] = [len(rows) - 1 - int(layer) for layer in reading.doubt.settled[cells]]
    values = {"probability": reading.probabilities[..., 0], "KL": reading.kl, "entropy": reading.entropy}[by]
    shades = (values[rows, cells] / FULL.get(by, 1.0)).clamp(0, 1) * DARKEST
    data["shades"] = [[round(value, 2) for value in line] for line in shades.tolist()]
    data["words"] = list(used)
    return data
