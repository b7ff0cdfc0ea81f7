"""The findings of a comparison, each with its place, and the measures behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import streamlit as st
from shared import snippets

from differences.request import CHANGED, ComparisonRequest
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.differences import ModelDifferences


def show(request: ComparisonRequest, found: ModelDifferences) -> None:
    """Draw the findings, the figure, the passages, the answers, the tables and the script."""
    for note in found.notes:
        st.caption(plain(note))
    with st.container(border=True):
        if not found.findings:
            st.markdown("Nothing differs.")
        for one in found:
            link = f" [Open it](/?feature={quote(one.feature)})" if one.feature else ""
            st.markdown(f"- {plain(one.sentence)}{link}")
    if found.stream:
        st.subheader("Layer by layer", anchor=False)
        st.plotly_chart(found.figure(), theme=None, key="differences figure", config={"displayModeBar": False})
    _passages(found)
    _answers(found)
    _weights(found)
    snippets.show(_script(request))


def _passages(found: ModelDifferences) -> None:
    if found.texts is None or not found.texts.passages:
        return
    st.subheader("Where they part most", anchor=False)
    st.dataframe(
        [
            {
                "text": visible(one.before),
                "next": visible(one.token),
                "a expects": visible(one.likeliest[0]),
                "b expects": visible(one.likeliest[1]),
                "KL": f"{one.kl:.2f}",
            }
            for one in found.texts.passages
        ],
        hide_index=True,
    )


def _answers(found: ModelDifferences) -> None:
    for prompt, one, other in found.answers:
        st.subheader("Both answers", anchor=False)
        st.caption(plain(visible(prompt)))
        for column, title, text in zip(
            st.columns(2, border=True), ("This model", "The other"), (one, other), strict=True
        ):
            column.markdown(f"**{title}**")
            column.markdown(plain(text))


def _weights(found: ModelDifferences) -> None:
    if found.weights is None or not found.weights.tensors:
        return
    with st.expander("Weights", icon=":material/table:"):
        st.dataframe(
            [
                {
                    "tensor": one.name,
                    "change": f"{one.relative:.2g}",
                    "rank": "" if one.rank is None else f"{one.rank} of {one.full}",
                    "90% in": "" if one.directions is None else f"{one.directions} directions",
                }
                for one in found.weights.tensors[:200]
            ],
            hide_index=True,
        )
        for title, units in (("head", found.weights.heads), ("neuron", found.weights.neurons)):
            if units:
                st.dataframe([{title: one.name, "change": f"{one.relative:.2g}"} for one in units], hide_index=True)


def _script(request: ComparisonRequest) -> str:
    """The comparison as a script."""
    other = f"{request.other!r}"
    lines = snippets.opening(request.source)
    if request.kind == CHANGED:
        lines += "# the steps are those of the script on the page Surgery, which ends in `child`\n"
        other = "child"
    prompts = f", prompts=[{request.prompt!r}]" if request.prompt else ""
    return (
        lines
        + f"found = wb.differences.compare_models(\n    model, {other}, {request.corpus!r}, "
        + f"parts={list(request.parts)!r}, tokens={request.tokens}{prompts}\n)\n"
        + "for one in found:\n    print(one.sentence)\n"
    )
