"""O'Neill, Bui, "Sparse Autoencoders Enable Scalable and Reliable Circuit Identification in Language Models" (2024,
arXiv 2405.12522), on a model whose circuits are not published: the truth is patching every head alone.

Three tasks: which heads matter by patching; how well the codes of a small autoencoder find them, beside the gradients
of attribution patching and other ablations; how this varies with the number of examples and the seed; edges against
edges; and the same on models whose circuit is set by hand.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from analyses.circuits.methods import (
    by_ablation,
    by_codes,
    by_distance,
    by_gradients,
    chosen_edges,
    exchanged,
    timed,
)
from analyses.circuits.page import write_page
from analyses.circuits.plan import HANDMADE, L1, PUBLISHED, SMALLEST, Plan
from analyses.circuits.rows import published_rows
from analyses.circuits.scores import judged_methods
from analyses.shared.report import Notes, provenance, say
from analyses.shared.study import Outcome, Study
from workbench.circuits import (
    TASKS,
    edge_attribution_patching,
    evaluate_scores,
    keep_heads,
    patch_edges,
    strongest_components,
)

FORMAT = 1
"""Format of the notes; a new number measures everything anew."""


def measure_task(model: wb.model.LanguageModel, name: str, plan: Plan, notes: Notes) -> dict[str, Any]:
    """Everything about one task: performance, ablations, the circuit, every method's trials, edges."""
    evaluated = TASKS[name](model, plan.evaluated, plan.seed)
    task = evaluated[: plan.truth]
    say(f"{name}: performance")
    measured: dict[str, Any] = {
        "about": evaluated.about,
        "example": [evaluated.positives[0], evaluated.corrupted[0]],
        "right": list(evaluated.answers[0]),
        "wrong": list(evaluated.wrong[0]),
        "done": notes.get(f"{name} done", lambda: wb.circuits.evaluate_task(model, evaluated).to_dict()),
    }
    for method in ("patch", "mean", "zero", "resample"):
        say(f"{name}: {method}")
        some = task if method == "patch" else task[: plan.ablated]
        measured[method] = notes.get(f"{name} {method}", lambda m=method, t=some: by_ablation(model, t, m))
    circuit = strongest_components(torch.tensor(measured["patch"]["heads"]), plan.share)
    measured["circuit"] = circuit.nonzero().tolist()
    kept = [(layer, head) for layer, head in measured["circuit"]]

    def with_heads(alone: bool) -> dict[str, Any]:
        edits = keep_heads(model, evaluated, kept, others=alone)
        return wb.circuits.evaluate_task(model, evaluated, edits).to_dict()

    measured["kept"] = {
        side: notes.get(f"{name} circuit {side}", lambda s=side: with_heads(s == "alone"))
        for side in ("alone", "without")
    }
    measured["trials"] = measure_trials(model, name, plan, notes)
    measured["edges"] = measure_edges(model, name, circuit, plan, notes)
    return measured


def measure_trials(model: wb.model.LanguageModel, name: str, plan: Plan, notes: Notes) -> list[dict[str, Any]]:
    """Scores of every method on its own prompts, by number of pairs and seed."""
    rows = []
    l1 = L1.get(name, 0.02)
    for seed in range(plan.trials):
        for count in plan.counts:
            task = TASKS[name](model, count, 100 + seed)
            methods: dict[str, Callable[[], dict[str, Any]]] = {
                "attribution": lambda t=task: by_gradients(model, t),
                "discrete": lambda t=task, s=seed: by_codes(model, t, seed=s, l1=l1),
                "discrete, centred": lambda t=task, s=seed: by_codes(model, t, seed=s, l1=l1, centred=True),
                "discrete, exchanged": lambda t=task, s=seed: by_codes(model, exchanged(t), seed=s, l1=l1),
                "distance": lambda t=task: by_distance(model, t),
            }
            for method, score in methods.items():
                say(f"{name}: {method}, {count} pairs, seed {seed}")
                scores = notes.get(f"{name} {method} {count} {seed}", score)
                rows.append({"method": method, "pairs": count, "seed": seed, **scores})
    if plan.paper:
        task = TASKS[name](model, plan.paper, 99)
        for seed in range(plan.trials):
            say(f"{name}: the paper's protocol, seed {seed}")
            scores = notes.get(f"{name} paper {seed}", lambda s=seed, t=task: by_codes(model, t, seed=s, l1=l1))
            rows.append({"method": "discrete", "pairs": plan.paper, "seed": seed, **scores})
    return rows


def measure_edges(
    model: wb.model.LanguageModel, name: str, circuit: Tensor, plan: Plan, notes: Notes
) -> dict[str, Any]:
    """Scores of edges by patching each, by edge attribution patching (EAP) and by pairs of codes."""
    edges = chosen_edges(circuit, plan.edges, plan.seed)
    task = TASKS[name](model, plan.truth, plan.seed)
    say(f"{name}: {len(edges)} edges by patching")

    def by_patching() -> dict[str, Any]:
        effects, took = timed(lambda: patch_edges(model, task[: plan.edge_prompts], edges))
        return {"effects": effects.tolist(), **took}

    def by_eap() -> dict[str, Any]:
        effects, took = timed(lambda: edge_attribution_patching(model, task))
        return {"scores": [float(effects[edge].abs()) for edge in edges], **took}

    def by_pairs(seed: int) -> dict[str, Any]:
        other = TASKS[name](model, 10, 100 + seed)
        settings: dict[str, Any] = {"seed": seed, "l1": L1.get(name, 0.02)}
        codes, took = timed(
            lambda: wb.circuits.find_circuit_discrete(model, other.positives, other.corrupted, **settings)
        )
        return {"scores": [float(codes.edges[edge]) for edge in edges], **took}

    return {
        "edges": [list(edge) for edge in edges],
        "patched": notes.get(f"{name} edges", by_patching),
        "eap": notes.get(f"{name} eap", by_eap),
        "discrete": [notes.get(f"{name} pairs {seed}", lambda s=seed: by_pairs(s)) for seed in range(plan.trials)],
    }


def measure_handmade(plan: Plan, notes: Notes) -> list[dict[str, Any]]:
    """Scores on models whose circuit is known: 10 pairs; a seed sets the model, the prompts and the method at once."""

    def measure(kind: str, seed: int, busy: int) -> dict[str, Any]:
        handmade = HANDMADE[kind](seed, distractors=busy)
        model, task = handmade.model, handmade.task(10, seed)
        codes = wb.circuits.find_circuit_discrete(model, task.positives, task.corrupted, seed=seed)
        patched = wb.circuits.patch_components(model, task, mlps=False).heads.abs()
        slopes = wb.circuits.attribution_patching(model, task, mlps=False).heads.abs()
        eap = edge_attribution_patching(model, task).abs()
        up = torch.zeros_like(handmade.edges)
        up[0, :, 1] = True
        return {
            "accuracy": wb.circuits.evaluate_task(model, task).accuracy,
            "discrete": evaluate_scores(codes.heads, handmade.heads).to_dict(),
            "patch": evaluate_scores(patched, handmade.heads).to_dict(),
            "attribution": evaluate_scores(slopes, handmade.heads).to_dict(),
            "discrete edges": evaluate_scores(codes.edges[up], handmade.edges[up]).to_dict(),
            "eap edges": evaluate_scores(eap[up], handmade.edges[up]).to_dict(),
        }

    cases: list[tuple[str, dict[str, Any]]] = [(kind, {"busy": busy}) for kind in HANDMADE for busy in (0, 4, 8)]
    rows = []
    for kind, settings in cases:
        for seed in range(plan.seeds):
            say(f"by hand: {kind} {settings}, seed {seed}")
            scores = notes.get(
                f"set by hand: {kind} {settings} {seed}", lambda k=kind, n=seed, s=settings: measure(k, n, **s)
            )
            rows.append({"kind": kind, "seed": seed, **settings, **scores})
    return rows


def experiment(folder: Path, plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    """All results; an interrupted run resumes from its notes."""
    model = wb.load_model()
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, asdict(plan)])
    results: dict[str, Any] = {"provenance": provenance(model, plan.seed, plan=asdict(plan)), "tasks": {}}
    results["by hand"] = measure_handmade(plan, notes)
    for name in names:
        task = measure_task(model, name, plan, notes)
        results["tasks"][name] = task | {"judged": judged_methods(task, plan), "published": PUBLISHED[name]}
    return results


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures worth citing: all but the scores of single trials."""
    kept = ("about", "example", "right", "wrong", "done", "circuit", "kept", "judged", "published")
    tasks = {name: {key: task[key] for key in kept} for name, task in results["tasks"].items()}
    for name, task in results["tasks"].items():
        tasks[name]["judged"] = {key: value for key, value in task["judged"].items() if key != "curves"}
        tasks[name]["patching"] = {key: task["patch"][key] for key in ("plain", "examples", "seconds", "cpu")}
    return {"provenance": results["provenance"], "by hand": results["by hand"], "tasks": tasks}


def run(settings: Namespace) -> Outcome:
    """Measure, and write the report."""
    plan, tasks = (SMALLEST, list(TASKS)[:1]) if settings.smallest else (Plan(), settings.tasks)
    results = experiment(settings.out, plan, tasks)
    return Outcome(results, summary(results), write_page(settings.out, results))


def add_options(parser: ArgumentParser) -> None:
    """Add the choice of tasks."""
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help="tasks to measure (default: all)")


STUDY = Study(run, published_rows, add_options=add_options)
