"""The card of a dictionary's latent: its examples, the tokens it promotes, and the latents most similar to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import streamlit as st
from shared import dictionaries, exports, pages, remarks, session, snippets
from shared.dictionaries import Known
from shared.examples import show_all, show_strongest
from shared.tokens import show_chips

from workbench import Feature, figures
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from workbench.index import FeatureCard, FeatureIndex
    from workbench.model import LanguageModel


def show(model: LanguageModel, text: str) -> None:
    """Draw the card of a latent, given its feature id; raises an error of the package if there is none."""
    feature, one, index = _found(model, text)
    with st.container(border=True, key="card"):
        card = index.feature(feature.index) if index else None
        _head(feature, one, card)
        if index is None or card is None:
            st.caption("Its examples, tokens and neighbours show here once the dictionary has an index.")
            return
        remarks.show(one, index, feature.index)
        for label in card.labels:
            st.caption(f"{plain(label.source)}: “{plain(label.text)}”")
        for found in card.found:
            st.caption(f"{plain(found.text)}, {plain(dictionaries.label_score(found))}", help=plain(found.about))
        if card.active == 0:
            st.info(f"This {one.noun} was active on none of the index's {index.n_tokens:,} tokens.")
        else:
            _examples(card)
        _words(card)
        if one.exported:
            lacking = index.about["export"]["absent"]
            st.caption(f"Not known here, as the export does not hold it: {plain(', '.join(lacking))}.")
        else:
            _relations(one, index, card)
        snippets.show((_script_of_export if one.exported else _script)(one.folder, feature.index))


def _found(model: LanguageModel, text: str) -> tuple[Feature, Known, FeatureIndex | None]:
    """A feature with its dictionary, or with the export that holds it, and the index of either."""
    parsed = Feature.parse(text)
    if (export := exports.called(parsed.dictionary)) is not None:
        return parsed, export, exports.index_of(export)
    feature = dictionaries.feature(model, text)
    one = dictionaries.called(model, feature.dictionary)
    return feature, one, dictionaries.usable_index(model, one)


def _head(feature: Feature, one: Known, card: FeatureCard | None) -> None:
    name, numbers, actions = st.columns([4, 4, 3], vertical_alignment="center")
    name.subheader(f"{plain(one.title)}, {one.noun} {feature.index}", anchor=False)
    name.caption(dictionaries.about(one))
    if card is not None:
        _numbers(card, numbers.container(horizontal=True, gap="medium"))
    with actions.container(horizontal=True, horizontal_alignment="right"):
        if not one.exported and st.button(
            f"Steer this {one.noun}", type="primary", icon=":material/tune:", key="steer this"
        ):
            st.session_state.pop("linked", None)
            st.switch_page(pages.script("steer"), query_params=session.link(feature))
        st.button("Close", key="close card", on_click=session.open_feature, args=(None,), icon=":material/close:")


def _numbers(card: FeatureCard, place: DeltaGenerator) -> None:
    """Draw the card's numbers; one that an export does not say is not known."""
    count = "By the count of the export." if card.active is None else f"{card.active:,} tokens of the index."
    for name, number, form, help in (
        ("Active on", card.density, ".2%", count),
        ("Highest", card.highest, ".3g", "Its highest value in the index."),
        ("Mean", card.mean, ".3g", "Its mean value where it is active."),
    ):
        place.metric(name, "not known" if number is None else format(number, form), width="content", help=help)


def _examples(card: FeatureCard) -> None:
    if card.active is None:  # an export's: its examples are all that is known of its values
        st.markdown(
            "**Strongest examples of the export**" if card.top_examples else "The export holds no examples of it."
        )
        show_strongest(card.top_examples, max([card.highest or 0.0, *(one.value for one in card.top_examples)]))
        return
    show_all(card, f"the {card.active:,} tokens on which it is active")


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
            scores = [abs(one.score) for one in tokens if one.score is not None]
            if len(scores) < len(tokens):  # an export names the tokens alone
                show_chips([one.token for one in tokens])
                continue
            figure = figures.token_bars([one.token for one in tokens], scores, colour=colour)
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
            "is as on all tokens; both decide which are listed, the share their order."
        )
        for partner in sorted(card.cofiring, key=lambda one: -one.share):
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


def _script_of_export(folder: str, latent: int) -> str:
    """The card of a feature from the index of an export."""
    return (
        "import workbench as wb\n\n"
        f"index = wb.open_index({snippets.place(folder)!r})\n"
        f"card = index.feature({latent})\n"
        "print(card.density, card.highest)  # None where the export does not say it\n"
        "for label in card.labels:\n"
        "    print(repr(label.text), label.source)\n"
        "print('promoted  ', [one.token for one in card.promoted])\n"
        "print('suppressed', [one.token for one in card.suppressed])\n"
        "for example in card.top_examples:\n"
        "    print(round(example.value, 2), ''.join(example.tokens))\n"
    )
