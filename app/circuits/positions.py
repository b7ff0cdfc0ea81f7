"""Two prompts, layer by position: where their difference becomes the difference of their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import background, snippets
from shared.sample import knows
from shared.waiting import one_sentence

from circuits import cell, script
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.circuits import Alignment, PositionPatching
    from workbench.model import LanguageModel

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
RIGHT, WRONG = " Mary", " John"
COMPONENTS = {"stream": "the stream", "attention": "attention", "mlp": "MLPs", "heads": "heads"}
INTO = {"corrupted": "clean into corrupted", "clean": "corrupted into clean"}


@dataclass(frozen=True)
class PositionRequest:
    """Everything that the grid depends on."""

    source: str
    clean: str
    corrupted: str
    spans: str
    right: str
    wrong: str
    component: str
    into: str
    stamp: str

    def key(self, method: str) -> tuple[str, ...]:
        """The key of the work's task, by "estimate" or "exact"."""
        return ("positions", method, *(str(one) for one in vars(self).values()))

    def named(self) -> dict[str, Any]:
        """The spans by name, from lines such as `subject = Eiffel Tower | Big Ben`."""
        found: dict[str, Any] = {}
        for line in self.spans.splitlines():
            name, _, texts = line.partition("=")
            one, _, other = texts.partition("|")
            if name.strip():
                found[name.strip()] = (one.strip(), (other or one).strip())
        return found

    def aligned(self, model: LanguageModel) -> Alignment:
        """The prompts with their places."""
        import workbench as wb

        return wb.circuits.align_prompts(model, [self.clean], [self.corrupted], **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """The further arguments of `align_prompts`."""
        ends = {"answers": self.right, "wrong": self.wrong}
        return {"spans": self.named()} | {name: [text] for name, text in ends.items() if text}


def show(model: LanguageModel) -> None:
    """Draw the prompts, their alignment, and the grids."""
    if model.tokenizer is None:
        return
    st.subheader("Two prompts, layer by position", anchor=False)
    st.caption("Where in the model does the difference of two prompts become the difference of their answers?")
    with st.container(), one_sentence():
        request = _ask(model)
        if not request.clean or not request.corrupted:
            st.caption("Type two prompts.")
            return
        alignment = request.aligned(model)
        with st.expander("Which positions stand for each other", icon=":material/compare_arrows:"):
            rows = [{name: visible(str(value)) for name, value in row.items()} for row in alignment.records()]
            st.dataframe(rows, hide_index=True)
        estimate, exact = st.columns(2)
        for button, method, words in ((estimate, "estimate", "Estimate"), (exact, "exact", "Patch each cell")):
            kind = "primary" if method == "estimate" else "secondary"
            if button.button(words, type=kind, key=f"positions {method}", width="stretch"):
                _begin(model, request, alignment, method)
                st.session_state["positions"] = request
    latest: PositionRequest | None = st.session_state.get("positions")
    if latest is None:
        return
    if latest != request:
        st.caption("The settings have changed; these are the grids of what was asked for last.")
    with st.container(), one_sentence():
        _results(model, latest)


def _ask(model: LanguageModel) -> PositionRequest:
    known = knows(model, CLEAN + RIGHT + WRONG)
    first = {"clean": CLEAN, "corrupted": CORRUPTED, "right": RIGHT, "wrong": WRONG}
    single = known and all(model.to_tokens(one, start=False).shape[1] == 1 for one in (RIGHT, WRONG))
    for name, text in first.items():
        usable = single if name in ("right", "wrong") else known
        st.session_state.setdefault(f"positions {name}", text if usable else "")
    one, other = st.columns(2)
    clean = one.text_input("Clean prompt", key="positions clean", persist_state="session")
    corrupted = other.text_input("Corrupted prompt", key="positions corrupted", persist_state="session")
    right, wrong, which, into = st.columns(4)
    answer = right.text_input(
        "Right answer",
        key="positions right",
        persist_state="session",
        help="One token, with the space in front of it; empty for the model's own likeliest.",
    )
    other_answer = wrong.text_input("Wrong answer", key="positions wrong", persist_state="session")
    component = which.selectbox(
        "Exchange", list(COMPONENTS), format_func=COMPONENTS.__getitem__, key="positions of", persist_state="session"
    )
    direction = into.selectbox(
        "Direction", list(INTO), format_func=INTO.__getitem__, key="positions into", persist_state="session"
    )
    spans = st.text_area(
        "Spans (where the prompts have unlike lengths)",
        key="positions spans",
        height=68,
        persist_state="session",
        placeholder="subject = Eiffel Tower | Big Ben",
    )
    return PositionRequest(
        st.session_state["source"],
        clean,
        corrupted,
        spans or "",
        answer or "",
        other_answer or "",
        component,
        direction,
        caching.as_placed(model),
    )


def _begin(model: LanguageModel, request: PositionRequest, alignment: Alignment, method: str) -> None:
    """Start the work, unless it goes on or has ended with a result."""
    going = caching.task(request.key(method))
    if going is not None and not going.failed and not going.stopping:
        return

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> PositionPatching:
        import workbench as wb

        act = wb.circuits.attribute_positions if method == "estimate" else wb.circuits.patch_positions
        how = {"into": request.into, "progress": tell, "cancel": cancelled}
        return act(model, alignment, request.component, **how)  # type: ignore[arg-type]

    caching.begin(request.key(method), "Patching" if method == "exact" else "Taking gradients", work, request)


def _results(model: LanguageModel, request: PositionRequest) -> None:
    """Draw the grids that are there, their correlation, and the open cell."""
    stopped = "Stopped before every cell was patched."
    tasks = [background.finished(request.key(one), stopped) for one in ("estimate", "exact")]
    grids = [None if one is None or one.stopping else one.result() for one in tasks]
    titles = ["Estimate by gradients", "Each cell patched"]
    drawn = [(title, grid) for title, grid in zip(titles, grids, strict=True) if grid is not None]
    if not drawn:
        return
    opened = None
    for column, (title, grid) in zip(st.columns(len(drawn)), drawn, strict=True):
        with column:
            st.markdown(f"**{title}**")
            event = st.plotly_chart(
                grid.figure(),
                theme=None,
                key=f"positions map {title}",
                on_select="rerun",
                selection_mode="points",
                config={"displayModeBar": False},
            )
            opened = _chosen(event) or opened
    grid = drawn[-1][1]
    st.caption(
        plain(
            f"Effects on log P(right) − log P(wrong), which is {grid.clean:.2f} nats behind the clean prompt and "
            f"{grid.corrupted:.2f} behind the corrupted one. Click a cell to open it."
        )
    )
    if grids[0] is not None and grids[1] is not None:
        st.caption(f"The estimate's correlation with the exact grid is {grids[1].correlation(grids[0]):.2f}.")
    cell.show(model, request, grid, opened)
    snippets.show(script.positions(request))


def _chosen(event: Any) -> tuple[int, int] | None:
    """The row and the place of the clicked cell."""
    points = event["selection"]["points"] if event else []
    return (int(points[0]["y"]), int(points[0]["x"])) if points else None
