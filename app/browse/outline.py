"""What a page shows where its table will be. It imports nothing of the model's, which takes long."""

import pandas as pd
import streamlit as st

ROWS = 10


def show() -> None:
    """The results' table without results, so that a browser has all it needs to draw it when they come."""
    st.dataframe(
        pd.DataFrame({name: [""] * ROWS for name in ("Neuron", "Layer", "Top tokens", "Score")}),
        hide_index=True,
        height=35 * (ROWS + 1) + 3,
    )
