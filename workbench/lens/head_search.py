"""Heads found by what they do: by a behaviour on random tokens, by what they write, or by any score of each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.core.checks import Floats, Natural, Positive, checked
from workbench.core.display import Rows, Shown
from workbench.lens.attention import behaviours, longest_repeat, repeated_tokens
from workbench.lens.errors import LensError
from workbench.lens.heads import COPIED
from workbench.lens.ov import Writing
from workbench.lens.tokens import chosen_layers
from workbench.model.language_model import LanguageModel

Behaviour = Literal["previous token", "duplicate token", "induction", "first token", "copying"]
ON_REPEATS = ("previous token", "duplicate token", "induction", "first token")
"""Behaviours on repeated random tokens, in the order of `HeadScores`."""
SAMPLED = 24
"""Tokens that copying is measured on."""


@dataclass(frozen=True)
class HeadHit(Shown):
    """A head with its score; `find_heads` returns them."""

    layer: int
    head: int
    score: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@checked(LensError)
def find_heads(
    model: LanguageModel,
    behaviour: Behaviour | Floats = "induction",
    *,
    layers: Sequence[Natural] | None = None,
    top: Positive = 10,
    seed: Natural = 0,
) -> Rows[HeadHit]:
    """The heads that show a behaviour most, best first.

    Args:
        model: the model.
        behaviour: "previous token", "duplicate token", "induction" or "first token", as in `score_heads`; "copying" for
            the share of random tokens that are among the 5 which the head promotes most for them, as in `head_card`;
            or a score of each head, `[layer, head]`, such as `wb.circuits.attribution_patching(model, task).heads` for
            the heads that do a task.
        layers: only heads of these; None for all.
        top: heads that are returned at most.
        seed: of the random tokens.

    Raises:
        LensError: a layer that the model lacks, scores of another shape or that are not finite, or heads that keep no
            pattern or can't be read alone.
    """
    chosen = chosen_layers(model, layers)
    if isinstance(behaviour, Tensor):
        scores = _given(model, behaviour)[chosen]
    elif behaviour == "copying":
        scores = _copying(model, chosen, seed)
    else:
        batch, start = repeated_tokens(model, longest_repeat(model), 4, None, seed)
        scores = behaviours(model, chosen, batch, start)[ON_REPEATS.index(behaviour)]
    best, places = scores.flatten().cpu().sort(descending=True, stable=True)
    heads = scores.shape[1]
    return Rows(
        HeadHit(chosen[place // heads], place % heads, value)
        for value, place in zip(best[:top].tolist(), places[:top].tolist(), strict=True)
    )


def _given(model: LanguageModel, scores: Tensor) -> Tensor:
    if scores.ndim != 2 or len(scores) != model.network.n_layers or not scores.shape[1]:
        raise LensError(
            f"Scores of heads are [layer, head] with the {model.network.n_layers} layers of {model.name}, not "
            f"{list(scores.shape)}."
        )
    if not bool(scores.isfinite().all()):
        raise LensError("A score of a head is not finite; leave out what could not be measured.")
    return scores.detach().float()


def _copying(model: LanguageModel, layers: Sequence[int], seed: int) -> Tensor:
    """The copying scores `[layers, heads]`."""
    length = min(SAMPLED, longest_repeat(model))
    batch, start = repeated_tokens(model, length, 1, None, seed)
    sample = batch[0, start : start + length].tolist()
    return torch.stack([Writing(model, layer).copying(sample, COPIED) for layer in layers])
