"""The probability of a word after a prompt, for each strength of an intervention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from workbench.core.checks import Number, checked
from workbench.core.display import Tabular, columns
from workbench.core.progress import Progress
from workbench.evaluation.losses import cross_entropy
from workbench.model.blame import blamed, check_extreme, first_not_finite
from workbench.model.decoding import check_causal
from workbench.model.edits import Group, Intervention, Run, check_edits
from workbench.model.in_force import acting_on
from workbench.model.language_model import LanguageModel
from workbench.model.sampling import PromptError

if TYPE_CHECKING:
    from workbench.figures.common import Figure

ROWS = 8
"""Strengths in one forward pass."""


@dataclass(frozen=True)
class DoseResponse(Tabular):
    """A word's log-probability against the strength of an intervention."""

    word: str
    values: list[float]
    logprobs: list[float]
    """Natural logarithm of the word's probability directly after the prompt, for each value."""
    plain: float
    """The same without the intervention."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each strength."""
        return columns(value=self.values, logprob=self.logprobs)

    def figure(self) -> Figure:
        """The probability against the strength."""
        from workbench.figures.tokens import dose_curve

        return dose_curve(self)

    def _facts(self) -> Mapping[str, object]:
        return {"word": self.word, "plain": self.plain}

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@checked(PromptError)
def dose_response(
    model: LanguageModel,
    prompt: str,
    word: str,
    values: Sequence[Number],
    make: Callable[[float], Sequence[Intervention]],
    *,
    progress: Progress | None = None,
) -> DoseResponse:
    """A word's log-probability after a prompt under interventions of several strengths.

    Args:
        model: the model.
        prompt: a text; for a chat, `model.chat_prompt(message)`.
        word: the word, with its leading space where one belongs (" dog"); of several tokens, their joint probability
            counts.
        values: the strengths; one that stands there twice is measured once.
        make: the interventions of one strength, such as `lambda value: [Clamp(feature, value)]`.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.

    Raises:
        PromptError: an empty prompt or word, or a word of several tokens and a model that sees later ones.
        EditError: an intervention that can't act, or makes values that are not finite.
    """
    target = model.to_tokens(word, start=False)  # [1, new]
    if target.shape[1] > 1:
        check_causal(model.network)
    start, _ = model.prompt_batch([prompt], target.shape[1])  # [1, pos]
    tokens = torch.cat([start, target[:, :-1]], 1)
    length = start.shape[1]
    distinct = list(dict.fromkeys(map(float, values)))
    bound = [model.bind([]), *(model.bind(make(value)) for value in distinct)]
    for edits in bound:
        check_edits(edits, tokens.shape[1], length)
    for value in distinct:
        check_extreme(model, start[0].tolist(), [*acting_on(model), *make(value)])
    measured: list[float] = []
    for first in range(0, len(bound), ROWS):
        if progress:
            progress(first / len(bound), f"Measuring {word!r}")
        some = bound[first : first + ROWS]
        groups = [Group(edits, slice(row, row + 1)) for row, edits in enumerate(some)]
        run = Run(groups, torch.full((len(some),), length, device=model.device))
        with torch.inference_mode():
            logits = model.network.run(tokens.expand(len(some), -1), run, last=target.shape[1])  # [rows, new, vocab]
            if (row := first_not_finite(logits)) is not None:
                place = first + row
                made = make(distinct[place - 1]) if place else ()
                raise blamed(model, tokens, length, [*acting_on(model), *made])
            losses = cross_entropy(logits, target.expand(len(some), -1))  # [rows, new]
        measured += (-losses.sum(1)).tolist()
    by_value = dict(zip(distinct, measured[1:], strict=True))
    return DoseResponse(word, list(map(float, values)), [by_value[float(value)] for value in values], measured[0])
