"""What the heads and the MLP of a layer add to the answer, what heads attend to, and the card of a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import caching
import pandas as pd
import streamlit as st
from shared.tokens import show_strengths, that_fit

from read.reading import Cell
from read.request import kept
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.lens import HeadScores, LogitAttribution
    from workbench.model import LanguageModel

OPEN = "open head"
"""Key of the session: the head whose card is drawn."""
LONGEST, DRAWN = 1024, 128
"""Tokens of a text whose patterns are read, and of a pattern that is drawn whole."""
LOOKS, WIDE = 3, 270
"""Tokens that are named for each head, and the pixels of their column."""
SCORES = {
    "previous": ("Previous token", "The mean probability at the token before, on random tokens."),
    "duplicate": ("Duplicate token", "At the earlier occurrence of the same token, where random tokens repeat."),
    "first": ("First token", "The mean probability at the first position: a head that rests there."),
    "induction": ("Induction", "At the token after that occurrence: what followed the last time."),
}


def table(cell: Cell) -> list[str]:
    """Draw the layer's share of the answer's logit by part, and what each head attends to.

    Returns:
        The labels of the parts, the largest share first.
    """
    layer, position = cell.layer, cell.position
    st.markdown(f"**What layer {layer} adds to the logit of {plain(visible(cell.answer_text))}**")
    with st.spinner("Taking the logit apart …"):
        shares = [one for one in _sum(cell).shares if one.layer == layer]
    rest = max((abs(one.value) for one in shares), default=0.0) / 1000
    shares = [one for one in shares if one.kind != "rest" or abs(one.value) > rest]
    looks, trouble = _looks(cell)
    shares.sort(key=lambda one: -abs(one.value))
    frame = pd.DataFrame(
        {
            "part": [one.label for one in shares],
            "adds": [one.value for one in shares],
            "looks": [that_fit(looks.get(one.label, []), WIDE) for one in shares],
        }
    )
    st.dataframe(
        frame,
        key=f"parts {layer} {position}",
        hide_index=True,
        column_order=[name for name in frame if name != "looks" or looks],
        column_config={
            "part": st.column_config.TextColumn("Part", width=85),
            "adds": st.column_config.NumberColumn(
                "Adds", format="%+.3f", width=65, help="To the logit; all sum to it."
            ),
            "looks": st.column_config.ListColumn("Looks at", width=WIDE, help="The tokens with the most attention."),
        },
        on_select=lambda: _picked([one.label for one in shares], f"parts {layer} {position}"),
        selection_mode="single-cell",
        height=35 * (len(frame) + 1) + 3,
    )
    st.caption(plain(trouble or "The final norm stays as it is here. A click on a head opens its card."))
    return [one.label for one in shares]


def _sum(cell: Cell) -> LogitAttribution:
    """The answer's logit as a sum over heads; over whole attentions where heads can't be told apart."""
    import workbench as wb

    def make() -> LogitAttribution:
        model, prompt, answer = cell.model, cell.prompt, cell.answer
        how: dict[str, Any] = {"position": cell.position, "interventions": cell.text.interventions}
        try:
            return wb.lens.attribute_logit(model, prompt, answer, detail="heads", **how)
        except wb.lens.LensError:
            return wb.lens.attribute_logit(model, prompt, answer, **how)

    return kept(("sum", *cell.key, cell.position), make)


def _looks(cell: Cell) -> tuple[dict[str, list[str]], str]:
    """For each head of a layer the tokens that it attends to at a position, in words; and why there are none."""
    import workbench as wb

    reading, layer, position = cell.reading, cell.layer, cell.position
    if len(reading.prompt) > LONGEST:
        return {}, f"What heads look at is read on texts of up to {LONGEST:,} tokens; this one has more."
    try:
        rows = _patterns(cell)[:, position]
    except wb.lens.LensError as error:
        return {}, str(error)
    best = rows.topk(min(LOOKS, position + 1), -1)
    return {
        f"head {layer}.{head}": [
            f"{visible(reading.prompt[key])} {share:.0%}" for key, share in zip(keys, shares, strict=True)
        ]
        for head, (keys, shares) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    }, ""


def _patterns(cell: Cell, weighted: str = "pattern") -> Tensor:
    """The patterns of a layer's heads, `[head, query, key]`."""
    import workbench as wb

    def make() -> Tensor:
        how: dict[str, Any] = {"weighted": weighted, "interventions": cell.text.interventions}
        found = wb.lens.read_attention(cell.model, cell.prompt, layers=[cell.layer], **how)
        return found.patterns[0].float().cpu()

    return kept(("attention", *cell.key, cell.layer, weighted), make)


def _picked(labels: list[str], key: str) -> None:
    """Open the card of the head whose row was chosen; another row closes the open one."""
    cells = st.session_state[key]["selection"]["cells"]
    label = labels[cells[0][0]] if cells else ""
    st.session_state[OPEN] = int(label.rpartition(".")[2]) if label.startswith("head ") else None


def card(cell: Cell) -> None:
    """Draw the chooser of a head of the layer, and the card of the chosen one: its scores and its pattern."""
    model, reading, layer = cell.model, cell.reading, cell.layer
    if len(reading.prompt) > LONGEST or f"blocks.{layer}.attn.hook_pattern" not in model.hook_points:
        return
    heads = model.hook_points[f"blocks.{layer}.attn.hook_z"].shape[0]
    if st.session_state.get(OPEN) not in range(heads):
        st.session_state[OPEN] = None
    which, how = st.columns([1.4, 5], vertical_alignment="bottom")
    head = which.selectbox(
        "Card of head",
        [None, *range(heads)],
        format_func=lambda one: "none" if one is None else f"{layer}.{one}",
        key=OPEN,
        placeholder="none",
    )
    if head is None:
        return
    weighted = how.toggle(
        "Weigh by what is written",
        key="read written",
        persist_state="session",
        help="In place of the probability: the norm of what the head adds to the stream for each token.",
    )
    with st.container(border=True, key="head"):
        name = f"{layer}.{head}"
        st.markdown(f"**Head {plain(name)}**")
        _scores(model, layer, head)
        pattern = _patterns(cell, "written" if weighted else "pattern")[head]
        row = pattern[cell.position].tolist()
        number = "{:.3g}" if weighted else "{:.1%}"
        st.caption(plain(f"From {visible(cell.token)} ({cell.position}) it looks at:"))
        show_strengths(reading.prompt, row, [number.format(value) for value in row])
        if len(reading.prompt) <= DRAWN:
            from workbench.figures.reading import attention_map

            st.plotly_chart(
                attention_map(reading.prompt, pattern.tolist(), written=weighted),
                theme=None,
                key="head pattern",
                config={"displayModeBar": False},
            )


def _scores(model: LanguageModel, layer: int, head: int) -> None:
    """Draw what the head does on repeated random tokens."""
    import workbench as wb
    from workbench.lens.attention import longest_repeat

    def make() -> HeadScores:
        return wb.lens.score_heads(model, length=longest_repeat(model))

    try:
        with st.spinner("Scoring all heads on random tokens …"):
            scores = kept(("scores", caching.as_placed(model)), make)
    except wb.lens.LensError as error:
        st.caption(plain(error))
        return
    with st.container(horizontal=True, gap="medium"):
        for name, (title, about) in SCORES.items():
            value = float(getattr(scores, name)[layer, head])
            st.metric(title, f"{value:.0%}", width="content", help=about)
