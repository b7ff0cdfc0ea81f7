"""Supernodes of a graph on the page: grouped, tested as one, renamed, merged and split by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st
from shared.waiting import one_sentence

from attribution.request import AttributionRequest, load
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.attribution import Graph, Supernodes
    from workbench.model import LanguageModel

GROUPS, TESTED = "attribution groups", "tested groups"
"""In the session: the groups and whose graph they are of, and their test."""
TROUBLE = "trouble with groups"
MOST = 40


def of(request: AttributionRequest) -> Supernodes | None:
    """The groups of a request's graph, if it was grouped."""
    key, groups = st.session_state.get(GROUPS, (None, None))
    return groups if key == request.key else None


def show(model: LanguageModel, request: AttributionRequest, whole: Graph, words: dict[int, str]) -> None:
    """Draw the button that groups latents, and the groups with their tests."""
    from workbench.attribution import group_nodes, verify_groups

    with st.expander("Supernodes: latents that are alike, tested as one"), one_sentence():
        groups = of(request)
        if st.button("Group the latents" if groups is None else "Group them anew", key="group latents"):
            with st.spinner("Grouping …"):
                groups = group_nodes(model, load(model, request), whole, words, most=MOST)
            _keep(request, groups)
        if groups is None:
            st.caption(f"Joins the {MOST} latents with the largest effects by label, direction and edges.")
            return
        if complaint := st.session_state.pop(TROUBLE, ""):
            st.error(plain(complaint), icon=":material/error:")
        if st.button("Ablate each group as one", key="test groups"):
            with st.spinner("Running the model …"):
                st.session_state[TESTED] = groups, verify_groups(model, load(model, request), whole, groups)
        _table(whole, groups)
        _edit(request, whole, groups)


def _keep(request: AttributionRequest, groups: Supernodes) -> None:
    st.session_state[GROUPS] = request.key, groups


def _table(whole: Graph, groups: Supernodes) -> None:
    rows = [
        {
            "group": name,
            "latents": [
                f"{whole.node(id).label} {visible(whole.prompt[whole.node(id).position])}" for id in groups.groups[name]
            ],
        }
        for name in groups.groups
    ]
    tested, found = st.session_state.get(TESTED, (None, None))
    if tested == groups and found is not None:
        numbers = {row["name"]: row for row in found.records()}
        for row in rows:
            row |= {name: numbers[row["group"]][name] for name in ("predicted", "measured", "as_much")}
        st.caption(f"Predicted and measured changes of the target correlate with r = {found.pearson:.2f}.")
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        key="groups",
        column_config={
            "group": st.column_config.TextColumn("Group"),
            "latents": st.column_config.ListColumn("Latents", help="Each with the token it is on."),
            "predicted": st.column_config.NumberColumn("Predicted", format="%.3g"),
            "measured": st.column_config.NumberColumn("Measured", format="%.3g", help="In the model, without them."),
            "as_much": st.column_config.NumberColumn(
                "Random as much",
                format="%.2f",
                help="Share of random groups of as many latents that change the target as much.",
            ),
        },
    )


def _edit(request: AttributionRequest, whole: Graph, groups: Supernodes) -> None:
    """Draw what renames, merges and splits groups."""
    with st.popover("Rename, merge or split", icon=":material/edit:"):
        chosen = st.multiselect("Groups", list(groups.groups), format_func=plain, key="edited groups")
        new = st.text_input("New name", key="new group", max_chars=200)
        members = groups.groups[chosen[0]] if len(chosen) == 1 else []
        part = st.multiselect(
            "Nodes to split off", members, format_func=lambda id: plain(whole.node(id).label), key="split nodes"
        )
        one = chosen[0] if chosen else ""
        for title, ready, change in (
            ("Rename", len(chosen) == 1, lambda: groups.rename(one, new)),
            ("Merge", len(chosen) > 1, lambda: groups.merge(chosen, new)),
            ("Split", bool(part), lambda: groups.split(one, part, new)),
        ):
            st.button(title, key=f"{title} groups", disabled=not ready, on_click=_changed, args=(request, change))


def _changed(request: AttributionRequest, change: Callable[[], Any]) -> None:
    try:
        _keep(request, change())
    except ValueError as error:
        st.session_state[TROUBLE] = str(error)
