"""A model's performance on a task, unchanged or under edits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workbench.circuits.errors import TaskError
from workbench.circuits.patching_runs import last_logits
from workbench.circuits.tasks import EncodedTask, Task, encode_task, log_odds
from workbench.core.checks import checked
from workbench.core.display import Shown
from workbench.core.precision import in_float64
from workbench.core.text import counted
from workbench.model.edits import BoundEdit
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class TaskResult(Shown):
    """A model's performance on a task, over all its prompts."""

    examples: int
    logit_difference: float
    """Mean of `log P(right) - log P(wrong)` on the positive prompts, in nats."""
    corrupted: float
    """The same mean on the corrupted prompts, with the same answers."""
    probability_difference: float
    """Mean of `P(right) - P(wrong)` on the positive prompts."""
    accuracy: float
    """Share of the positive prompts on which the likeliest of the right and wrong tokens is right."""
    first: float
    """Share of the positive prompts on which the likeliest of all tokens is right."""
    chance: float
    """Expected accuracy of drawing one of the right and wrong tokens at random."""

    @property
    def at_chance(self) -> bool:
        """Whether drawing at random reaches this accuracy with a probability above 5%."""
        right = round(self.accuracy * self.examples)
        return sum(_binomial(some, self.examples, self.chance) for some in range(right, self.examples + 1)) > 0.05

    @property
    def warning(self) -> str:
        """A sentence or two where there may be no circuit to find; empty elsewhere."""
        return " ".join(filter(None, (self._chance_warning(), self._corrupted_warning())))

    def _chance_warning(self) -> str:
        if not self.at_chance:
            return ""
        numbers = f"{self.accuracy:.0%} right, {self.chance:.0%} by chance, {counted(self.examples, 'prompt')}"
        if self.accuracy == 1:
            return f"These are too few prompts to tell whether the model can do this task ({numbers}); take more."
        return f"The model does this task no better than chance ({numbers}), so there may be no circuit to find."

    def _corrupted_warning(self) -> str:
        if self.corrupted < self.logit_difference:
            return ""
        return (
            f"The corrupted prompts are answered as well as the others ({self.corrupted:.2f} against "
            f"{self.logit_difference:.2f} nats), so patching has no effect; corrupt what the answer depends on."
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {"at_chance": self.at_chance}


@checked(TaskError)
def evaluate_task(model: LanguageModel, task: Task, edits: Sequence[BoundEdit] = ()) -> TaskResult:
    """A model's performance on a task; interventions and splices in force around the call are set aside.

    Args:
        model: the model.
        task: the prompts.
        edits: edits for every run, such as those of `keep_heads`.

    Raises:
        TaskError: a task that does not fit the model.
    """
    return evaluate_encoded(model, encode_task(model, task), edits)


def evaluate_encoded(model: LanguageModel, encoded: EncodedTask, edits: Sequence[BoundEdit] = ()) -> TaskResult:
    """A model's performance on a task in tokens."""
    logits = in_float64(last_logits(model, encoded.tokens, edits))
    corrupted = in_float64(last_logits(model, encoded.corrupted, edits))
    encoded = encoded.to(logits.device)
    difference = log_odds(logits, encoded)
    shares = logits.softmax(1)
    counts = [(ids >= 0).sum(1).double() for ids in (encoded.answers, encoded.wrong)]
    right, wrong = (
        (shares.gather(1, ids.clamp(min=0)) * (ids >= 0)) for ids in (encoded.answers, encoded.wrong)
    )  # [n, most]
    first = (logits.argmax(1, keepdim=True) == encoded.answers).any(1)
    return TaskResult(
        examples=len(logits),
        logit_difference=float(difference.mean()),
        corrupted=float(log_odds(corrupted, encoded).mean()),
        probability_difference=float((right.sum(1) - wrong.sum(1)).mean()),
        accuracy=float((right.amax(1) > wrong.amax(1)).double().mean()),
        first=float(first.double().mean()),
        chance=float((counts[0] / (counts[0] + counts[1])).mean()),
    )


def _binomial(successes: int, trials: int, rate: float) -> float:
    """The probability of this number of successes."""
    return math.comb(trials, successes) * rate**successes * (1 - rate) ** (trials - successes)
