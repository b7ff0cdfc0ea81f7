"""The form of a new training."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import streamlit as st
from shared import corpora, snippets
from shared.waiting import one_sentence

from train import runs, script
from train.runs import TrainingRequest
from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.dictionaries import Trainable
    from workbench.dictionaries.settings import Field
    from workbench.model import LanguageModel

PLACES = {
    "residual stream after the layer": "blocks.{}.hook_resid_post",
    "what attention adds": "blocks.{}.hook_attn_out",
    "what the MLP adds": "blocks.{}.hook_mlp_out",
    "MLP neurons": "blocks.{}.mlp.hook_post",
    "attention heads": "blocks.{}.attn.hook_z",
}
MLP = ("blocks.{}.mlp.hook_in", "blocks.{}.hook_mlp_out")
"""The hook points that a transcoder reads and writes: the MLP's input, and what it adds to the stream."""


def show(model: LanguageModel) -> None:
    """Draw the widgets, the start button, and the training as a script."""
    kinds = runs.kinds()
    left, right = st.columns([2, 3])
    word = left.selectbox(
        "Kind",
        list(kinds),
        key="kind to train",
        format_func=lambda word: kinds[word].__name__,
        persist_state="session",
    )
    right.space("small")
    right.caption(_explained(kinds[word]))
    reads, writes = _where(model, word)
    settings = _settings(kinds[word])
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        corpus = corpora.choose("training corpus")
        tokens = st.number_input(
            "Tokens",
            1000,
            None,
            1_000_000,
            100_000,
            key="training tokens",
            persist_state="session",
            help="How many activations to train on. A million is a start; the texts are read again if they end.",
        )
        rate = st.number_input(
            "Learning rate", 1e-6, 1.0, 1e-3, 1e-4, "%g", key="training rate", persist_state="session"
        )
        batch = st.number_input(
            "Batch", 16, None, 4096, 16, key="training batch", persist_state="session", help="Activations per step."
        )
    suggested = f"{word.replace('_', '-')}-{re.sub(r'[^0-9]', '', reads.split('.')[1]) or '0'}"
    name_box, button = st.columns([5, 1.4], vertical_alignment="bottom")
    name = name_box.text_input(
        "Name",
        key="training name",
        placeholder=suggested,
        persist_state="session",
        help=f"The dictionary is saved in the folder {plain(runs.runs_folder())}/NAME, which names its features.",
    )
    request = TrainingRequest(
        (name or suggested).strip(), word, reads, writes, corpus, int(tokens), settings, rate, int(batch)
    )
    busy = runs.current()
    if button.button(
        "Train",
        type="primary",
        icon=":material/play_arrow:",
        width="stretch",
        key="begin training",
        disabled=busy is not None,
        help=f"{plain(busy.name)} is being trained; one training goes on at a time." if busy else None,
    ):
        with one_sentence():
            runs.begin(model, request)
            st.session_state["run to show"] = request.name
            st.rerun()
    snippets.show(script.training(st.session_state["source"], model, request))


def _explained(kind: type) -> str:
    first = (kind.__doc__ or "").strip().split("\n")[0]
    base = kind.__mro__[1]
    if first.startswith(f"`{base.__name__}`") and base.__doc__:
        return f"{base.__doc__.strip().splitlines()[0].rstrip('.')}, {first.split('`')[2].strip()}"
    return first


def _where(model: LanguageModel, word: str) -> tuple[str, str]:
    """Draw the choosers of place and layer; returns the hook points that the dictionary reads and writes."""
    last = model.network.n_layers - 1
    left, right = st.columns([2, 3])
    layer = int(right.slider("Layer", 0, last, last // 2, key="training layer", persist_state="session") if last else 0)
    if runs.kinds()[word].transcodes:
        reads, writes = (name.format(layer) for name in MLP)
        left.selectbox("Of", ["the MLP: from its input to its output"], disabled=True, key="training place of MLP")
        left.caption(plain(f"{reads} → {writes}"))
        return reads, writes
    offered = {name: text for name, text in PLACES.items() if text.format(layer) in model.hook_points}
    if st.session_state.get("training place") not in offered:
        st.session_state.pop("training place", None)
    place = left.selectbox("Of", list(offered), key="training place", persist_state="session")
    reads = offered[place].format(layer)
    left.caption(plain(f"{reads}, {model.hook_points[reads].width:,} wide"))
    return reads, reads


def _settings(kind: type[Trainable]) -> dict[str, float]:
    """Draw the settings that the kind declares; returns them by parameter."""
    settings: dict[str, float] = {}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        for one in kind.fields():
            if one.name != "d_out":  # the hook point that is written sets it
                settings[one.name] = _number(one, f"training {kind.kind} {one.name}")
    return settings


def _number(one: Field, key: str) -> float:
    """Draw the box of a setting; it starts with the allowed value that is nearest to the default."""
    form = int if one.whole else float
    least = None if one.least is None else form(math.ceil(one.least) if one.whole else one.least)
    most = None if one.most is None else form(one.most)
    first = form(one.default)
    first = first if least is None else max(first, least)
    first = first if most is None else min(first, most)
    return st.number_input(
        one.title,
        least,
        most,
        first,
        format=None if one.whole else "%g",
        key=key,
        persist_state="session",
        help=one.help or None,
    )
