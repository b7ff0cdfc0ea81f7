"""Gurnee et al. (2026, transformer-circuits.pub/2026/workspace): one concept takes another's place, here.

The capital of France is Paris. If the stream's coordinates along the lens's vectors of France and of Italy change
places, does the model say Rome? At which layers, and how often would two random directions of the same lengths do so?
Swaps act at one layer and at all positions. A swap has its way where the wanted answer's logit is above that of the
prompt's own answer, and wins where it is the likeliest of all tokens.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from analyses.concept_swap.page import write_page
from analyses.concept_swap.pairs import Pair, read_pairs
from analyses.concept_swap.rows import published_rows
from analyses.concept_swap.swaps import Plan, measure_pair
from analyses.shared.report import Notes, provenance, say
from analyses.shared.study import Outcome, Study
from workbench.evaluation.bootstrap import bootstrap
from workbench.lens import JacobianLens, Lens, LensRecord
from workbench.lens.files import opened

FORMAT = 1
"""Format of the notes; a new number measures everything anew."""


def experiment(
    model: wb.model.LanguageModel,
    lens: JacobianLens,
    pairs: list[Pair],
    plan: Plan,
    folder: Path,
    *,
    others: Sequence[Lens] = (),
) -> dict[str, Any]:
    """All results; an interrupted run resumes from its notes.

    Args:
        model: the model.
        lens: its Jacobian lens.
        pairs: fixed beforehand.
        plan: what is measured.
        folder: where notes go.
        others: lenses whose KL is measured beside.
    """
    about = {**lens.about.fitted_on} if lens.about else {}
    key = [FORMAT, model.hash, about, asdict(plan), [asdict(pair) for pair in pairs]]
    notes = Notes(folder / "work" / "notes.jsonl", key)
    lenses = {"jacobian": lens, "logit": identity(model, lens)}
    rows = []
    for number, pair in enumerate(pairs):
        name = f"{pair.prompt}: {pair.concepts[1]}"
        row = notes.get(name, lambda p=pair, n=number: measure_pair(model, lenses, p, plan, n))
        rows += [] if row is None else [row]
    known = [row for row in rows if row["plain"]["difference"] < 0]
    say(f"{len(rows)} of {len(pairs)} pairs can be asked; the model prefers its own answer in {len(known)}")
    results: dict[str, Any] = {"provenance": provenance(model, plan.seed, plan=asdict(plan), lens=about)}
    results |= {"pairs": len(pairs), "asked": len(rows), "known": len(known), "rows": rows}
    results["by_layer"] = by_layer(known, plan)
    results["chosen"] = chosen(known, plan)
    results["kl"] = [notes.get(f"kl {one.kind}", lambda one=one: divergence(model, one)) for one in [lens, *others]]
    return results


def identity(model: wb.model.LanguageModel, lens: JacobianLens) -> JacobianLens:
    """The logit lens as a Jacobian lens: its vectors are rows of the LM head."""
    assert lens.about is not None
    eye = torch.eye(lens.d_model).expand(len(lens.about.layers), -1, -1)
    return JacobianLens(eye, LensRecord(model.name, model.hash, lens.about.layers))


def by_layer(rows: list[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """Shares of pairs by kind of direction, layer and amount, with 95% intervals over pairs."""
    found = []
    for by in ("jacobian", "logit", "random"):
        for layer in plan.layers:
            for amount in plan.amounts:
                found.append({"by": by, "layer": layer, "amount": amount, **shares(rows, by, layer, amount)})
    return found


def shares(rows: list[dict[str, Any]], by: str, layer: int, amount: float) -> dict[str, Any]:
    """Of pairs: how often a swap has its way, and wins; and the mean change of the logits' difference."""

    def mean(row: dict[str, Any], name: str) -> float:
        own = [one for one in row["swaps"] if (one["by"], one["layer"], one["amount"]) == (by, layer, amount)]
        values = {
            "way": [float(one["difference"] > 0) for one in own],
            "wins": [float(one["says_wanted"]) for one in own],
            "change": [one["difference"] - row["plain"]["difference"] for one in own],
        }[name]
        return sum(values) / len(values)

    names = ("way", "wins", "change")
    if not rows:
        return {name: [0.0, 0.0, 0.0] for name in names}
    sums = {name: torch.tensor([mean(row, name) for row in rows]) for name in names}
    sums["count"] = torch.ones(len(rows))
    estimates = bootstrap(sums, lambda drawn: {name: drawn[name] / drawn["count"] for name in names}, 1000, 0)
    return {name: [float(one.value), *map(float, one.interval)] for name, one in estimates.items()}


def chosen(rows: list[dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """The layer and amount at which most swaps have their way on every other pair, and the shares on the rest."""
    half, rest = rows[::2], rows[1::2]
    settings = [(layer, amount) for layer in plan.layers for amount in plan.amounts]
    best = max(settings, key=lambda one: (shares(half, "jacobian", *one)["way"][0], -one[1]))
    measured = {by: shares(rest, by, *best) for by in ("jacobian", "logit", "random")}
    return {"layer": best[0], "amount": best[1], "pairs": len(rest), **measured}


def divergence(model: wb.model.LanguageModel, lens: Lens) -> dict[str, Any]:
    """KL by layer on the last quarter of the bundled stories, which no lens that ships was fitted on."""
    texts = list(wb.Corpus.load("stories").texts)
    held_out = wb.Corpus(texts[len(texts) * 3 // 4 :], "the last quarter of stories")
    return wb.lens.measure_lens(model, lens, held_out, tokens=2048).to_dict()


def run(settings: Namespace) -> Outcome:
    """Measure, and write the report."""
    model = wb.load_model()
    lens: Any = opened(model, "jacobian") if settings.lens is None else wb.lens.load_lens(settings.lens, model)
    pairs, plan = read_pairs(), Plan(draws=settings.draws, seed=settings.seed)
    if settings.smallest:
        pairs, plan = pairs[:4], Plan(layers=(6, 24), amounts=(2.0,), draws=1, seed=settings.seed)
    others = [] if settings.tuned is None else [wb.lens.load_lens(settings.tuned, model)]
    results = experiment(model, lens, pairs, plan, settings.out, others=others)
    summary = {name: value for name, value in results.items() if name != "rows"}
    return Outcome(results, summary, write_page(settings.out, results))


def add_options(parser: ArgumentParser) -> None:
    """Add the lenses and the number of random draws."""
    parser.add_argument("--lens", help="a Jacobian lens (default: the one that is kept for the model)")
    parser.add_argument("--tuned", help="a tuned lens whose KL is shown beside")
    parser.add_argument("--draws", type=int, default=Plan.draws, help=f"random pairs each (default: {Plan.draws})")


STUDY = Study(run, published_rows, shared=("seed",), add_options=add_options)
