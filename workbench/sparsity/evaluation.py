"""Passes over a sample of texts with neurons left out: what that does to the loss, and how many are left out.

Everything is summed per text, so that intervals can be taken over texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.corpus import Corpus, CorpusError, TokenBatch
from workbench.evaluation.bootstrap import drawn_weights, interval
from workbench.evaluation.predictions import logits_under, losses
from workbench.model.edits import Edit
from workbench.model.language_model import LanguageModel
from workbench.sparsity.masking import Keep, SparsityError, down_weights, error_share, post_points

LETTERS = 8
"""More than a token has, on average, in any language."""

Tick = Callable[[int], None]
"""Told how many positions have just been run; raises to end the work."""
Look = Callable[[int, Tensor], None]
"""Sees the neurons of a layer while the plain model runs, token by token: the layer, and values `[n, d_mlp]`."""


@dataclass(frozen=True)
class SparsityOutcome:
    """A model with neurons left out beside the plain one, on the same texts; cross-entropies in nats per token."""

    tokens: int
    """Tokens on which neurons were counted; special ones do not count."""
    predictions: int
    """Predictions that the cross-entropies are means over."""
    texts: int
    """Texts that they are from, over which the intervals are taken."""
    sparsity: float
    """Mean share of the neurons that are left out, over tokens and layers."""
    by_layer: list[float]
    """The same for each layer."""
    ce_plain: float
    """Cross-entropy of the plain model."""
    ce: float
    """Cross-entropy with neurons left out."""
    ppl_increase: float
    """By what share the perplexity rises: 0.01 is 1%."""
    intervals: dict[str, tuple[float, float]] = field(repr=False)
    """95% confidence intervals of sparsity, ce_plain, ce and ppl_increase, by name, as (low, high)."""
    by_layer_intervals: list[tuple[float, float]] = field(repr=False)
    """The same of each layer's sparsity."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


class Sample:
    """Some texts as token batches, with what the plain model loses on them once `run_plain` has been called.

    Neurons are left out at every position, since that is how a sparse model runs; only tokens that the corpus does not
    mask are counted, and predictions from one such token of the next.

    Args:
        model: the model.
        batches: the texts.
        tick: told of every batch that is run.

    Raises:
        CorpusError: there is no prediction in them.
    """

    def __init__(self, model: LanguageModel, batches: Sequence[TokenBatch], tick: Tick, name: str = "the corpus"):
        self.model, self.tick = model, tick
        self.batches = [one for one in batches if bool(_pairs(one).any())]
        if not self.batches:
            raise CorpusError(f"{name} holds no prediction to measure on: no two tokens in a row are not masked.")
        found = torch.cat([one.texts for one in self.batches]).unique().tolist()
        self.columns = {text: column for column, text in enumerate(found)}
        self.points = post_points(model)
        self.inputs = [f"blocks.{layer}.mlp.hook_in" for layer in range(model.network.n_layers)]
        self.plain: list[Tensor] = []  # [predictions] of each batch
        self.counts = torch.zeros(len(found), 2).double()  # tokens and predictions of each text
        for one in self.batches:
            self.counts[:, 0] += self._per_text(one, one.content.double())
            self.counts[:, 1] += self._per_text(one, _pairs(one).double())

    @classmethod
    def read(cls, model: LanguageModel, corpus: Corpus, tick: Tick, *, tokens: int, context: int, **how: Any) -> Sample:
        """So many tokens of a corpus, from as many of its texts as will do: of a long text only the beginning is taken.

        Args:
            model, corpus, tick: as above.
            tokens: at most so many.
            context: positions of a window.
            how: `batch` and `seed`, for `Corpus.batches`.
        """
        room = max(4 * context, -(-LETTERS * tokens // len(corpus)))
        short = Corpus([text.strip()[:room] for text in corpus.texts], corpus.name)
        return cls(model, list(short.batches(model, context, tokens=tokens, **how)), tick, corpus.name)

    @property
    def positions(self) -> int:
        """Positions that a pass runs over, with padding."""
        return sum(one.tokens.numel() for one in self.batches)

    def first(self, share: float) -> Sample:
        """The first batches, about so large a share of them and at least one, with their plain losses."""
        count = max(1, round(share * len(self.batches)))
        part = Sample(self.model, self.batches[:count], self.tick)
        part.plain = self.plain[:count]
        return part

    def run_plain(self, look: Look | None = None, read: Look | None = None) -> None:
        """Run the plain model; on tokens that count, `look` sees what its neurons do and `read` the MLPs' inputs."""
        self.plain = []
        for one in self.batches:
            edits = [] if read is None else [_seeing(name, read, n, one) for n, name in enumerate(self.inputs)]
            edits += [] if look is None else [_seeing(name, look, n, one) for n, name in enumerate(self.points)]
            self.plain.append(losses(logits_under(self.model, one.tokens, edits), one.tokens, _pairs(one)))
            self.tick(one.tokens.numel())

    def run_thinned(self, keeps: Sequence[Keep], read: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Run with neurons left out.

        Args:
            keeps: which neurons take part, for each layer.
            read: sees each MLP's input first, at all positions: the layer, and `[batch, pos, d_model]`.

        Returns:
            Sums of each text, `[texts, 4 + n_layers]`: tokens, predictions, loss of the plain model, loss, and neurons
            left out in each layer (as shares, summed over tokens).
        """
        sums = torch.zeros(len(self.columns), 4 + len(keeps)).double()
        sums[:, :2] = self.counts
        for one, plain in zip(self.batches, self.plain, strict=True):
            edits = [] if read is None else [Edit(name, _passing(read, n)) for n, name in enumerate(self.inputs)]
            edits += [
                Edit(name, _thinning(keep, one, sums[:, 4 + layer], self._per_text))
                for layer, (name, keep) in enumerate(zip(self.points, keeps, strict=True))
            ]
            found = losses(logits_under(self.model, one.tokens, edits), one.tokens, _pairs(one))
            to = self._columns(one)[:, :-1][_pairs(one)]
            sums[:, 2].index_add_(0, to, plain.double())
            sums[:, 3].index_add_(0, to, found.double())
            self.tick(one.tokens.numel())
        return sums

    def _columns(self, one: TokenBatch) -> Tensor:
        """In which row of the sums the text of each position stands: `[batch, pos]`."""
        rows = torch.tensor([self.columns[text] for text in one.texts.tolist()])
        return rows[:, None].expand_as(one.tokens)

    def _per_text(self, one: TokenBatch, values: Tensor) -> Tensor:
        """Sums per text of values `[batch, …]` (double)."""
        rows = self._columns(one)[:, 0]
        return torch.zeros(len(self.columns)).double().index_add_(0, rows, values.flatten(1).sum(1))


def _pairs(one: TokenBatch) -> Tensor:
    """Which predictions count: `[batch, pos - 1]`."""
    return one.content[:, :-1] & one.content[:, 1:]


def _seeing(name: str, look: Look, layer: int, one: TokenBatch) -> Edit:
    """An edit that shows the tokens that count and changes nothing."""

    def see(values: Tensor) -> Tensor:
        look(layer, values[one.content].float())
        return values

    return Edit(name, see)


def _passing(read: Callable[[int, Tensor], None], layer: int) -> Any:
    def see(values: Tensor) -> Tensor:
        read(layer, values)
        return values

    return see


def _thinning(keep: Keep, one: TokenBatch, into: Tensor, per_text: Callable[[TokenBatch, Tensor], Tensor]) -> Any:
    def change(values: Tensor) -> Tensor:
        kept = keep(values)
        count = torch.from_numpy(np.count_nonzero(kept.cpu().numpy(), axis=-1))  # [batch, pos]; ten times a sum's speed
        share = 1 - count.double() / values.shape[-1]
        into.add_(per_text(one, share * one.content))
        return values * kept

    return change


def rise(sums: Tensor) -> float:
    """By what share the perplexity rises, from the sums of a thinned pass."""
    total = sums.sum(0)
    return math.expm1(float(total[3] - total[2]) / float(total[1]))


def mean_sparsity(sums: Tensor) -> float:
    """Mean share of neurons left out, from the sums of a thinned pass."""
    total = sums.sum(0)
    return float(total[4:].mean() / total[0])


def summarised(sums: Tensor, resamples: int, seed: int) -> SparsityOutcome:
    """The sums of a thinned pass as measures, with a bootstrap over texts."""
    drawn = drawn_weights(len(sums), resamples, seed) @ sums  # [1 + resamples, 4 + n_layers]
    tokens, predictions, plain, thinned = drawn[:, :4].unbind(1)
    layers = drawn[:, 4:] / tokens[:, None]
    values = {
        "sparsity": layers.mean(1),
        "ce_plain": plain / predictions,
        "ce": thinned / predictions,
        "ppl_increase": ((thinned - plain) / predictions).expm1(),
    }
    return SparsityOutcome(
        tokens=int(tokens[0]),
        predictions=int(predictions[0]),
        texts=len(sums),
        by_layer=layers[0].tolist(),
        **{name: float(found[0]) for name, found in values.items()},
        intervals={name: interval(found) for name, found in values.items()},
        by_layer_intervals=[interval(found) for found in layers.unbind(1)],
    )


class CettMeter:
    """Looks at the plain model's neurons and adds up each layer's CETT, for several choices of neurons at once.

    Args:
        model: the model.
        choices: for each, which neurons take part in each layer.
    """

    def __init__(self, model: LanguageModel, choices: Sequence[Sequence[Keep]]):
        self.weights, self.choices = down_weights(model), choices
        self.sums = torch.zeros(len(choices), len(self.weights)).double()
        self.counts = torch.zeros(len(self.weights)).double()

    def look(self, layer: int, values: Tensor) -> None:
        """Take in a layer's neurons, `[n, d_mlp]`."""
        whole = values @ self.weights[layer]
        for number, keeps in enumerate(self.choices):
            lost = (values * ~keeps[layer](values)) @ self.weights[layer]
            self.sums[number, layer] += error_share(lost, whole).double().sum()
        self.counts[layer] += len(values)

    def means(self) -> list[list[float]]:
        """The mean CETT of each layer, for each choice."""
        return (self.sums / self.counts).tolist()


def checked_sizes(tokens: int, context: int, batch: int, seed: int, resamples: int) -> None:
    """Refuse settings of a measurement that can't be used.

    Raises:
        SparsityError: one sentence.
    """
    for name, value, least in (
        ("tokens", tokens, 1),
        ("context", context, 2),
        ("batch", batch, 1),
        ("seed", seed, 0),
        ("resamples", resamples, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SparsityError(f"{name} is a whole number from {least}, not {value!r}.")
