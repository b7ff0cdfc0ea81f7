"""Which intervention makes a model compute values that are not finite numbers: looked for once that has happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from workbench.model.edits import EditError, Intervention
from workbench.model.in_force import holding, uninterrupted

EXTREME = 1e15
"""Numbers of interventions beyond which the square of the stream may be infinite in float32, at usual weights."""


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
        interventions: those of each row, with those in force around the call.

    Raises:
        EditError: as `blamed` and `check_extreme`.
    """
    first = {id(edits): row for row, edits in reversed(list(enumerate(interventions)))}
    for row in first.values():
        check_extreme(model, prompts[row], interventions[row])
    try:
        yield
    except NotFiniteError as error:
        start = list(prompts[error.row])
        tokens = torch.tensor([[*start, *error.written[error.row].tolist()]])
        raise blamed(model, tokens, len(start), interventions[error.row]) from error


def check_extreme(model: Any, prompt: Sequence[int], interventions: Sequence[Intervention]) -> None:
    """Raise `EditError` where an intervention with a number beyond `EXTREME` makes the residual stream too large.

    A norm squares the stream; where the square is infinite it writes zeros or its bias, whatever the text, and logits
    are finite all the same. Without such a number nothing is run.
    """
    if any(map(_is_extreme, interventions)):
        tokens = torch.tensor([[*prompt, prompt[-1]]])
        if cause := _cause(model, tokens, len(prompt), interventions):
            raise cause


def blamed(model: Any, tokens: Tensor, prompt_length: int, interventions: Sequence[Intervention]) -> EditError:
    """An error that names the first intervention with which a model computes values that are not finite.

    The model runs once for each.

    Args:
        model: the `LanguageModel`.
        tokens: one row of token ids, `[1, pos]`, without padding.
        prompt_length: tokens before the generated ones.
        interventions: in their order, those in force around the call first.
    """
    named = ", ".join(map(str, interventions)) or model.name
    return _cause(model, tokens, prompt_length, interventions) or EditError(
        f"Values are not finite numbers here under {named}; lower what is too large."
    )


@torch.inference_mode()
def _cause(model: Any, tokens: Tensor, prompt_length: int, every: Sequence[Intervention]) -> EditError | None:
    """What makes values too large; None where nothing does."""
    with uninterrupted():
        for count in range(len(every) + 1):
            if _fails(model, tokens, prompt_length, every[:count]):
                if count:
                    return EditError(
                        f"{every[count - 1]} makes the model compute values that are not finite numbers; lower its "
                        "value."
                    )
                kind = str(model.network.module.dtype).removeprefix("torch.")
                return EditError(
                    f"{model.name} computes values here that are not finite numbers, without any intervention: its "
                    f"weights are too large for {kind}."
                )
    return None


def _fails(model: Any, tokens: Tensor, prompt_length: int, interventions: Sequence[Intervention]) -> bool:
    """Whether logits are not finite, or the residual stream behind the last layer has no finite square."""
    if first_not_finite(model.run(tokens, model.bind(interventions), prompt_length=prompt_length)) is not None:
        return True
    last = f"blocks.{model.network.n_layers - 1}.hook_resid_post"
    if last not in model.hook_points:
        return False
    with holding(model, interventions=interventions):
        stream = model.capture(tokens, [last], prompt_length=prompt_length)[last]
    return not bool(stream.float().square().sum(-1).isfinite().all())


def _is_extreme(intervention: object) -> bool:
    """Whether a number of an intervention is beyond `EXTREME`."""
    values = vars(intervention).values() if hasattr(intervention, "__dict__") else ()
    return any(isinstance(value, int | float) and abs(value) > EXTREME for value in values)
