"""How many neurons the computation of each token of a text takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.core.checks import checked
from workbench.core.display import Rows, Shown
from workbench.corpus import Corpus, CorpusError
from workbench.model.edits import Edit
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.sparsity.masking import Keep, SparsityError, checked_thresholds, keeping_above, post_points


@dataclass(frozen=True)
class Demand(Shown):
    """The share of neurons that a token takes while the model runs with weakly contributing ones left out."""

    token: int
    text: str
    active: float
    """Share of all neurons that take part."""
    by_layer: list[float] = field(repr=False)
    """The same for each layer."""

    def to_dict(self) -> dict[str, Any]:
        """The shares as plain data."""
        return asdict(self)


@checked(SparsityError)
def token_activity(model: LanguageModel, thresholds: Any, text: str) -> Rows[Demand]:
    """The share of the neurons that each token of a text takes, in the order of the text.

    The text is read after the tokenizer's BOS token, which is not in the result, and in windows where it is longer than
    the model's context.

    Args:
        model: the model.
        thresholds: a `Sparsity`, or one number for each layer, or one for all.
        text: any text.

    Raises:
        SparsityError: thresholds that don't fit the model, or an argument of another type.
        CorpusError: an empty text, or a model without a tokenizer.
    """
    keeps = keeping_above(model, checked_thresholds(model, thresholds))
    if not text.strip():
        raise CorpusError("There is no text; write something for the model to read.")
    by_position: dict[int, Demand] = {}
    with uninterrupted(), torch.inference_mode():
        for batch in Corpus([text]).batches(model, model.network.n_ctx, 1, shuffle=False):
            shares = active_shares(model, batch.tokens, keeps)[0]  # [pos, n_layers]
            texts = model.token_texts(batch.tokens[0])
            for place, at in enumerate(batch.positions[0].tolist()):
                if at >= 0:
                    row = shares[place]
                    by_position[at] = Demand(int(batch.tokens[0, place]), texts[place], float(row.mean()), row.tolist())
    return Rows(by_position[at] for at in sorted(by_position))


def active_shares(model: LanguageModel, tokens: Tensor, keeps: Sequence[Keep]) -> Tensor:
    """The share of each layer's neurons that each token takes: `[batch, pos, n_layers]`.

    Args:
        model: the model.
        tokens: `[batch, pos]`.
        keeps: which neurons take part in each layer of the run.
    """
    shares: list[Tensor] = [torch.zeros(0)] * len(keeps)

    def masking(layer: int) -> Callable[[Tensor], Tensor]:
        def change(values: Tensor) -> Tensor:
            kept = keeps[layer](values)
            shares[layer] = kept.float().mean(-1).to(tokens.device)
            return values * kept

        return change

    edits = [Edit(name, masking(layer)) for layer, name in enumerate(post_points(model))]
    model.run(tokens, [*model.bind([]), *edits], last=1)
    return torch.stack(shares, -1)
