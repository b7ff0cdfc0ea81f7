"""The figure of fidelity: dictionaries side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.common import AGAINST, FAINT, FOR, dress, short_label

MEASURES = {
    "loss_recovered": "loss recovered",
    "fvu": "variance not explained (FVU)",
    "cosine": "cosine",
    "kl": "KL from the plain model (nats)",
    "ce_spliced": "cross-entropy through it (nats)",
    "l0": "active latents per token (L0)",
}


class Measured(Protocol):
    """A dictionary's measures and their confidence intervals: a `Fidelity`."""

    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]: ...


def fidelity_comparison(names: Sequence[str], results: Sequence[Measured]) -> go.Figure:
    """The fidelity of dictionaries side by side: a panel for each measure, with 95% confidence intervals.

    Args:
        names: of the dictionaries.
        results: from `measure_fidelities`, in the same order.
    """
    figure = make_subplots(2, 3, subplot_titles=list(MEASURES.values()), horizontal_spacing=0.09, vertical_spacing=0.24)
    for place, measure in enumerate(MEASURES):
        values = [getattr(one, measure) for one in results]
        ends = [one.intervals[measure] for one in results]
        points = go.Scatter(
            x=list(range(len(names))),
            y=values,
            mode="markers",
            marker={"size": 11, "color": [(FOR, AGAINST, FAINT)[number % 3] for number in range(len(names))]},
            error_y={
                "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
                "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
                "color": FAINT,
                "thickness": 1.6,
                "width": 6,
            },
            customdata=[[short_label(name), *span] for name, span in zip(names, ends, strict=True)],
            hovertemplate="%{customdata[0]}<br>%{y:.4g} (%{customdata[1]:.4g} to %{customdata[2]:.4g})<extra></extra>",
        )
        figure.add_trace(points, row=place // 3 + 1, col=place % 3 + 1)
    dress(figure)
    figure.update_layout(height=460, margin={"l": 50, "r": 20, "t": 30, "b": 30})
    figure.update_annotations(font={"size": 13, "color": FAINT})
    ticks = {"tickvals": list(range(len(names))), "ticktext": [short_label(name) for name in names]}
    figure.update_xaxes(range=[-0.6, len(names) - 0.4], showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(nticks=5)
    return figure
