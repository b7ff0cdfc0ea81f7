"""What heads write for a token: their value and output weights, with what stands before and behind them.

The model itself computes the values: a row holds one position, so that a head attends to it alone, and the stream in
front of the layer is what the token brings into the first layer. So grouped values, biases, norms in front and cut-off
values need no map of the weights. Elhage et al. (2021) call this the OV circuit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.lens.errors import LensError
from workbench.lens.readout import Readout
from workbench.model.edits import Edit, EditError
from workbench.model.hookpoints import HookPointError
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan
from workbench.model.weights import ModelError

FROZEN = (
    "Each source token stands alone: the stream in front of the layer is the token's embedding, which the norm there "
    "divides by its own size, and the head attends to nothing else. Norms behind the head keep their gain and divide "
    "by 1, so that scores are logits up to the size of the stream at the end; no later layer, cap or factor acts."
)
"""What is held fixed where a head's writing is read, for people."""
AT_ONCE = 256
"""Source tokens in one pass."""
ROWS = 32
"""Rows of scores `[rows, vocab]` at a time."""


@dataclass(frozen=True)
class _Put:
    """An intervention: the stream at a hook point becomes these vectors, one for each row."""

    name: str
    vectors: Tensor
    """`[rows, d_model]`."""

    def bind(self, model: Any, plan: Plan) -> list[Edit]:
        """A fresh edit for one run."""
        plan.close(model.hook_points[self.name].key)
        return [Edit(self.name, lambda x: self.vectors[:, None].to(x).expand_as(x), source="head_card")]


class Writing:
    """What the heads of a layer write into the stream for single tokens.

    Args:
        model: the model.
        layer: the layer.

    Raises:
        LensError: a model whose heads, final norm or LM head can't be read alone.
    """

    def __init__(self, model: LanguageModel, layer: int):
        self.model, self.layer = model, layer
        self.readout = Readout(model)
        try:
            self.point = model.hook_points[f"blocks.{layer}.attn.hook_z"]
            self.path = model.network.into_stream(self.point)
            self.gain, self.centres = model.network.final_norm()
        except (HookPointError, ModelError) as error:
            raise LensError(f"What the heads of layer {layer} write can't be read: {error}") from error
        if len(self.point.shape) != 2:
            raise LensError(f"{model.name} does not keep the heads of layer {layer} apart.")
        self.heads = self.point.shape[0]

    def outputs(self, ids: Sequence[int]) -> Tensor:
        """What each head returns for each token alone, in front of its output weights: `[n, heads, d_head]`.

        Raises:
            LensError: the stream in front of the layer can't be set.
        """
        model, found = self.model, []
        for some in torch.tensor(ids, device=model.device).split(AT_ONCE):
            try:
                with (
                    torch.no_grad(),
                    model.intervening([_Put(f"blocks.{self.layer}.hook_resid_pre", model.network.token_parts(some))]),
                ):
                    found.append(model.capture(some[:, None], [self.point.name])[self.point.name][:, 0])
            except (EditError, HookPointError) as error:
                raise LensError(f"The stream in front of layer {self.layer} can't be set: {error}") from error
        return torch.cat(found)

    def written(self, outputs: Tensor, head: int) -> Tensor:
        """What a head adds to the stream, behind the final norm's gain: `[n, d_model]`, for `outputs` of tokens."""
        alone = torch.zeros_like(outputs)
        alone[:, head] = outputs[:, head]
        change = self.path.output(alone.flatten(1)) - self.path.output(torch.zeros_like(alone[:1]).flatten(1))
        part = self.path.directions(change).to(self.gain.device)
        return (part - part.mean(-1, keepdim=True) if self.centres else part) * self.gain

    def scores(self, written: Tensor) -> Tensor:
        """The LM head's products with rows that `written` returned, `[rows, vocab]`, without its bias."""
        return self.readout.head.products(written.to(self.readout.head.device))

    def promoted(self, ids: Sequence[int], head: int, top: int) -> tuple[Tensor, Tensor]:
        """The tokens that a head promotes most for each token, best first: scores and ids, `[n, top]`."""
        with torch.no_grad():
            rows = self.written(self.outputs(ids), head).split(ROWS)
            best = [self.scores(some).topk(min(top, len(self.readout.head))) for some in rows]
        return torch.cat([one.values for one in best]), torch.cat([one.indices for one in best])

    def copying(self, ids: Sequence[int], top: int, heads: Sequence[int] | None = None) -> Tensor:
        """The share of tokens that are themselves among the `top` that a head promotes for them: `[heads]`.

        Args:
            ids: the tokens.
            top: of the vocabulary.
            heads: these only; None for all.

        Of tokens with equal scores half stand in front, so that a head that writes nothing copies nothing.

        Source: the copying score of Wang et al. (2022, arXiv 2211.00593), without the first MLP.
        """
        device = self.readout.head.device
        with torch.no_grad():
            outputs, own = self.outputs(ids), torch.tensor(ids, device=device)
            found = []
            for head in range(self.heads) if heads is None else heads:
                hits = 0
                for rows, tokens in zip(self.written(outputs, head).split(ROWS), own.split(ROWS), strict=True):
                    scores = self.scores(rows)
                    own_scores = scores.gather(1, tokens[:, None])
                    higher = (scores > own_scores).sum(1) + ((scores == own_scores).sum(1) - 1) / 2
                    hits += int((higher < top).sum())
                found.append(hits / len(own))
        return torch.tensor(found)
