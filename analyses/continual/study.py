"""Träuble et al., "Discrete Key-Value Bottleneck" (2022, arXiv 2207.11240): learning classes one after another.

The bundled corpus holds 24 kinds of text (letters, poems, news, code, …). A learner sees the kinds one after another,
all texts of one before any of the next, without a mark where a kind ends; the test is to tell all kinds apart. The
encoder is the model's residual stream, the mean over a text's first tokens, and stays frozen. Baselines learn in the
same order: a linear probe and an MLP. Keys are learned without labels. The learning rate of each learner is the best
of a few, chosen on texts that are neither learned from nor tested on: once for the order, once for all kinds mixed.
"""

from __future__ import annotations

import functools
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import workbench as wb
from analyses.continual.learners import AS_MIXED, COLOURS, MIXED, ORDERED, POINT, SMALLEST, Plan, Trial
from analyses.continual.page import means, write_page
from analyses.continual.rows import published_rows
from analyses.shared.corpus import texts_and_kinds
from analyses.shared.report import Notes, provenance, say
from analyses.shared.study import Outcome, Study
from workbench.core.files import replacing

FORMAT = 1
"""Format of the notes; a new number measures everything anew."""


@torch.inference_mode()
def encode(model: wb.model.LanguageModel, texts: Sequence[str], tokens: int) -> Tensor:
    """Encodings `[texts, d_model]`: the mean of the residual stream over a text's first tokens.

    The first token is left out, since it is an attention sink.
    """
    rows = []
    for number, text in enumerate(texts):
        ids = model.to_tokens(text)[:, :tokens]
        rows.append(model.capture(ids, [POINT])[POINT][0, 1:].mean(0))
        if number % 500 == 0:
            say(f"Read {number:,} of {len(texts):,} texts")
    return torch.stack(rows)


def encoded_texts(model: wb.model.LanguageModel, texts: Sequence[str], tokens: int, folder: Path) -> Tensor:
    """Encodings of the texts `[texts, d_model]`, read from the folder if it holds them."""
    file = folder / f"encoded-{model.hash[:12]}-{tokens}-{len(texts)}.safetensors"
    if not file.exists():
        encodings = encode(model, texts, tokens)
        with replacing(file, owned=True) as temporary:
            save_file({"x": encodings}, temporary)
    return load_file(file)["x"]


def experiment(
    model: wb.model.LanguageModel, plan: Plan, folder: Path, texts: Sequence[str], kinds: Sequence[str]
) -> dict[str, Any]:
    """All learners, orders and seeds, on texts of these kinds; an interrupted run resumes from its notes."""
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, asdict(plan), len(texts)])
    x = encoded_texts(model, texts, plan.tokens, folder / "work")
    results: dict[str, Any] = {"learners": {}, "kinds": sorted(set(kinds)), "texts": len(x)}
    for seed in range(plan.seeds):
        trial = Trial(x, kinds, plan, seed)
        for name in COLOURS:
            for way, run in best_runs(trial, name, notes).items():
                say(f"seed {seed}: {name}, {way}: {run['test']:.3f} (rate {run['rate']:g})")
                results["learners"].setdefault(name, {}).setdefault(way, []).append(run)
    return results | {"provenance": provenance(model, 0, plan=asdict(plan), hook_point=POINT)}


def best_runs(trial: Trial, name: str, notes: Notes) -> dict[str, dict[str, Any]]:
    """A learner's run at its best learning rate, by way of learning."""
    plan = trial.plan
    rates = plan.rates if name == "key-value bottleneck" else plan.probe_rates
    runs = {
        way: {
            rate: notes.get(
                f"{trial.seed} {name} {way} {rate:g}", functools.partial(trial.run, name, rate, way == MIXED)
            )
            for rate in rates
        }
        for way in (ORDERED, MIXED)
    }
    best = {
        way: max(by_rate, key=lambda rate, by_rate=by_rate: by_rate[rate]["choose"]) for way, by_rate in runs.items()
    }
    chosen = {way: runs[way][best[way]] | {"rate": best[way]} for way in runs}
    chosen[AS_MIXED] = runs[ORDERED][best[MIXED]] | {"rate": best[MIXED]}
    return chosen


def some_of_each(texts: Sequence[str], kinds: Sequence[str], names: int, count: int) -> tuple[list[str], list[str]]:
    """The first `count` texts of the first `names` kinds, and their kinds."""
    chosen = sorted(set(kinds))[:names]
    rows = [[row for row, kind in enumerate(kinds) if kind == name][:count] for name in chosen]
    places = [row for of_kind in rows for row in of_kind]
    return [texts[row] for row in places], [kinds[row] for row in places]


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures worth citing: mean and standard deviation of each learner's accuracy."""
    return {key: results[key] for key in ("provenance", "kinds", "texts")} | {"accuracy": means(results)}


def run(settings: Namespace) -> Outcome:
    """Measure, and write the report."""
    texts, kinds = texts_and_kinds()
    plan = replace(Plan(), seeds=settings.seeds)
    if settings.smallest:
        plan, (texts, kinds) = SMALLEST, some_of_each(texts, kinds, names=3, count=10)
    results = experiment(wb.load_model(), plan, settings.out, texts, kinds)
    return Outcome(results, summary(results), write_page(settings.out, results))


def add_options(parser: ArgumentParser) -> None:
    """Add the number of orders."""
    parser.add_argument("--seeds", type=int, default=Plan.seeds, help=f"orders of the kinds (default: {Plan.seeds})")


STUDY = Study(run, published_rows, add_options=add_options)
