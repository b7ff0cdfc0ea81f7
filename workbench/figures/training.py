"""The figure of a training: loss, unexplained variance, active and dead latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.common import AGAINST, FAINT, FOR, dress

CURVES = {
    "loss": "loss",
    "fvu": "variance not explained (FVU)",
    "l0": "active latents per token (L0)",
    "dead": "dead latents",
}


def training_curves(history: Sequence[Mapping[str, float]], tokens: int | None = None) -> go.Figure:
    """Loss, unexplained variance, active and dead latents over the tokens of a training, in four panels.

    Args:
        history: lines as `train` logs them and `read_history` reads them.
        tokens: the end of the axis, such as the tokens of the whole training; the last line's if None.
    """
    figure = make_subplots(2, 2, subplot_titles=list(CURVES.values()), horizontal_spacing=0.09, vertical_spacing=0.2)
    for place, name in enumerate(CURVES):
        line = go.Scatter(
            x=[one["tokens"] for one in history],
            y=[one.get(name) for one in history],
            mode="lines" if len(history) > 1 else "markers",
            line={"color": AGAINST if name == "dead" else FOR, "width": 2},
            hovertemplate="%{x:,} tokens<br>%{y:.4g}<extra></extra>",
        )
        figure.add_trace(line, row=place // 2 + 1, col=place % 2 + 1)
    dress(figure)
    figure.update_layout(height=440, margin={"l": 50, "r": 20, "t": 30, "b": 40})
    figure.update_annotations(font={"size": 13, "color": FAINT})
    figure.update_xaxes(range=[0, tokens] if tokens else None, tickformat="~s", nticks=6)
    figure.update_yaxes(rangemode="tozero", nticks=5)
    figure.update_yaxes(tickformat=".0%", row=2, col=2)
    return figure
