"""The model, the texts, and the table of what each operation costs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import workbench as wb
from analyses.shared.report import Notes, say
from analyses.surgery.plan import Plan
from workbench.surgery.search.fitness import DenseKL


class Bench:
    """The model, the texts, and the rows measured so far.

    Args:
        model: the model that is operated on.
        real: articles; one half is calibrated on, the other measured on.
        plan: the settings.
        notes: where results are kept.
    """

    def __init__(self, model: wb.model.LanguageModel, real: wb.Corpus, plan: Plan, notes: Notes):
        self.model, self.real, self.plan, self.notes = model, real, plan, notes
        self.seen, self.unseen = real.split(0.5, plan.split)
        self.stories = wb.Corpus.load("stories")
        self.rows: list[dict[str, Any]] = []

    @functools.cached_property
    def fitness(self) -> DenseKL:
        """KL on passages from the half that is calibrated on."""
        tokens, context = self.plan.calibration_searches, self.plan.window
        return DenseKL(self.model, self.seen.passages(), tokens, context=context)

    @functools.cached_property
    def tests(self) -> dict[str, DenseKL]:
        """KL on the texts that nothing is chosen on, by name."""
        return {
            "articles": DenseKL(self.model, self.unseen, self.plan.test, context=self.plan.context, seed=1),
            "stories": DenseKL(self.model, self.stories, self.plan.stories, context=self.plan.context, seed=1),
        }

    @functools.cached_property
    def many(self) -> DenseKL:
        """KL on more tokens of the half that is measured on, for the sets that searches find."""
        tokens, context = self.plan.test_searches, self.plan.context
        return DenseKL(self.model, self.unseen.passages(), tokens, context=context, seed=2)

    def costs(self, module: Any) -> dict[str, float]:
        """KL and perplexity on both texts; the module None stands for the unchanged model."""
        costs = {}
        for name, test in self.tests.items():
            measured = test.costs(module)
            costs |= {f"kl_{name}": measured.kl, f"perplexity_{name}": measured.perplexity}
        return costs

    def row(self, operation: str, setting: str, budget: str, make: Callable[[], tuple[Any, dict[str, Any]]]) -> None:
        """Measure one changed model and append its row; `make` returns its plain module and more entries of the row."""

        def measure() -> dict[str, Any]:
            module, entries = make()
            return entries | self.costs(module)

        measured = self.notes.get(f"{operation}: {setting}", measure)
        self.rows.append({"operation": operation, "setting": setting, "budget": budget} | measured)
        kl, perplexity = measured["kl_articles"], measured["perplexity_articles"]
        say(f"{operation}, {setting}: KL {kl:.4f}, perplexity {perplexity:.2f}")

    def child(self, make: Callable[[], wb.surgery.Child]) -> Callable[[], tuple[Any, dict[str, Any]]]:
        """The argument `make` of `row` for an operation that returns a child."""
        return lambda: (make().model.network.module, {})


def heal(bench: Bench, child: wb.surgery.Child | wb.model.LanguageModel, name: str, **how: Any) -> wb.surgery.Child:
    """The child after a short fine-tune on the half that is calibrated on; of low rank unless `how` sets it."""
    plan = bench.plan
    how = {"rank": plan.heal_rank, "tokens": plan.heal_tokens, "lr": plan.heal_lr, "batch": plan.heal_batch} | how
    folder = bench.notes.file.parent / "healed" / name
    return wb.surgery.heal(child, bench.seen, context=plan.context, folder=folder, **how)
