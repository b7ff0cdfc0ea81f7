"""Attribution: the graph of features behind one prediction, and its check by intervention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import session
from shared.dictionaries import Known, several
from shared.waiting import one_sentence

from attribution import panel, published
from attribution.request import AttributionRequest, transcoders
from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.model import LanguageModel

PROMPT = "The capital of France is the beautiful city of"
MLPS = {"linear": "respond linearly", "frozen": "stay as they are"}


def show() -> None:
    """Draw the settings and the graph that was traced last."""
    model, linked = session.current_model(), st.session_state.pop("attribute now", False)
    offered = transcoders(model)
    if not offered:
        st.info(
            "There is no transcoder for this model yet. Train one on the page Train, from an MLP's input to its "
            "output.",
            icon=":material/info:",
        )
        published.show()
        return
    request, wanted = _ask(model, offered)
    if wanted or linked:
        with one_sentence():
            panel.begin(model, request)
            st.session_state["attributed"] = request
    traced = st.session_state.get("attributed")
    if not request.names:
        st.caption("Choose at least one transcoder.")
    if traced is not None:
        if traced != request:
            st.caption(plain(f"The settings have changed; this is the graph of: {traced.prompt}"))
        with one_sentence():
            panel.show(model, traced)
    published.show()


def _ask(model: LanguageModel, offered: dict[str, Known]) -> tuple[AttributionRequest, bool]:
    """The widgets' request, and whether the button was pressed."""
    st.session_state.setdefault("attributed prompt", PROMPT)
    prompt = st.text_area("Prompt", key="attributed prompt", height=80, persist_state="session")
    target, other, count, way = st.columns([2, 2, 1.4, 1.8])
    token = target.text_input(
        "Token to explain",
        key="attributed token",
        placeholder="the likeliest one",
        persist_state="session",
        help="One token, usually with its leading space, as in ␣Paris. Empty: the likeliest next token.",
    )
    less = other.text_input(
        "Rather than",
        key="other token",
        placeholder="all others",
        persist_state="session",
        help="Explain the difference of the two tokens' logits. Empty: the logit less the mean over all tokens.",
    )
    latents = count.number_input(
        "Latents to trace", 0, 5000, 256, 64, key="attributed latents", persist_state="session", help="At most."
    )
    mlps = way.selectbox(
        "MLPs without a transcoder",
        list(MLPS),
        format_func=MLPS.__getitem__,
        key="attributed mlps",
        persist_state="session",
        help="Whether a latent's effect on the target through later MLPs without a transcoder counts as its own.",
    )
    names, wanted = _choose(offered)
    request = AttributionRequest(
        st.session_state["source"],
        tuple(names),
        tuple(offered[name].folder for name in names),
        prompt,
        token,
        less,
        int(latents),
        mlps,
        repr([caching.as_placed(model), *(offered[name].stamp for name in names)]),
    )
    return request, wanted


def _choose(offered: dict[str, Known]) -> tuple[list[str], bool]:
    """The names of the chosen transcoders, at first one for each layer, and whether the button was pressed."""
    by_layer = {_layer(one): name for name, one in reversed(offered.items()) if not one.family.across}
    kept = [name for name in st.session_state.get("attributed with", []) if name in offered]
    first = list(reversed(by_layer.values())) or list(offered)[:1]  # a cross-layer transcoder stands for every layer
    st.session_state["attributed with"] = kept or [name for name in offered if name in first]
    which, button = st.columns([6, 1.4], vertical_alignment="bottom")
    names = which.multiselect(
        "Transcoders",
        list(offered),
        format_func=lambda name: f"{offered[name].title} · {several(offered[name].writes)}",
        key="attributed with",
        persist_state="session",
    )
    wanted = button.button(
        "Attribute", type="primary", icon=":material/hub:", width="stretch", key="attribute", disabled=not names
    )
    return names, wanted


def _layer(one: Known) -> str:
    """The layer whose MLP output a transcoder writes."""
    return one.writes.split(".")[1]


if __name__ == "__main__":
    show()
