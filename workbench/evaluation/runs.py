"""Runs of a model under edits of the caller's, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workbench.core.checks import checked
from workbench.evaluation.errors import EvaluationError
from workbench.model.edits import BoundEdit
from workbench.model.language_model import LanguageModel


@checked(EvaluationError)
def logits_under(model: LanguageModel, tokens: Tensor, edits: Sequence[BoundEdit]) -> Tensor:
    """Logits of a model that runs under edits: `[batch, pos, vocab]`, in the model's type.

    Interventions in force around the call and the model's own dictionaries come first. Padding on the right takes no
    mask, because no token of a causal model reads it.

    Args:
        model: the model.
        tokens: `[batch, pos]`.
        edits: edits of this run.
    """
    return model.run(tokens, [*model.bind([]), *edits])
