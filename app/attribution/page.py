"""Attribution: the graph of features behind one prediction, and whether it tells the truth."""

import streamlit as st
from attribution import panel
from attribution.asked import Asked, transcoders
from shared import session
from shared.tokens import plain
from shared.waiting import one_sentence

PROMPT = "The capital of France is the beautiful city of"
MLPS = {"linear": "respond linearly", "frozen": "stay as they are"}

model = session.current_model()
offered = transcoders(model)
if not offered:
    st.info(
        "There is no transcoder for this model yet. Train one on the page Train, from an MLP's input to its output.",
        icon=":material/info:",
    )
    st.stop()
by_layer = {one.writes: name for name, one in reversed(offered.items())}
kept = [name for name in st.session_state.get("attributed with", []) if name in offered]
st.session_state["attributed with"] = kept or [name for name in offered if by_layer[offered[name].writes] == name]
st.session_state.setdefault("attributed prompt", PROMPT)
prompt = st.text_area("Prompt", key="attributed prompt", height=80, persist_state="session")
token, other, count, way = st.columns([2, 2, 1.4, 1.8])
explained = token.text_input(
    "Token to explain",
    key="attributed token",
    placeholder="the likeliest one",
    persist_state="session",
    help="One token, most often with a space in front, as ␣Paris is; the likeliest next one if left empty. Put the "
    "space in yourself.",
)
less = other.text_input(
    "Rather than",
    key="other token",
    placeholder="all others",
    persist_state="session",
    help="Explain the difference of the two tokens' logits; if left empty, the logit less the mean over all tokens.",
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
    help="Whether what a latent adds to the target through later MLPs without a transcoder counts as its own.",
)
which, button = st.columns([6, 1.4], vertical_alignment="bottom")
names = which.multiselect(
    "Transcoders",
    list(offered),
    format_func=lambda name: f"{offered[name].title} · {offered[name].writes}",
    key="attributed with",
    persist_state="session",
)
asked = Asked(
    st.session_state["source"],
    tuple(names),
    tuple(offered[name].folder for name in names),
    prompt,
    explained,
    less,
    int(latents),
    mlps,
    repr([model.hash, *(offered[name].stamp for name in names)]),
)
if button.button(
    "Attribute", type="primary", icon=":material/hub:", width="stretch", key="attribute", disabled=not names
):
    with one_sentence():
        panel.begin(model, asked)
        st.session_state["attributed"] = asked
shown = st.session_state.get("attributed")
if not names:
    st.caption("Choose at least one transcoder.")
if shown is not None:
    if shown != asked:
        st.caption(plain(f"The settings have changed; this is the graph of: {shown.prompt}"))
    with one_sentence():
        panel.show(model, shown)
