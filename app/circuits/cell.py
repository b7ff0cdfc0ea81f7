"""An open cell of the grid of two prompts: the exchanged answer, and the layer's heads and latents there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from shared import dictionaries

from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from circuits.positions import PositionRequest
    from workbench.circuits import PositionPatching
    from workbench.model import LanguageModel

OPEN = "position cell"
"""Key of the session: the row and the place of the open cell."""
HEADS = 6
"""Heads and latents that are listed."""


def show(
    model: LanguageModel, request: PositionRequest, grid: PositionPatching, chosen: tuple[int, int] | None
) -> None:
    """Draw the chooser of a cell and what is in it; the first is the one with the largest effect."""
    row, place, _ = grid.largest(1)[0]
    if chosen is not None and (request, chosen) != st.session_state.get(OPEN):
        st.session_state[OPEN] = (request, chosen)
        st.session_state["position row"] = grid.rows[chosen[0]]
        st.session_state["position place"] = grid.places[chosen[1]]
    if st.session_state.get("position row") not in grid.rows:
        st.session_state["position row"] = row
    if st.session_state.get("position place") not in grid.places:
        st.session_state["position place"] = place
    one, other = st.columns(2)
    row = one.selectbox("Row", grid.rows, key="position row")
    place = other.selectbox("Place", grid.places, format_func=visible, key="position place")
    effect = float(grid.effects[grid.rows.index(row), grid.places.index(place)])
    with st.container(border=True):
        st.markdown(f"**{plain(row)}, {plain(visible(place))}**: {effect:+.3g} nats")
        _answers(model, request, row, place)
        _inside(model, request, grid.layers[grid.rows.index(row)], place)


def _answers(model: LanguageModel, request: PositionRequest, row: str, place: str) -> None:
    import workbench as wb

    opened = wb.circuits.open_cell(model, request.aligned(model), row, place, request.component, into=request.into)  # type: ignore[arg-type]
    titles = {"clean": "Clean prompt", "corrupted": "Corrupted prompt", "changed": "With this exchanged"}
    for column, (name, title) in zip(st.columns(3), titles.items(), strict=True):
        column.caption(title)
        column.dataframe(
            [{"token": visible(token), "share": f"{share:.1%}"} for token, share in getattr(opened, name)],
            hide_index=True,
        )


def _inside(model: LanguageModel, request: PositionRequest, layer: int, place: str) -> None:
    """The heads of a layer and the latents of dictionaries there, each exchanged alone at this place, on demand."""
    if not st.toggle("Heads and latents of this layer", key="position inside"):
        return
    import workbench as wb

    alignment = request.aligned(model)
    at = alignment.places.index(place)
    lists = []
    try:
        grid = wb.circuits.patch_positions(model, alignment, "heads", into=request.into, layers=[layer])  # type: ignore[arg-type]
        lists.append(("Head", grid))
    except wb.WorkbenchError as error:
        st.caption(plain(error))
    for known in dictionaries.fitting(model):
        dictionary = dictionaries.load(model, known)
        if not dictionary.reads.startswith(f"blocks.{layer}."):
            continue
        try:
            lists.append(
                ("Latent", wb.circuits.patch_positions(model, alignment, dictionary, into=request.into))  # type: ignore[arg-type]
            )
        except wb.WorkbenchError as error:
            st.caption(plain(error))
    for title, grid in lists:
        effects = grid.effects[:, at]
        order = effects.abs().argsort(descending=True)[:HEADS].tolist()
        st.dataframe(
            [{title: visible(grid.rows[one]), "effect in nats": f"{float(effects[one]):+.3g}"} for one in order],
            hide_index=True,
        )
