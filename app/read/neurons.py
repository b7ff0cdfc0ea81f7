"""The neurons of an open cell's layer that add most to the answer; a chosen row opens a neuron's card."""

from __future__ import annotations

import caching
import pandas as pd
import streamlit as st
from shared import neuron_index
from shared.tokens import that_fit

from read import firing
from read.reading import Cell
from read.request import kept
from workbench import Feature
from workbench.core.text import plain, visible

SHOWN, ALL = 8, 10**9
"""Neurons of a layer that are listed, and more than a model has."""
WIDE = 330
"""Pixels of the column of tokens."""


def show(cell: Cell) -> list[Feature]:
    """Draw the table; returns its neurons, the largest share first, none where the layer has no neurons of its own."""
    import workbench as wb

    answer = plain(visible(cell.answer_text))
    st.markdown(f"**Neurons of layer {cell.layer} that add most to the logit of {answer}**")
    try:
        with st.spinner("Taking the MLPs apart …"):
            shares = _sum(cell).get(cell.layer, [])
    except wb.lens.LensError as error:
        st.caption(plain(str(error)))
        return []
    features = [Feature.parse(label) for label, _ in shares]
    remarks = [neuron_index.remark_on(cell.model, one) for one in features]
    readings = [caching.reading(cell.model, str(one)).promoted for one in features]
    frame = pd.DataFrame(
        {
            "neuron": [str(one) for one in features],
            "adds": [value for _, value in shares],
            "writes": [that_fit([visible(text) for text, _, _ in one], WIDE) for one in readings],
            "label": [("★ " if one.starred else "") + one.label if one else "" for one in remarks],
        }
    )
    key = f"neurons {cell.layer} {cell.position}"
    event = st.dataframe(
        frame,
        key=key,
        hide_index=True,
        column_order=[name for name in frame if name != "label" or any(frame[name])],
        column_config={
            "neuron": st.column_config.TextColumn("Neuron", width=160),
            "adds": st.column_config.NumberColumn("Adds", format="%+.3f", width=70, help="To the logit."),
            "writes": st.column_config.ListColumn(
                "Makes likelier", width=WIDE, help="Where its value is above 0; the opposite where it is below."
            ),
            "label": st.column_config.TextColumn("Label", width=180, help="The label that was written for it."),
        },
        on_select="rerun",
        selection_mode="single-cell",
        height=35 * (len(frame) + 1) + 3,
    )
    st.caption("A click on a row opens the neuron's card.")
    if event["selection"]["cells"]:
        firing.go(str(features[event["selection"]["cells"][0][0]]))
    return features


def _sum(cell: Cell) -> dict[int, list[tuple[str, float]]]:
    """The neurons with the largest shares of the answer's logit, with their shares, by layer."""
    import workbench as wb

    def make() -> dict[int, list[tuple[str, float]]]:
        whole = wb.lens.attribute_logit(
            cell.model,
            cell.prompt,
            cell.answer,
            position=cell.position,
            detail="neurons",
            top=ALL,
            interventions=cell.text.interventions,
        )
        found: dict[int, list[tuple[str, float]]] = {}
        for one in whole.largest:
            if one.kind == "neuron" and one.layer is not None and len(found.setdefault(one.layer, [])) < SHOWN:
                found[one.layer].append((one.label, one.value))
        return found

    return kept(("neurons", *cell.key, cell.position), make)
