"""Which intervention makes a model compute values that are not finite numbers: looked for once that has happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from workbench.model.edits import EditError, Intervention
from workbench.model.in_force import acting_on, uninterrupted


class NotFiniteError(EditError):
    """Values that are not finite numbers, where a model runs.

    Args:
        message: one sentence.
        row: the row of the batch.
        written: the tokens of each row behind its prompt, `[batch, pos]`.
    """

    def __init__(self, message: str, row: int = 0, written: Tensor | None = None):
        super().__init__(message)
        self.row = row
        self.written = torch.zeros(row + 1, 0, dtype=torch.long) if written is None else written


def first_not_finite(logits: Tensor) -> int | None:
    """The first row of logits `[batch, ...]` that holds NaN or no finite maximum; None if there is none.

    One pass of a maximum, in which NaN goes on. Logits of -inf, of tokens that can't be chosen, are allowed.
    """
    wrong = ~logits.flatten(1).amax(1).isfinite()  # [batch]
    return int(wrong.nonzero()[0, 0]) if bool(wrong.any()) else None


@contextmanager
def blaming(
    model: Any, prompts: Sequence[Sequence[int]], interventions: Sequence[Sequence[Intervention]]
) -> Iterator[None]:
    """A block that decodes; where values are not finite, an error says with which intervention that begins.

    Args:
        model: the `LanguageModel`.
        prompts: the token ids of each row's prompt.
        interventions: those of each row.

    Raises:
        EditError: as `blamed`.
    """
    try:
        yield
    except NotFiniteError as error:
        start = list(prompts[error.row])
        tokens = torch.tensor([[*start, *error.written[error.row].tolist()]])
        raise blamed(model, tokens, len(start), interventions[error.row]) from error


@torch.inference_mode()
def blamed(model: Any, tokens: Tensor, prompt_length: int, interventions: Sequence[Intervention]) -> EditError:
    """An error that names the first intervention with which a model computes values that are not finite.

    Those in force around the call come first. The model runs once for each.

    Args:
        model: the `LanguageModel`.
        tokens: one row of token ids, `[1, pos]`, without padding.
        prompt_length: tokens before the generated ones.
        interventions: of the call.
    """
    every = [*acting_on(model), *interventions]
    with uninterrupted():
        for count in range(len(every) + 1):
            logits = model.run(tokens, model.bind(every[:count]), prompt_length=prompt_length)
            if first_not_finite(logits) is not None:
                if count:
                    return EditError(
                        f"{every[count - 1]} makes the model compute values that are not finite numbers; lower its "
                        "value."
                    )
                kind = str(logits.dtype).removeprefix("torch.")
                return EditError(
                    f"{model.name} computes values here that are not finite numbers, without any intervention: its "
                    f"weights are too large for {kind}."
                )
    named = ", ".join(map(str, every)) or "the model"
    return EditError(f"Values are not finite numbers here under {named}; lower what is too large.")
