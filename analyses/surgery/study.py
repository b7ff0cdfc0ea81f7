"""What every operation of surgery costs the default model: budget against perplexity and KL, beside the papers' claims.

Everything is calibrated, searched and healed on one half of a text's articles, and measured on the other half and on
bundled stories. The claims are those of the papers of the operations; a rule in each row decides whether a claim holds
at this size.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import workbench as wb
from analyses.shared.report import Notes, provenance
from analyses.shared.study import Outcome, Study
from analyses.shared.tiny_model import byte_tokenizer, tiny_llama
from analyses.surgery.bench import Bench
from analyses.surgery.claims import claims
from analyses.surgery.compression import activations, heads, pruning, rounding
from analyses.surgery.finetuned import dare, experts, labels
from analyses.surgery.page import write_page
from analyses.surgery.plan import SMALLEST, Plan
from analyses.surgery.rows import published_rows
from analyses.surgery.skipping import healed_skipping, skipping
from workbench.surgery.operations.matrices import matrices

FORMAT = 1
"""Format of the notes; a new number measures everything anew."""


def experiment(model: wb.model.LanguageModel, real: wb.Corpus, plan: Plan, folder: Path) -> dict[str, Any]:
    """Results of all operations; an interrupted run resumes from its notes."""
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, real.hash, asdict(plan)])
    bench = Bench(model, real, plan, notes)
    plain = notes.get("plain", lambda: {f"perplexity_{n}": t.costs().perplexity for n, t in bench.tests.items()})
    results: dict[str, Any] = {"plain": plain, "dare": dare(bench)}
    for operation in (rounding, pruning, heads, activations):
        operation(bench)
    results |= {"experts": experts(bench), "labels": labels(bench)}
    for operation in (skipping, healed_skipping):
        operation(bench)
    results["rows"] = bench.rows
    results["matrices"] = len(matrices(model))
    return results | {"provenance": provenance(model, plan.seed, text=real.hash, plan=asdict(plan))}


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """All results, and the papers' claims with their verdicts."""
    return {**results, "claims": [asdict(one) for one in claims(results)]}


def run(settings: Namespace) -> Outcome:
    """Measure, and write the report."""
    real = wb.Corpus.load(settings.real or "stories")
    if settings.smallest:
        plan, real = SMALLEST, real.take(40)
        tokenizer = byte_tokenizer(real, 300)
        model = wb.load_model(tiny_llama(tokenizer), tokenizer=tokenizer)
    else:
        plan, model = Plan(), wb.load_model()
    results = experiment(model, real, plan, settings.out)
    return Outcome(results, summary(results), write_page(settings.out, results))


STUDY = Study(run, published_rows, shared=("real",))
