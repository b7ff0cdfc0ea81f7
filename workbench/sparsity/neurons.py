"""Which neurons are always on, which never, and which on one kind of token only."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.dictionaries.features import Feature
from workbench.model.language_model import LanguageModel, uninterrupted
from workbench.sparsity.evaluation import Sample, checked_sizes
from workbench.sparsity.masking import checked_thresholds, keeping_above

KINDS = ("word", "Capital", "inside a word", "number", "punctuation", "white space", "other")
"""What a token is: the beginning of a word in small letters or with a capital, the rest of one, and so on."""


def kind_of(text: str) -> str:
    """Which of `KINDS` a token's text is."""
    body = text.strip()
    if not body:
        return "white space"
    letters = [unicodedata.category(letter)[0] for letter in body]
    if all(one == "N" for one in letters):
        return "number"
    if all(one in "PS" for one in letters):
        return "punctuation"
    if letters[0] != "L":
        return "other"
    if body[0].isupper():
        return "Capital"
    return "word" if text[0].isspace() else "inside a word"


@dataclass(frozen=True)
class NeuronActivity:
    """How often each neuron takes part, over the tokens of some texts, and on what kinds of token."""

    tokens: int
    rates: Tensor = field(repr=False)
    """On which share of the tokens each neuron takes part: `[n_layers, d_mlp]`."""
    kinds: list[str] = field(repr=False)
    """The kinds of token."""
    kind_shares: Tensor = field(repr=False)
    """Which share of the tokens each kind is: `[kinds]`."""
    by_kind: Tensor = field(repr=False)
    """Which share of a neuron's activity is on each kind: `[n_layers, d_mlp, kinds]`; 0 for one that is never on."""

    def always(self, least: float = 0.999) -> Tensor:
        """Neurons that are on for at least so large a share of the tokens: bool `[n_layers, d_mlp]`."""
        return self.rates >= least

    def never(self) -> Tensor:
        """Neurons that are on for none of the tokens: bool `[n_layers, d_mlp]`."""
        return self.rates == 0

    def one_kind(self, purity: float = 0.9, least: int = 10) -> list[tuple[Feature, str, float, float]]:
        """Neurons whose activity is nearly all on one kind of token.

        Args:
            purity: at least so large a share of a neuron's activity.
            least: on at least so many tokens, so that it is no accident.

        Returns:
            The neuron, the kind, the share of its activity there, and on which share of the tokens it is on; those that
            are purest for how rare their kind is first.
        """
        best, kind = self.by_kind.max(-1)  # [n_layers, d_mlp]
        places = ((best >= purity) & (self.rates * self.tokens >= least - 0.5)).nonzero().tolist()
        found = []
        for layer, index in places:
            number = int(kind[layer, index])
            share, rate = float(best[layer, index]), float(self.rates[layer, index])
            feature = Feature(f"neurons.{layer}.post", index)
            found.append((share / float(self.kind_shares[number]), (feature, self.kinds[number], share, rate)))
        return [row for _, row in sorted(found, key=lambda pair: -pair[0])]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        tensors = ("rates", "kind_shares", "by_kind")
        return {"tokens": self.tokens, "kinds": self.kinds} | {name: getattr(self, name).tolist() for name in tensors}


def neuron_activity(
    model: LanguageModel,
    thresholds: Any,
    corpus: Corpus,
    tokens: int = 8192,
    *,
    context: int = 256,
    batch: int = 4,
    seed: int = 0,
    kind: Callable[[str], str] = kind_of,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> NeuronActivity:
    """Count how often each neuron's contribution reaches its layer's threshold while the plain model runs.

    Args:
        model: the model.
        thresholds: a `Sparsity`, or one number for each layer, or one for all.
        corpus, tokens, context, batch, seed: the texts, as in `measure_sparsities`.
        kind: what kind of token a text is; `kind_of` knows `KINDS`.
        progress: told the share done.
        cancel: asked after each batch; once it says True, what was counted until then is the answer.

    Raises:
        SparsityError: thresholds that don't fit the model, or settings that can't be used.
        CorpusError: texts without two tokens in a row.
    """
    keeps = keeping_above(model, checked_thresholds(model, thresholds))
    checked_sizes(tokens, context, batch, seed, 1)
    done = [0]

    def tick(positions: int) -> None:
        done[0] += positions
        if progress:
            progress(done[0] / max(sample.positions, 1), f"{done[0]:,} of {sample.positions:,} positions")
        if cancel is not None and cancel():
            raise _Enough

    with uninterrupted(), torch.inference_mode():
        sample = Sample.read(model, corpus, tick, tokens=tokens, context=context, batch=batch, seed=seed)
        ids = torch.cat([one.tokens[one.content] for one in sample.batches])
        said = {token: kind(text) for token, text in zip(ids.unique().tolist(), _texts(model, ids), strict=True)}
        kinds = sorted(set(said.values()), key=lambda one: KINDS.index(one) if one in KINDS else len(KINDS))
        of = torch.tensor([kinds.index(said[token]) for token in ids.tolist()])  # [n]
        counts = torch.zeros(len(keeps), len(kinds), 0)
        seen = [0] * len(keeps)

        def look(layer: int, values: Tensor) -> None:
            nonlocal counts
            if not counts.numel():
                counts = torch.zeros(len(keeps), len(kinds), values.shape[-1])
            here = of[seen[layer] : seen[layer] + len(values)]
            seen[layer] += len(values)
            counts[layer].index_add_(0, here, keeps[layer](values).float())

        with contextlib.suppress(_Enough):
            sample.run_plain(look)
    n = seen[-1]
    total = counts.sum(1)  # [n_layers, d_mlp]
    return NeuronActivity(
        tokens=n,
        rates=total / n,
        kinds=kinds,
        kind_shares=torch.bincount(of[:n], minlength=len(kinds)) / n,
        by_kind=counts.transpose(1, 2) / total.clamp(min=1)[..., None],
    )


class _Enough(Exception):
    """The work was cancelled."""


def _texts(model: LanguageModel, ids: Tensor) -> list[str]:
    return model.token_texts(ids.unique())
