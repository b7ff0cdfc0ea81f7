"""The request for a task's heads, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.circuits import ScoreEvaluation, Task, TaskResult
    from workbench.model import LanguageModel

OWN = "own prompts"
METHODS = {
    "discrete": "discrete SAE",
    "attribution": "attribution patching",
    "patch": "patching",
    "mean": "mean ablation",
    "zero": "zero ablation",
    "resample": "resample ablation",
}
"""The titles of the methods, quick ones first; each of the others runs the model once for every head and prompt."""
TRUTH = "patch"


@dataclass(frozen=True)
class CircuitRequest:
    """Everything that the scores depend on."""

    source: str
    name: str
    """A generated task's name, or `OWN`."""
    pairs: int
    seed: int
    own: str
    """JSON lines of the user's own prompts; empty for a generated task."""
    methods: tuple[str, ...]
    stamp: str
    """Changes when the model does."""

    @property
    def key(self) -> tuple[str, ...]:
        """The key of the work's task."""
        which = (self.own,) if self.name == OWN else (str(self.pairs),)
        return ("circuits", self.source, self.name, *which, str(self.seed), *self.methods, self.stamp)

    def task(self, model: LanguageModel) -> Task:
        """The task with its prompts; errors as in `from_jsonl` and the generators."""
        from workbench.circuits import TASKS, from_jsonl

        if self.name == OWN:
            return from_jsonl(self.own, OWN)
        return TASKS[self.name](model, self.pairs, self.seed)


@dataclass
class CircuitOutcome:
    """A task, how well the model does it, and the scores of its heads."""

    task: Task
    result: TaskResult
    scores: dict[str, Any] = field(default_factory=dict)
    """By method, `[layer, head]`: signed effects in nats, or numbers of codes."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def circuit(self) -> Any:
        """Bool `[layer, head]`: the tenth of the heads with the largest effects of patching; None without patching."""
        from workbench.circuits import strongest_components

        return strongest_components(self.scores[TRUTH]) if TRUTH in self.scores else None

    def judged(self) -> dict[str, ScoreEvaluation]:
        """The judgement of every other method against patching; empty without patching."""
        from workbench.circuits import evaluate_scores

        circuit = self.circuit
        if circuit is None:
            return {}
        return {name: evaluate_scores(score.abs(), circuit) for name, score in self.scores.items() if name != TRUTH}
