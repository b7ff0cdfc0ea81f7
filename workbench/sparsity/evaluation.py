"""Passes over a sample of texts with neurons left out: the loss, and how many neurons are left out, text by text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.core.precision import float64_device, in_float64
from workbench.corpus import Corpus, CorpusError, TokenBatch
from workbench.evaluation.bootstrap import TextSums
from workbench.evaluation.losses import predictions, token_losses
from workbench.evaluation.runs import logits_under, windows_at_once
from workbench.model.edits import BoundEdit, Edit
from workbench.model.language_model import LanguageModel
from workbench.sparsity.masking import Keep, down_weights, error_share, post_points
from workbench.sparsity.outcome import PassSums

LETTERS = 8
"""Letters read for each token; no language has as many on average."""

OnBatch = Callable[[int], None]
"""Called after each batch with the number of its positions; may raise to end the work."""
OnValues = Callable[[int, Tensor], None]
"""Called during a run of the plain model with a layer's number and the values on counted tokens, `[n, width]`."""


class Sample:
    """Some texts as token batches, with the plain model's losses on them once `run_plain` has been called.

    Neurons are left out at every position, because a sparse model runs so; only tokens that the corpus does not mask
    are counted, and predictions from one such token of the next.

    Args:
        model: the model.
        batches: the texts.
        on_batch: called after each batch.
        name: the corpus's name, for the error.

    Raises:
        CorpusError: no batch has a prediction that counts.
    """

    def __init__(
        self, model: LanguageModel, batches: Sequence[TokenBatch], on_batch: OnBatch, name: str = "the corpus"
    ):
        self.model, self.on_batch = model, on_batch
        self.batches = [one for one in batches if bool(predictions(one.content).any())]
        if not self.batches:
            raise CorpusError(f"{name} holds no prediction to measure on: no two tokens in a row are not masked.")
        self.neurons = post_points(model)
        self.inputs = [f"blocks.{layer}.mlp.hook_in" for layer in range(model.network.n_layers)]
        self.plain: list[Tensor] = []  # [predictions] of each batch

    @classmethod
    def read(
        cls, model: LanguageModel, corpus: Corpus, on_batch: OnBatch, *, tokens: int, context: int, **how: Any
    ) -> Sample:
        """Some tokens of a corpus, from as many of its texts as possible: of a long text only the beginning is read.

        Args:
            model: the model.
            corpus: the texts.
            on_batch: called after each batch.
            tokens: at most so many.
            context: positions of a window.
            how: `batch` (windows at most) and `seed`, for `Corpus.batches`.
        """
        letters = max(4 * context, -(-LETTERS * tokens // len(corpus)))
        short = Corpus([text.strip()[:letters] for text in corpus.texts], corpus.name)
        how["batch"] = windows_at_once(model, context, how["batch"])
        return cls(model, list(short.batches(model, context, tokens=tokens, **how)), on_batch, corpus.name)

    @property
    def positions(self) -> int:
        """Positions of a pass, with padding."""
        return sum(one.tokens.numel() for one in self.batches)

    def first(self, share: float) -> Sample:
        """The first batches, about this share of them and at least one, with their plain losses."""
        count = max(1, round(share * len(self.batches)))
        part = Sample(self.model, self.batches[:count], self.on_batch)
        part.plain = self.plain[:count]
        return part

    def run_plain(self, on_neurons: OnValues | None = None, on_inputs: OnValues | None = None) -> None:
        """Run the plain model and keep its losses.

        Args:
            on_neurons: called with each layer's neurons on counted tokens, `[n, d_mlp]`.
            on_inputs: called before with the input of each MLP on counted tokens, `[n, d_model]`.
        """
        self.plain = []
        for one in self.batches:
            shown = [(names, on) for names, on in ((self.inputs, on_inputs), (self.neurons, on_neurons)) if on]
            edits = [_showing(name, on, layer, one) for names, on in shown for layer, name in enumerate(names)]
            self.plain.append(self._losses(one, edits))
            self.on_batch(one.tokens.numel())

    def run_masked(self, keeps: Sequence[Keep], on_inputs: Callable[[int, Tensor], None] | None = None) -> PassSums:
        """Sums over each text, from a pass with neurons left out; `run_plain` comes first.

        Args:
            keeps: which neurons take part, for each layer.
            on_inputs: called before with a layer's number and its MLP's input at all positions,
                `[batch, pos, d_model]`.
        """
        sums = TextSums()
        for one, plain in zip(self.batches, self.plain, strict=True):
            home = float64_device(one.tokens.device)
            left_out = torch.zeros(*one.tokens.shape, len(keeps), dtype=torch.float64, device=home)
            edits = []
            if on_inputs:
                edits = [Edit(name, _passing(on_inputs, layer)) for layer, name in enumerate(self.inputs)]
            edits += [
                Edit(name, _masking(keep, left_out[..., layer]))
                for layer, (name, keep) in enumerate(zip(self.neurons, keeps, strict=True))
            ]
            losses = self._losses(one, edits)
            texts = one.texts[:, None].expand_as(one.tokens)
            pairs, counted = predictions(one.content), in_float64(one.content)
            left_out *= counted[..., None]
            sums.add(texts.flatten(), tokens=counted.flatten(), left_out=left_out.flatten(0, 1))
            sums.add(texts[:, :-1][pairs], predictions=torch.ones_like(plain), loss_plain=plain, loss=losses)
            self.on_batch(one.tokens.numel())
        return PassSums(**sums.tensors())

    def _losses(self, one: TokenBatch, edits: Sequence[BoundEdit]) -> Tensor:
        """Cross-entropy of each prediction that counts under edits: `[predictions]`."""
        pairs = predictions(one.content)
        return token_losses(logits_under(self.model, one.tokens, edits), one.tokens, pairs)[pairs]


def _showing(name: str, on_values: OnValues, layer: int, one: TokenBatch) -> Edit:
    """An edit that passes on the values of counted tokens and changes nothing."""

    def show(values: Tensor) -> Tensor:
        on_values(layer, values.to(one.content.device)[one.content].float())
        return values

    return Edit(name, show)


def _passing(on_inputs: Callable[[int, Tensor], None], layer: int) -> Callable[[Tensor], Tensor]:
    def show(values: Tensor) -> Tensor:
        on_inputs(layer, values)
        return values

    return show


def _masking(keep: Keep, left_out: Tensor) -> Callable[[Tensor], Tensor]:
    """A change that sets neurons to zero and writes the share of them at each position to `left_out` `[batch, pos]`."""

    def change(values: Tensor) -> Tensor:
        kept = keep(values)
        count = torch.from_numpy(np.count_nonzero(kept.cpu().numpy(), axis=-1))  # [batch, pos]; ten times a sum's speed
        left_out.copy_(1 - count.double() / values.shape[-1])
        return values * kept

    return change


class CettMeter:
    """Each layer's mean CETT while the plain model runs, for several choices of neurons at once.

    Args:
        model: the model.
        choices: for each, which neurons take part in each layer.
    """

    def __init__(self, model: LanguageModel, choices: Sequence[Sequence[Keep]]):
        self.weights, self.choices = down_weights(model), choices
        self.sums = torch.zeros(len(choices), len(self.weights)).double()
        self.counts = torch.zeros(len(self.weights)).double()

    def add(self, layer: int, values: Tensor) -> None:
        """Add a layer's neurons on some tokens, `[n, d_mlp]`."""
        whole = values @ self.weights[layer]  # [n, d_model]
        for number, keeps in enumerate(self.choices):
            lost = (values * ~keeps[layer](values)) @ self.weights[layer]
            self.sums[number, layer] += in_float64(error_share(lost, whole)).sum()
        self.counts[layer] += len(values)

    def means(self) -> list[list[float]]:
        """The mean CETT of each layer, for each choice."""
        return (self.sums / self.counts).tolist()
