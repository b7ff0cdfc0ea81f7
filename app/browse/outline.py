"""The empty table in place of the search results. It imports nothing of `workbench`, which takes long."""

import pandas as pd
import streamlit as st

ROWS = 10


def show() -> None:
    """Draw the table without rows, so that the browser loads what it needs to draw the results."""
    st.dataframe(
        pd.DataFrame({name: [""] * ROWS for name in ("Neuron", "Layer", "Top tokens", "Score")}),
        hide_index=True,
        height=35 * (ROWS + 1) + 3,
    )
