"""Luo et al., "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity" (2024, arXiv 2411.02335).

Small transformers with gated MLPs learn the bundled stories, with ReLU and with SiLU, at several widths and depths; as
a third arm with PolyReLU (Zhuo et al. 2024, arXiv 2411.03884) and with the series activation of PanGu-π (Wang et al.
2023, arXiv 2312.17276). During training the share of neurons is measured that can't be left out before perplexity
rises by 1%. Does it fall or rise with the data, as in the paper's laws, and does it depend on shape and on size?

The full run takes about an hour on one core. A training's points are kept once it has ended; an interrupted training
begins anew.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import workbench as wb
from analyses.shared.report import Notes, provenance, say
from analyses.shared.study import Outcome, Study
from analyses.shared.tiny_model import byte_tokenizer
from analyses.sparsing_law.fits import fits, verdicts
from analyses.sparsing_law.models import untrained
from analyses.sparsing_law.page import write_page
from analyses.sparsing_law.plan import BASE, SMALLEST, Plan, Shape
from analyses.sparsing_law.rows import published_rows
from workbench.corpus import Corpus

FORMAT = 1
"""Format of the notes; a new number runs everything anew."""


def train_and_measure(name: str, plan: Plan, corpora: tuple[Corpus, Corpus], words: Any) -> dict[str, Any]:
    """Train one model at a constant learning rate, and measure it at the points of the plan.

    Args:
        name: `{activation}-{shape}-{number of the training}`.
        plan: the settings.
        corpora: texts to learn from, and texts to measure on.
        words: the tokenizer.
    """
    activation, shaped, number = name.split("-")
    shape = Shape(*map(int, shaped.split("x")))
    seed = plan.seed + int(number)
    module = untrained(activation, shape, plan, seed)
    model = wb.load_model(module, tokenizer=words)  # shares the weights that are trained
    optimiser = torch.optim.AdamW(module.parameters(), plan.lr, betas=(0.9, 0.95), weight_decay=0.1)
    batches = corpora[0].batches(model, plan.context, plan.batch, seed=seed, repeat=True)
    left, seen, points = list(plan.points), 0, []
    module.train()
    for step in itertools.count(1):
        batch = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = plan.lr * min(1.0, step / plan.warmup)
        wanted = batch.tokens.masked_fill(~batch.content, -100)
        loss = module(input_ids=batch.tokens, attention_mask=batch.mask.long(), labels=wanted).loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        seen += int(batch.content.sum())
        if seen >= left[0]:
            points.append({"tokens": seen} | measured(model, corpora[1], plan))
            say(f"{name}: {seen:,} tokens, loss {points[-1]['loss']:.4f}, active {points[-1]['active']:.4f}")
            left.pop(0)
        if not left:
            break
    weights = sum(one.numel() for one in module.model.layers.parameters())
    return {"activation": activation, **asdict(shape), "ratio": shape.ratio, "weights": weights, "points": points}


def measured(model: wb.model.LanguageModel, corpus: Corpus, plan: Plan) -> dict[str, Any]:
    """The share of neurons that are needed, and the loss, on held-out texts."""
    sparsity = wb.measure_sparsity(
        model,
        corpus,
        plan.p,
        plan.measured,
        baselines=(),
        context=plan.context,
        batch=16,
        seed=plan.seed,
        resamples=200,
    )
    low, high = sparsity.reported.intervals["sparsity"]
    nothing, _ = wb.sparsity.measure_at_thresholds(
        model, 0.0, corpus, plan.measured // 2, context=plan.context, batch=16, seed=plan.seed, resamples=1
    )
    return {
        "active": 1 - sparsity.sparsity,
        "low": 1 - high,
        "high": 1 - low,
        "nonzero": 1 - nothing.sparsity,
        "cett": sparsity.cett,
        "rise": sparsity.ppl_increase,
        "loss": sparsity.reported.ce_plain,
        "passes": sparsity.passes,
    }


def names(plan: Plan) -> list[str]:
    """Names of all trainings: activation, shape, number; the most informative first."""
    base = str(BASE) if str(BASE) in plan.shapes else plan.shapes[0]
    trainings = [f"{activation}-{base}-0" for activation in ("relu", "silu", *plan.learned)]
    trainings += [
        f"{activation}-{shape}-0" for shape in plan.shapes if shape != base for activation in ("relu", "silu")
    ]
    return trainings + [f"{activation}-{base}-{n}" for n in range(1, plan.seeds) for activation in ("relu", "silu")]


def experiment(folder: Path, plan: Plan) -> dict[str, Any]:
    """All trainings, the fitted laws, and verdicts on the paper's findings."""
    corpus = Corpus.load("stories")
    corpora = corpus.split(0.1, plan.seed)
    words = byte_tokenizer(corpora[0], plan.vocabulary)
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, asdict(plan), corpus.hash])
    runs = {
        name: notes.get(name, lambda name=name: train_and_measure(name, plan, corpora, words)) for name in names(plan)
    }
    for name, one in runs.items():
        one["fits"] = fits([point["tokens"] for point in one["points"]], [point["active"] for point in one["points"]])
        best = min(one["fits"], key=lambda law: one["fits"][law]["aic"])
        say(f"{name}: ends at {one['points'][-1]['active']:.4f}, best law {best}")
    model = wb.load_model(untrained("relu", BASE, plan, plan.seed), tokenizer=words)
    source = provenance(model, plan.seed, plan=asdict(plan), corpus=corpus.hash)
    return {"provenance": source, "runs": runs, "findings": verdicts(runs)}


def run(settings: Namespace) -> Outcome:
    """Measure, and write the report."""
    torch.set_num_threads(1)  # the models are so small that a second thread costs more than it gains
    results = experiment(settings.out, SMALLEST if settings.smallest else Plan())
    return Outcome(results, results, write_page(settings.out, results))


STUDY = Study(run, published_rows)
