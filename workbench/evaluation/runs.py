"""Runs of a model under edits of the caller's, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workbench.core.checks import Positive, checked
from workbench.evaluation.errors import EvaluationError
from workbench.model.edits import BoundEdit
from workbench.model.language_model import LanguageModel

LOGITS = 1 << 26
"""Logits that one run computes, at most, where windows can be run apart: 256 MiB in float32."""


@checked(EvaluationError)
def windows_at_once(model: LanguageModel, context: Positive, batch: Positive) -> int:
    """The windows to run at once so that their logits are at most `LOGITS`: from 1 to `batch`.

    At the default model's vocabulary these are 5 windows of 256 tokens.

    Args:
        model: the model.
        context: positions of a window.
        batch: windows at most.
    """
    return max(1, min(batch, LOGITS // (min(context, model.network.n_ctx) * model.network.vocab_size)))


@checked(EvaluationError)
def logits_under(model: LanguageModel, tokens: Tensor, edits: Sequence[BoundEdit]) -> Tensor:
    """Logits of a model that runs under edits: `[batch, pos, vocab]`, in the model's type.

    Interventions in force around the call and the model's own dictionaries come first. There is no mask:
    `Corpus.batches` pads on the right, and only for causal models, of which no token reads the padding.

    Args:
        model: the model.
        tokens: `[batch, pos]`.
        edits: edits of this run.
    """
    return model.run(tokens, [*model.bind([]), *edits])
