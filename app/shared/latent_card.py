"""The card of a dictionary's latent: its examples, the tokens it promotes, and the latents most similar to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import streamlit as st
from shared import dictionaries, pages, remarks, session, snippets
from shared.dictionaries import Known
from shared.tokens import show_examples

from workbench import Feature, figures
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.index import FeatureCard, FeatureIndex
    from workbench.model import LanguageModel

SHOWN, MORE = 8, 20
"""The numbers of examples shown at first, and at most."""


def show(model: LanguageModel, text: str) -> None:
    """Draw the card of a latent, given its feature id; raises an error of the package if there is none."""
    feature = dictionaries.feature(model, text)
    one = dictionaries.called(model, feature.dictionary)
    index = dictionaries.usable_index(model, one)
    with st.container(border=True, key="card"):
        card = index.feature(feature.index) if index else None
        _head(feature, one, card)
        if index is None or card is None:
            st.caption("Its examples, tokens and neighbours show here once the dictionary has an index.")
            return
        remarks.show(one, index, feature.index)
        if card.active == 0:
            st.info(f"This {one.noun} was active on none of the index's {index.n_tokens:,} tokens.")
        else:
            _examples(card)
        _words(card)
        _relations(one, index, card)
        snippets.show(_script(one.folder, feature.index))


def _head(feature: Feature, one: Known, card: FeatureCard | None) -> None:
    name, numbers, actions = st.columns([4, 4, 3], vertical_alignment="center")
    name.subheader(f"{plain(one.title)}, {one.noun} {feature.index}", anchor=False)
    name.caption(dictionaries.about(one))
    if card is not None:
        with numbers.container(horizontal=True, gap="medium"):
            st.metric("Active on", f"{card.density:.2%}", width="content", help=f"{card.active:,} tokens of the index.")
            st.metric("Highest", f"{card.highest:.3g}", width="content", help="Its highest value in the index.")
            st.metric("Mean", f"{card.mean:.3g}", width="content", help="Its mean value where it is active.")
    with actions.container(horizontal=True, horizontal_alignment="right"):
        if st.button(f"Steer this {one.noun}", type="primary", icon=":material/tune:", key="steer this"):
            st.session_state.pop("linked", None)
            st.switch_page(pages.script("steer"), query_params=session.link(feature))
        st.button("Close", key="close card", on_click=session.open_feature, args=(None,), icon=":material/close:")


def _examples(card: FeatureCard) -> None:
    top, weaker, histogram = st.tabs(["Strongest examples", "From weak to strong", "All values"])
    with top:
        show_examples(card.top_examples[:SHOWN], card.highest)
        rest = card.top_examples[SHOWN:MORE]
        if rest:
            with st.expander(f"{len(rest)} more"):
                show_examples(rest, card.highest)
    with weaker:
        for low, high in sorted({example.band for example in card.quantile_examples}):
            st.caption(f"From the {_part(low)} quarter of its values")
            show_examples([one for one in card.quantile_examples if one.band == (low, high)], card.highest)
    with histogram:
        st.caption(f"The distribution of its values over the {card.active:,} tokens on which it is active.")
        figure = figures.activation_histogram(card.histogram.edges, card.histogram.counts)
        st.plotly_chart(figure, theme=None, key="histogram", config={"displayModeBar": False})


def _part(low: float) -> str:
    return {0.75: "highest", 0.5: "second", 0.25: "third", 0.0: "lowest"}.get(round(low, 2), f"{low:.0%}")


def _words(card: FeatureCard) -> None:
    if not card.promoted:
        return
    left, right = st.columns(2, gap="large")
    for place, name, tokens, colour in (
        (left, "Promotes", card.promoted, figures.FOR),
        (right, "Suppresses", card.suppressed, figures.AGAINST),
    ):
        with place:
            st.markdown(f"**{name}**")
            figure = figures.token_bars(
                [one.token for one in tokens], [abs(one.score) for one in tokens], colour=colour
            )
            st.plotly_chart(figure, theme=None, key=f"latent {name}", config={"displayModeBar": False})
    st.caption("Bar: the amount that one unit of the latent adds to the token's score, before the final norm divides.")


def _relations(one: Known, index: FeatureIndex, card: FeatureCard) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown(f"**Nearest {one.noun}s**")
        st.caption("By the cosine of their directions.")
        for near in card.neighbours:
            _link(one, index, near.index, f"{near.cosine:.2f}", near.label)
    with right:
        st.markdown("**Active together**")
        st.caption(
            f"The share of this {one.noun}'s tokens on which the other is active too, and how many times as often that "
            "is as on all tokens; both decide the order."
        )
        for partner in card.cofiring:
            _link(one, index, partner.index, f"{partner.share:.0%} · {math.exp(partner.pmi):.3g}×", partner.label)


def _link(one: Known, index: FeatureIndex, latent: int, number: str, label: str) -> None:
    active, promoted = dictionaries.latent_tokens(index, latent)
    words = label or ", ".join(map(visible, active or promoted))
    st.page_link(
        pages.script("browse"),
        label=f"**{number}** {latent} {plain(words)}",
        query_params=session.link(f"{one.name}:{latent}"),
        icon="",
    )


def _script(folder: str, latent: int) -> str:
    """The card of a latent from its index."""
    return (
        "import workbench as wb\n\n"
        f"index = wb.open_index({snippets.place(folder)!r})\n"
        f"card = index.feature({latent})\n"
        "print(repr(card.label), card.density, card.highest, card.mean)\n"
        "print('promoted  ', [(one.token, round(one.score, 3)) for one in card.promoted])\n"
        "print('suppressed', [(one.token, round(one.score, 3)) for one in card.suppressed])\n"
        "for example in card.top_examples:\n"
        "    print(round(example.value, 2), ''.join(example.tokens))\n"
        "print('nearest', [(one.index, round(one.cosine, 2)) for one in card.neighbours])\n"
        "print('active together', [(one.index, round(one.share, 2)) for one in card.cofiring])\n"
    )
