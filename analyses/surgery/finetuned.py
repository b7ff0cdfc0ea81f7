"""Operations that are measured on a task: experts for a domain, DARE, and layers without a causal mask."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import workbench as wb
from analyses.shared.report import say
from analyses.surgery.bench import Bench
from analyses.surgery.tasks import accuracy, corpora_of, kinds
from workbench.surgery.finetuning.labelling import Labelled, label_scores, punctuation
from workbench.surgery.operations.experts import keep_neurons, masks_by_domain, neuron_use
from workbench.surgery.search.fitness import DenseKL


def experts(bench: Bench) -> dict[str, dict[str, float]]:
    """KL of each domain's expert on texts of each domain, by expert and by domain of the texts."""
    plan, model = bench.plan, bench.model
    halves = {name: corpus.split(0.5, plan.seed) for name, corpus in corpora_of(plan.domains).items()}

    def measure() -> dict[str, dict[str, float]]:
        uses = {name: neuron_use(model, half[0], seed=plan.seed) for name, half in halves.items()}
        uses["all"] = sum(uses.values()) / len(uses)  # type: ignore[assignment]
        tests = {name: DenseKL(model, half[1], plan.stories // 2) for name, half in halves.items()}
        costs: dict[str, dict[str, float]] = {}
        for name, mask in masks_by_domain(uses, plan.keep).items():
            module = keep_neurons(model, mask, of=name).model.network.module
            costs[name] = {other: test.costs(module).kl for other, test in tests.items()}
            say(f"expert of {name}: {costs[name]}")
        return costs

    return bench.notes.get("experts", measure)


def dare(bench: Bench) -> dict[str, Any]:
    """Accuracy at naming the kind of a text: the model's, a fine-tuned sibling's, and the sibling's after DARE."""
    plan, model = bench.plan, bench.model
    learn, test = kinds(plan.kinds, plan.kind_tokens, plan.kind_texts, plan.seed)

    @functools.cache
    def sibling() -> wb.surgery.Child:
        how: dict[str, Any] = {"tokens": plan.tune_tokens, "lr": plan.tune_lr, "context": plan.kind_tokens + 8}
        return wb.surgery.heal(model, learn, batch=8, folder=bench.notes.file.parent / "healed" / "kinds", **how)

    scores: dict[str, Any] = {"texts": len(test.texts), "chance": 1 / len(test.names), "drops": []}
    scores["base"] = bench.notes.get("kinds: base", lambda: accuracy(model, test))
    scores["tuned"] = bench.notes.get("kinds: tuned", lambda: accuracy(sibling().model, test))
    for p in plan.drops:
        for rescale in (True, False) if p else (True,):
            seeds = (0, 1) if p == 0.9 else (0,)
            for seed in seeds:
                share = bench.notes.get(
                    f"kinds: {p} {rescale} {seed}",
                    lambda p=p, rescale=rescale, seed=seed: accuracy(
                        wb.surgery.dare(model, sibling(), p, rescale=rescale, seed=seed).model, test
                    ),
                )
                scores["drops"].append({"p": p, "rescale": rescale, "seed": seed, "accuracy": share})
                say(f"DARE, p = {p}, {'with' if rescale else 'without'} rescaling: {share:.3f}")
    return scores


def labels(bench: Bench) -> dict[str, Any]:
    """Scores at labelling the marks behind words after the same fine-tune, by the layers without a causal mask."""
    plan, n = bench.plan, bench.model.network.n_layers
    groups = {"no layer": [], "first half": range(n // 2), "last half": range(n // 2, n), "all layers": range(n)}
    learn = punctuation(bench.stories.split(0.2, plan.seed)[0], plan.label_words)
    test = punctuation(bench.stories.split(0.2, plan.seed)[1], plan.label_words)
    test = Labelled(test.words[: plan.label_texts], test.labels[: plan.label_texts], test.names)
    scores = {}
    for name, layers in groups.items():

        def measure(layers: Sequence[int] = tuple(layers), name: str = name) -> dict[str, Any]:
            start = wb.surgery.remove_causal_mask(bench.model, list(layers)) if layers else bench.model
            folder = bench.notes.file.parent / "healed" / f"labels {name}"
            how: dict[str, Any] = {"tokens": plan.label_tokens, "lr": plan.full_lr, "folder": folder}
            tuned = wb.surgery.heal(start, learn, context=96, batch=2, only=r"layers\.\d+\.|norm", **how)
            return label_scores(tuned.model, test).to_dict()

        scores[name] = bench.notes.get(f"labels: {name}", measure)
        say(f"labels, {name}: F1 {scores[name]['f1']:.3f}, accuracy {scores[name]['accuracy']:.3f}")
    return scores
