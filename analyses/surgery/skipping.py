"""Sublayers left out, found by several searches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import workbench as wb
from analyses.surgery.bench import Bench, heal
from workbench.surgery.operations.sublayers import SublayerDropping
from workbench.surgery.search.evopress import search


def skipping(bench: Bench) -> None:
    """Add the rows of skipped sublayers.

    The central budget has four searches, some also on other halves and with other numbers of positions. EvoPress also
    searches at other budgets, and whole layers at the central one.
    """
    plan, centre = bench.plan, bench.plan.centre
    choices = {whole: SublayerDropping(bench.model, whole=whole) for whole in (False, True)}

    def find(
        bench: Bench, share: float, method: str, passes: int, *, may: int = 0, seed: int = 0, whole: bool = False
    ) -> int:
        """Measure the set that a search finds within `passes` positions, or `may` if set; the positions it took."""
        parts, what = choices[whole], "layers" if whole else "sublayers"

        def make() -> tuple[Any, dict[str, Any]]:
            budget = sum(costs[0] for costs in parts.costs) * (1 - round(share * len(parts.parts)) / len(parts.parts))
            result = search(parts, bench.fitness, budget, method, passes=may or passes, seed=seed)
            row = {"skipped": list(result.chosen), "token_forwards": result.token_forwards}
            row |= {
                "kl_calibration": result.kl,
                "evaluations": result.evaluations,
                "share": share,
                "method": method,
                "halves": bench.plan.split,
            }
            row |= {"passes": passes, "kl_many": bench.many(parts.module), "kl_seen": bench.fitness(parts.module)}
            return parts.module, row

        name = f"{share:.0%}, {method}, {passes:,} positions"
        name += f", halves {bench.plan.split}" if bench.plan.split != plan.split else ""
        bench.row(f"skip {what}", name + (f", seed {seed}" if seed else ""), f"{1 - share:.0%} of {what}", make)
        return bench.rows[-1]["token_forwards"]

    for split in (plan.split, *plan.more_splits):
        here = bench
        if split != plan.split:
            here = Bench(bench.model, bench.real, replace(plan, split=split), bench.notes)
            here.rows = bench.rows
        for passes in plan.passes:
            took = find(here, centre, "greedy", passes)
            for seed in range(plan.searches):
                find(here, centre, "evopress", passes, may=took, seed=seed)
        find(here, centre, "ranked", plan.passes[0])
    find(bench, centre, "uniform", plan.passes[0])
    for share in plan.shares:
        if share != centre:
            find(bench, share, "evopress", plan.fewer_passes)
    find(bench, centre, "evopress", plan.fewer_passes, whole=True)


def healed_skipping(bench: Bench) -> None:
    """Add the row of EvoPress's best set, by its KL on the calibration text, with most positions, healed."""
    plan = bench.plan
    same = {"operation": "skip sublayers", "method": "evopress", "share": plan.centre}
    same |= {"halves": plan.split, "passes": plan.passes[-1]}
    skipped = [row for row in bench.rows if same.items() <= row.items()]
    best = min(skipped, key=lambda row: row["kl_calibration"])

    def make() -> wb.surgery.Child:
        edits = [wb.interventions.RemoveSublayer(int(one.split(".")[0]), one.split(".")[1]) for one in best["skipped"]]
        return heal(bench, wb.bake(bench.model, edits), "skipped")

    bench.row("skip sublayers", f"{best['setting']}, healed", best["budget"], bench.child(make))
