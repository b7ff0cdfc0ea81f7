"""The texts that fire a layer's neurons, and what people wrote on them: an index of the layer, beside the trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import background, corpora, dictionaries, places, remarks, snippets
from shared.examples import show_all
from shared.waiting import one_sentence

from workbench import Feature
from workbench.core.text import plain
from workbench.index import FeatureIndexError

if TYPE_CHECKING:
    from workbench.index import FeatureIndex, Remark
    from workbench.model import LanguageModel

TOKENS = 8192
"""Tokens that the texts are taken from: enough for examples, and read in a minute."""


@dataclass(frozen=True)
class Layer:
    """The neurons of a layer at a site, as `remarks` names a dictionary."""

    name: str
    """`neurons.29.gate`, for example."""
    folder: Path
    """Of their index."""
    noun: str = "neuron"


def layer_of(model: LanguageModel, dictionary: str) -> Layer:
    """The neurons of this name, with the folder that their index of this model has."""
    return Layer(dictionary, dictionaries.runs_folder() / "neurons" / model.hash[:16] / dictionary)


def opened(model: LanguageModel, layer: Layer) -> FeatureIndex | None:
    """The index of a layer's neurons; None without one.

    Raises:
        FeatureIndexError: it is damaged, or of another model.
    """
    note = layer.folder / "data" / "index.json"
    if not note.exists():
        return None
    return caching.neuron_index(str(layer.folder), note.stat().st_mtime_ns, model)


def usable(model: LanguageModel, dictionary: str) -> FeatureIndex | None:
    """The index of the neurons of this name; None without one and for one that can't be used."""
    try:
        return opened(model, layer_of(model, dictionary))
    except FeatureIndexError:
        return None


def remark_on(model: LanguageModel, feature: Feature) -> Remark | None:
    """What a person wrote on a neuron; None for nothing."""
    index = usable(model, feature.dictionary)
    return None if index is None else index.remarks().get(feature.index)


def written(model: LanguageModel, site: str) -> dict[str, Remark]:
    """What people wrote on the neurons at a site, by the neurons' ids."""
    found = {}
    for layer in range(model.network.n_layers):
        name = f"neurons.{layer}.{site}"
        if (layer_of(model, name).folder / "people.sqlite").exists() and (index := usable(model, name)) is not None:
            found |= {f"{name}:{number}": remark for number, remark in index.remarks().items()}
    return found


def show(model: LanguageModel, feature: Feature) -> None:
    """Draw the label, note and star of a neuron and its texts; without an index the button that reads them."""
    layer = layer_of(model, feature.dictionary)
    with one_sentence():
        index = opened(model, layer)
        if index is None:
            _offer(model, layer)
            return
        remarks.show(layer, index, feature.index)
        show_all(index.feature(feature.index), f"{index.n_tokens:,} tokens")


def _offer(model: LanguageModel, layer: Layer) -> None:
    """Draw the button that builds the index, or the progress of the building."""
    key = ("neuron index", str(layer.folder), caching.as_placed(model))
    if background.goes_on(key):
        return
    background.show_failure(key)
    words, button = st.columns([5, 2], vertical_alignment="center")
    words.caption(
        f"The texts that fire it, and a label, a note and a star, need the layer to be read once: {TOKENS:,} tokens of "
        f"{corpora.FIRST}, for all neurons of {plain(layer.name)}; about a minute."
    )
    if button.button("Read the texts", icon=":material/menu_book:", key="read neuron texts", width="stretch"):
        places.allowed(layer.folder)
        caching.begin(key, f"Reading texts for {layer.name}", _work(model, layer))
        st.rerun()


def _work(model: LanguageModel, layer: Layer) -> Callable[..., Any]:
    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> None:
        import workbench as wb

        corpus = corpora.opened(corpora.FIRST)
        wb.build_index(model, layer.name, corpus, layer.folder, tokens=TOKENS, progress=tell, cancel=cancelled)

    return work


def code(model: LanguageModel, feature: Feature) -> str:
    """The lines of a script that print the texts and the label of a neuron, behind those that open the model."""
    layer = layer_of(model, feature.dictionary)
    return (
        f"corpus = wb.Corpus.load({corpora.FIRST!r})\n"
        f"index = wb.build_index(model, {layer.name!r}, corpus, {snippets.place(str(layer.folder))!r}, "
        f"tokens={TOKENS})  # kept there\n"
        f"texts = index.feature({feature.index})\n"
        "print(repr(texts.label), texts.note, texts.starred)\n"
        "for example in texts.top_examples:\n"
        "    print(round(example.value, 2), ''.join(example.tokens))\n"
    )
