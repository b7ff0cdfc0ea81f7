"""An open cell: what the layer expects there, what it adds to the answer, and which features are active."""

from __future__ import annotations

import streamlit as st
from shared import dictionaries, pages
from shared.waiting import one_sentence

from read import firing, heads, neurons, removal
from read.grid import POSITION, ROW
from read.reading import Cell
from workbench import Feature, figures
from workbench.core.text import plain, visible

Rows = list[tuple[int, str, Feature, float]]


def show(cell: Cell) -> None:
    """Draw an open cell."""
    st.subheader("What is there", anchor=False)
    with st.container(border=True, key="cell"):
        _choosers(cell)
        _answer(cell)
        left, right = st.columns(2, gap="large")
        with left:
            _words(cell)
        largest: list[str] = []
        with right, one_sentence():
            largest = heads.table(cell)
        with one_sentence():
            heads.card(cell)
        active: Rows = []
        with one_sentence():
            active = _features(cell)
        writing: list[Feature] = []
        with one_sentence():
            writing = neurons.show(cell)
        with one_sentence():
            removal.show(cell, [*(feature for _, _, feature, _ in active), *writing], largest)


def _choosers(cell: Cell) -> None:
    """Draw the choosers of the cell, which a click on the grid sets."""
    reading = cell.reading
    which, where, _ = st.columns([1.2, 2.5, 4])
    name = "Head" if cell.lens.at == "heads" else "Layer"
    which.selectbox(name, reading.labels[::-1], key=ROW, persist_state="session")
    where.selectbox(
        "After the token",
        range(len(reading.prompt)),
        format_func=lambda place: f"{place}  {visible(reading.prompt[place])}",
        key=POSITION,
        persist_state="session",
    )


def _answer(cell: Cell) -> None:
    """Draw the model's own answer at the position, and the button that traces it."""
    reading, place, doubt = cell.reading, cell.position, cell.reading.doubt
    words = f"The model's answer here: **{plain(visible(cell.answer_text))}**, {reading.sure[place]:.1%}"
    if cell.lens.whole and doubt is not None:
        words += f"; it stands from layer {int(doubt.settled[place])} on"
    if place + 1 < len(reading.prompt):
        words += f". The text goes on with **{plain(visible(reading.prompt[place + 1]))}**"
        if doubt is not None:
            words += f", a surprise of {float(doubt.surprise[place + 1]):.2f} nats"
    line, button = st.columns([5, 2], vertical_alignment="center")
    line.markdown(f"{words}.")
    prefix = _prefix(cell)
    about = "The graph of features behind it, on the page Attribution" + (
        ", without the edits." if cell.text.interventions else "."
    )
    clicked = button.button(
        "Trace this answer",
        icon=":material/hub:",
        key="trace answer",
        width="stretch",
        disabled=prefix is None,
        help=about if prefix is not None else "The text up to here can't be typed, so it can't be traced.",
    )
    if clicked and prefix is not None:
        alone = cell.model.to_tokens(cell.answer_text, start=False)[0].tolist() if cell.answer_text else []
        st.session_state["attributed prompt"] = prefix
        st.session_state["attributed token"] = cell.answer_text if alone == [cell.answer] else ""
        st.session_state["other token"] = ""
        st.session_state["attribute now"] = True
        st.switch_page(pages.script("attribution"))


def _prefix(cell: Cell) -> str | None:
    """The text up to the position as a prompt that gives the same tokens; None without one."""
    ids = cell.reading.ids[: cell.position + 1]
    whole = [str(cell.prompt)] if len(ids) == len(cell.reading.ids) else []
    for one in (*whole, cell.model.to_text(ids), "".join(cell.reading.prompt[: len(ids)])):
        if one and cell.model.to_tokens(one)[0].tolist() == ids:
            return one
    return None


def _words(cell: Cell) -> None:
    """Draw the tokens that the row expects at the position."""
    reading, row, position = cell.reading, cell.row, cell.position
    st.markdown(f"**What {'head' if cell.lens.at == 'heads' else 'layer'} {plain(reading.labels[row])} expects**")
    ids, shares = reading.tops[row, position].tolist(), reading.probabilities[row, position].tolist()
    figure = figures.token_bars([reading.words[id] for id in ids], shares)
    st.plotly_chart(figure, theme=None, key="cell words", config={"displayModeBar": False})
    entropy, kl = float(reading.entropy[row, position]), max(0.0, float(reading.kl[row, position]))
    st.caption(
        f"Bars are probabilities. Entropy {entropy:.2f} nats; {kl:.2f} nats from the model's own prediction (KL)."
    )


def _features(cell: Cell) -> Rows:
    """Draw the features of every dictionary at the layer that are active on the token; returns them."""
    model, reading, layer, position = cell.model, cell.reading, cell.layer, cell.position
    st.markdown(f"**Features active on {plain(visible(cell.token))} at layer {layer}**")
    known = {one.name: one for one in dictionaries.fitting(model)}
    if not known:
        st.caption("There is no dictionary for this model yet. Train one on the page Train.")
        return []
    by_layer: dict[int, list[str]] = {}
    for name, one in known.items():
        for point in {int(words[1]) for words in (point.split(".") for point in one.points) if words[0] == "blocks"}:
            by_layer.setdefault(point, []).append(name)
    if layer not in by_layer:
        others = ", ".join(map(str, sorted(by_layer)))
        st.caption(plain(f"No dictionary reads or writes at this layer; there are some at layers {others or 'none'}."))
        return []
    with st.spinner("Reading the features …"):
        tokens = firing.fired(model, cell.text, [known[name] for name in by_layer[layer]], firing.FEATURES)
    front = len(reading.ids) - len(tokens)
    if front < 0 or [one.token for one in tokens] != reading.ids[front:]:
        st.caption("Dictionaries read this text in other tokens, so none of them belongs to this place.")
        return []
    if position < front:
        st.caption("Dictionaries don't read what the tokenizer puts in front of a text.")
        return []
    one = tokens[position - front]
    rows = [(position, one.text, feature, value) for feature, value in zip(one.features, one.values, strict=True)]
    st.session_state["names"] = {}
    firing.table(model, rows, known, f"cell features {layer} {position}")
    return rows
