"""The test of a part: the prediction when it is taken out, beside random others of its kind."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import background, dictionaries, snippets

from read import firing, script
from read.reading import Cell
from workbench import Ablate, Feature
from workbench.core.text import plain, visible
from workbench.interventions import RemoveHead, RemoveSublayer
from workbench.interventions.features import dictionary_of

if TYPE_CHECKING:
    from workbench.findings.results import Ablation
    from workbench.interventions import InterventionKind

OTHERS = 5
"""Random ones of the same kind, at most."""
SOON = 1.5
"""Seconds to wait before the page shows progress."""
TAKEN = "taken out"
"""Key of the session: what was taken out last."""


@dataclass(frozen=True)
class Part:
    """Something that can be taken out."""

    label: str
    removal: InterventionKind
    kind: str
    """For people: what the random others are."""
    others: Callable[[], Sequence[tuple[str, InterventionKind]]]
    """Returns what these are drawn from, each with its name."""


@dataclass(frozen=True)
class Drawn:
    """A part with the random others that it is tested beside."""

    part: Part
    others: list[tuple[str, InterventionKind]]

    @property
    def removals(self) -> list[InterventionKind]:
        """Those of the part, and of the others."""
        return [self.part.removal, *(one for _, one in self.others)]


@dataclass(frozen=True)
class Outcome:
    """A test with the log-probability of the answer before it."""

    plain: float
    test: Ablation


def show(cell: Cell, active: Sequence[Feature], largest: Sequence[str]) -> None:
    """Draw the chooser of a part, the button, and the effect of the part that was taken out last.

    Args:
        cell: the open cell.
        active: the features that are active there.
        largest: labels of the layer's heads, in the order in which they are offered.
    """
    parts = {one.label: one for one in _parts(cell, active, largest)}
    st.markdown("**Does it matter?**")
    if st.session_state.get("removed part") not in parts:
        st.session_state["removed part"] = next(iter(parts))
    which, button = st.columns([5, 2], vertical_alignment="bottom")
    label = which.selectbox("A part of this layer, or a feature that is active here", list(parts), key="removed part")
    wanted = button.button("Take it out", icon=":material/content_cut:", key="take out", width="stretch")
    key = ("removal", *cell.key, str(cell.position), label)
    if wanted:
        _begin(cell, parts[label], key)
        st.session_state[TAKEN] = key
    answer = visible(cell.answer_text)
    if st.session_state.get(TAKEN) != key:
        st.caption(plain(f"What becomes of {answer} without it, and without {OTHERS} random others of its kind."))
        return
    task = background.finished(key, "Stopped before anything was measured.")
    if task is not None and not task.stopping:
        drawn: Drawn = task.about
        _result(drawn, answer, task.result())
        snippets.show(script.removal(cell, drawn.removals))


def _parts(cell: Cell, active: Sequence[Feature], largest: Sequence[str]) -> list[Part]:
    """What can be taken out: active features, the heads of the layer, its attention and its MLP."""
    model, layer = cell.model, cell.layer
    found = []
    neurons = [one for one in active if dictionaries.is_neuron(one)]
    for feature in dict.fromkeys(one for one in active if one not in neurons):
        noun = dictionary_of(model, feature).noun
        kind = f"{noun}s that are active on this text"
        found.append(Part(str(feature), Ablate(feature), kind, partial(_active_elsewhere, cell, feature)))
    order = {label: place for place, label in enumerate(largest)}
    numbers = sorted(range(model.network.n_heads), key=lambda head: order.get(f"head {layer}.{head}", len(order)))
    heads = {head: (f"head {layer}.{head}", RemoveHead(layer, head)) for head in numbers}
    for head, (label, one) in heads.items():
        rest = [other for place, other in heads.items() if place != head]
        found.append(Part(label, one, f"heads of layer {layer}", partial(list, rest)))
    for part, word in (("attention", "attention"), ("mlp", "MLP")):
        rest = [
            (f"the {word} of layer {number}", RemoveSublayer(number, part))
            for number in range(model.network.n_layers)
            if number != layer
        ]
        kind = f"{word}s of other layers"
        found.append(Part(f"the {word} of layer {layer}", RemoveSublayer(layer, part), kind, partial(list, rest)))
    for one in neurons:
        found.append(Part(str(one), Ablate(one), f"neurons of layer {layer}", partial(_beside, cell, one)))
    return found


def _beside(cell: Cell, neuron: Feature) -> list[tuple[str, InterventionKind]]:
    """The removals of the other neurons of a neuron's layer."""
    others = range(dictionary_of(cell.model, neuron).n_features)
    features = [Feature(neuron.dictionary, number) for number in others if number != neuron.index]
    return [(str(one), Ablate(one)) for one in features]


def _active_elsewhere(cell: Cell, feature: Feature) -> list[tuple[str, InterventionKind]]:
    """The removals of the other features of a dictionary that are active on the text."""
    tokens = firing.fired(cell.model, cell.text, [dictionaries.called(cell.model, feature.dictionary)], firing.FEATURES)
    seen = dict.fromkeys(one for token in tokens for one in token.features)
    return [(str(one), Ablate(one)) for one in seen if one != feature]


def _begin(cell: Cell, part: Part, key: tuple[str, ...]) -> None:
    """Start the test, unless it goes on or has ended with a result."""
    going = caching.task(key)
    if going is not None and not going.failed and not going.stopping:
        return
    pool = part.others()
    drawn = Drawn(part, random.Random(part.label).sample(pool, min(OTHERS, len(pool))))

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Outcome:
        with cell.model.intervening(cell.text.interventions):
            return _tested(cell, drawn, tell, cancelled)

    caching.begin(key, "Taking it out", work, drawn).wait(SOON)


def _tested(cell: Cell, drawn: Drawn, tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Outcome:
    """The test of a part behind the text up to the cell, several removals in a pass."""
    from workbench.findings.results import Ablation
    from workbench.findings.subject import TOKENS, Subject, Variant

    ids = cell.reading.ids[: cell.position + 1]
    subject = Subject.of(cell.model, ids, cell.answer, OTHERS, 0)
    falls: list[float] = []
    at_once = max(1, TOKENS // len(ids))
    for start in range(0, len(drawn.removals), at_once):
        if cancelled():
            raise caching.Stopped
        tell(start / len(drawn.removals), "Taking it out, and random others")
        falls += subject.losses([Variant([one]) for one in drawn.removals[start : start + at_once]])
    effect, *others = falls
    test = Ablation(effect, others, drawn.part.kind, subject.score, "", 1 if effect >= 0 else -1)
    return Outcome(subject.plain, test)


def _result(drawn: Drawn, answer: str, outcome: Outcome) -> None:
    """Draw the effect beside the others', and say what it amounts to."""
    test = outcome.test
    before, after = math.exp(outcome.plain), math.exp(min(outcome.plain - test.effect, 0.0))
    st.markdown(f"**{plain(drawn.part.label)}.** {plain(test.sentence)}")
    st.markdown(plain(f"The probability of {answer} goes from {before:.1%} to {after:.1%}."))
    from workbench.figures.reading import removal_bars

    others = [(name, -fall) for (name, _), fall in zip(drawn.others, test.random, strict=True)]
    st.plotly_chart(
        removal_bars(drawn.part.label, -test.effect, others),
        theme=None,
        key="removed",
        config={"displayModeBar": False},
    )
    st.caption("Bars: the change of the answer's log-probability, in nats; grey ones are the random others.")
