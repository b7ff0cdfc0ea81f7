"""Directions: a concept from examples, where it separates, and what it does when the model writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import session, snippets
from shared.waiting import begin_again, one_sentence, wait_for

import workbench as wb
from directions import examples, keeping, trying
from directions.examples import DirectionRequest
from workbench.figures.directions import separation_by_layer

if TYPE_CHECKING:
    from workbench.directions import Direction
    from workbench.model import LanguageModel

REQUEST = "direction request"
LAYER = "direction layer"
WHAT = "Reading the examples"


def show() -> None:
    """Draw the examples, and what was found in them last."""
    model = session.current_model()
    request, wanted = examples.ask(session.source())
    if request is not None and wanted:
        st.session_state[REQUEST] = request
        st.session_state.pop(LAYER, None)
        begin_again(WHAT)
    found: DirectionRequest | None = st.session_state.get(REQUEST)
    if found is None:
        st.caption("Press Find: every third text of each side is held out to test what is found in the others.")
        return
    if request is not None and found != request:
        st.caption(":material/info: The examples have changed since; press Find to read them again.")
    with one_sentence():
        _show(model, found)


def _show(model: LanguageModel, request: DirectionRequest) -> None:
    """Draw the separation by layer, and the chosen layer's direction."""

    def work(tell: caching.Callable) -> Mapping[str, Direction]:
        how = {"method": request.method, "position": request.position}
        return wb.directions.find_directions(model, request.positives, request.negatives, **how, progress=tell)

    found = wait_for(lambda: caching.lens_reading(request.key(model), work), WHAT)
    st.subheader("Where they differ", anchor=False)
    st.caption(
        "The share of pairs of held-out texts that the projection puts in the right order, with 95% intervals. Half is "
        "chance; where several layers separate equally well, those in the middle steer best."
    )
    separation = {name: one.separation[name] for name, one in found.items()}
    figure = separation_by_layer(list(separation.values()))
    st.plotly_chart(figure, theme=None, key="separation", config={"displayModeBar": False})
    names = list(found)
    if st.session_state.get(LAYER) not in names:
        st.session_state[LAYER] = _first_choice(separation)
    name = st.selectbox(
        "Layer, and its share in the right order",
        names,
        key=LAYER,
        format_func=lambda name: _said(name, separation),
    )
    direction = found[name]
    st.caption(
        f"Natural strength {separation[name].strength:.3g}: the distance of the two sides' means along the direction."
    )
    edit = trying.show(model, direction)
    keeping.show(model, direction, edit)
    snippets.show(
        request.code() + f"direction = found[{name!r}]\n"
        f"edits = [wb.Steer.along(direction, {edit.amount:.6g})]\n"
        + "print(model.generate("
        + repr(trying.prompt())
        + ", 40, interventions=edits).text)\n"
    )


def _first_choice(separation: Mapping[str, wb.directions.Separation]) -> str:
    """Of the layers that separate best the one nearest to the middle, where directions steer best."""
    names, most = list(separation), max(one.folds for one in separation.values())
    equal = [place for place, name in enumerate(names) if separation[name].folds >= most - 1e-9]
    return names[min(equal, key=lambda place: abs(place - len(names) // 2))]


def _said(name: str, separation: Mapping[str, wb.directions.Separation]) -> str:
    one = separation[name]
    return f"{name}: {one.auc:.2f}"


if __name__ == "__main__":
    show()
