"""The test of a part: the prediction when it is taken out, beside random others of its kind."""

from __future__ import annotations

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
    from workbench.interventions import InterventionKind
    from workbench.measures.removal import Removal

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


def show(cell: Cell, active: Sequence[Feature]) -> None:
    """Draw the chooser of a part, the button, and the effect of the part that was taken out last.

    Args:
        cell: the open cell.
        active: the features that are active there.
    """
    parts = {one.label: one for one in _parts(cell, active)}
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
        removals = [drawn.part.removal, *(one for _, one in drawn.others)]
        snippets.show(script.removal(cell.text, removals, cell.answer, cell.position))


def _parts(cell: Cell, active: Sequence[Feature]) -> list[Part]:
    """What can be taken out: active features, the heads of the layer, its attention and its MLP."""
    model, layer = cell.model, cell.layer
    found = []
    for feature in dict.fromkeys(active):
        noun = dictionary_of(model, feature).noun
        kind = f"{noun}s that are active on this text"
        found.append(Part(str(feature), Ablate(feature), kind, partial(_active_elsewhere, cell, feature)))
    heads = {head: (f"head {layer}.{head}", RemoveHead(layer, head)) for head in range(model.network.n_heads)}
    for head, (label, one) in heads.items():
        rest = [other for place, other in heads.items() if place != head]
        found.append(Part(label, one, "heads of this layer", partial(list, rest)))
    for part, word in (("attention", "attention"), ("mlp", "MLP")):
        rest = [
            (f"the {word} of layer {number}", RemoveSublayer(number, part))
            for number in range(model.network.n_layers)
            if number != layer
        ]
        kind = f"other layers' {word}s"
        found.append(Part(f"the {word} of layer {layer}", RemoveSublayer(layer, part), kind, partial(list, rest)))
    return found


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

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Removal:
        from workbench.measures.removal import measure_removal

        def on_progress(share: float, what: str) -> None:
            tell(share, what)
            if cancelled():
                raise caching.Stopped

        return measure_removal(
            cell.model,
            cell.prompt,
            [part.removal],
            [[one] for _, one in drawn.others],
            target=cell.answer,
            position=cell.position,
            interventions=cell.text.interventions,
            progress=on_progress,
        )

    caching.begin(key, "Taking it out", work, drawn).wait(SOON)


def _result(drawn: Drawn, answer: str, result: Removal) -> None:
    """Draw the effect beside the others', and say what it amounts to."""
    effect, part = result.effect, drawn.part
    as_much = sum(abs(one.change) >= abs(effect.change) for one in result.others)
    verdict = ""
    if result.others:
        verdict = (
            f"None of {len(result.others)} random {part.kind} does as much."
            if as_much == 0
            else f"{as_much} of {len(result.others)} random {part.kind} do as much or more, so this says little."
        )
    st.markdown(
        plain(
            f"Without {part.label} the probability of {answer} goes from {result.before:.1%} to "
            f"{effect.probability:.1%} ({effect.change:+.2f} nats); the whole prediction moves by {effect.kl:.3f} nats "
            f"(KL). {verdict}"
        )
    )
    from workbench.figures.reading import removal_bars

    others = [(name, one.change) for (name, _), one in zip(drawn.others, result.others, strict=True)]
    st.plotly_chart(
        removal_bars(part.label, effect.change, others), theme=None, key="removed", config={"displayModeBar": False}
    )
    st.caption("Bars: the change of the answer's log-probability, in nats; grey ones are the random others.")
