"""O'Neill, Bui, "Sparse Autoencoders Enable Scalable and Reliable Circuit Identification in Language Models" (2024,
arXiv 2405.12522), on a model whose circuits nobody has worked out: the truth is patching every head alone.

For three tasks: which heads matter by brute force; how well the codes of a small autoencoder find them, beside the
gradients of attribution patching and other ablations; how that varies with the number of examples and with chance;
edges against edges; and the same on models whose circuit is set by hand.

    python analyses/circuits.py --out reports/circuits
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from circuits_page import write_page
from report import Notes, provenance, say, write_json
from torch import Tensor

import workbench as wb
from workbench.circuits import (
    TASKS,
    Edge,
    edge_attribution_patching,
    evaluate_scores,
    greater_than_model,
    induction_model,
    keep_heads,
    patch_edges,
    roc_curve,
    strongest_components,
)
from workbench.circuits.discrete import head_outputs

FORMAT = 1
"""Of the notes; a new number measures everything anew."""
PUBLISHED: dict[str, dict[str, float | None]] = {
    "indirect object": {"discrete SAE": 0.853, "ten trials": 0.868, "ACDC": 0.635, "HISP": 0.699, "SP": 0.681},
    "greater-than": {"discrete SAE": 0.832, "ten trials": 0.855, "ACDC": 0.832, "HISP": 0.637, "SP": 0.574},
    "docstring": {"discrete SAE": 0.915, "ten trials": 0.869, "ACDC": 0.888, "HISP": 0.885, "SP": 0.672},
}
"""Node ROC AUC in the paper, on GPT-2 small and, for docstrings, a model of four layers of attention."""
L1 = {"docstring": 0.05}
"""The authors' weight of the sparsity, where it is not 0.02."""
HANDMADE: dict[str, Callable[..., Any]] = {"induction": induction_model, "greater-than": greater_than_model}


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    truth: int = 10
    """Pairs of prompts for patching every head."""
    ablated: int = 5
    """Pairs for the other ways of changing every head."""
    counts: tuple[int, ...] = (5, 10, 50)
    """Pairs that methods get."""
    seeds: int = 5
    """Of the models set by hand, their prompts and the methods' chance."""
    trials: int = 3
    """Of the methods on the default model, with prompts and chance of their own; the truth has others."""
    share: float = 0.1
    """Of heads, and of measured edges, that are the circuit."""
    edges: int = 320
    """Pairs of heads whose edge is patched: half of them in the circuit, half drawn from all."""
    edge_prompts: int = 4
    paper: int = 250
    """Pairs of prompts in the paper's protocol, whose codes are counted; ten prompts are learned from."""
    told: int = 50
    """Prompts on which it is told how well the task is done."""
    seed: int = 0


def timed(make: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A result, and the seconds that it took: of the clock, and of the processor, which other work does not change."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = make()
    return made, {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def truth(model: wb.model.LanguageModel, task: wb.circuits.Task, method: str) -> dict[str, Any]:
    """Every head changed alone."""
    found, took = timed(lambda: wb.circuits.patch_components(model, task, method, mlps=False))
    return {"heads": found.heads.tolist(), "plain": found.plain, "examples": len(task), **took}


def by_gradients(model: wb.model.LanguageModel, task: wb.circuits.Task) -> dict[str, Any]:
    """Attribution patching."""
    found, took = timed(lambda: wb.circuits.attribution_patching(model, task, mlps=False))
    return {"heads": found.heads.abs().tolist(), **took}


def by_codes(model: wb.model.LanguageModel, task: wb.circuits.Task, **how: Any) -> dict[str, Any]:
    """The discrete autoencoder."""
    found, took = timed(lambda: wb.circuits.find_circuit_discrete(model, task.positives, task.corrupted, **how))
    return {"heads": found.heads.tolist(), "loss": found.losses[-1], **took}


def exchanged(task: wb.circuits.Task) -> wb.circuits.Task:
    """Positive prompts for corrupted ones: what is found then is not what does the task."""
    return replace(task, positives=task.corrupted, corrupted=task.positives)


def by_distance(model: wb.model.LanguageModel, task: wb.circuits.Task) -> dict[str, Any]:
    """No learning at all: how far a head's mean output on positive prompts is from that on corrupted ones."""

    def far() -> Tensor:
        outputs, count = head_outputs(model, task.positives, task.corrupted)
        return (outputs[:count].mean(0) - outputs[count:].mean(0)).norm(dim=-1)

    found, took = timed(far)
    return {"heads": found.tolist(), **took}


def chosen_edges(circuit: Tensor, count: int, seed: int) -> list[Edge]:
    """Pairs of heads upwards: half of them within a circuit `[layer, head]`, as far as it goes, half from all heads."""
    chance = torch.Generator().manual_seed(seed)
    layers, heads = circuit.shape
    inside = [tuple(place) for place in circuit.nonzero().tolist()]
    mine = [(*one, *other) for one in inside for other in inside if one[0] < other[0]]
    picked = [mine[place] for place in torch.randperm(len(mine), generator=chance)[: count // 2].tolist()]
    while len(picked) < count:
        low, high = sorted(torch.randint(layers, (2,), generator=chance).tolist())
        one, other = torch.randint(heads, (2,), generator=chance).tolist()
        if low < high and (low, one, high, other) not in picked:
            picked.append((low, one, high, other))
    return sorted(picked)


def of_task(model: wb.model.LanguageModel, name: str, plan: Plan, notes: Notes) -> dict[str, Any]:
    """Everything about one task."""
    make = TASKS[name]
    told = make(model, plan.told, plan.seed)
    task = told[: plan.truth]
    say(f"{name}: how well it is done")
    found: dict[str, Any] = {"about": told.about, "example": [told.positives[0], told.corrupted[0]]}
    found["right"], found["wrong"] = list(told.answers[0]), list(told.wrong[0])
    found["done"] = notes.get(f"{name} done", lambda: wb.circuits.evaluate_task(model, told).to_dict())
    for method in ("patch", "mean", "zero", "resample"):
        say(f"{name}: {method}")
        some = task if method == "patch" else task[: plan.ablated]
        found[method] = notes.get(f"{name} {method}", lambda m=method, t=some: truth(model, t, m))
    circuit = strongest_components(torch.tensor(found["patch"]["heads"]), plan.share)
    found["circuit"] = circuit.nonzero().tolist()
    kept = [(layer, head) for layer, head in found["circuit"]]
    found["kept"] = {
        side: notes.get(
            f"{name} circuit {side}",
            lambda s=side: wb.circuits.evaluate_task(
                model, told, keep_heads(model, told, kept, others=s == "alone")
            ).to_dict(),
        )
        for side in ("alone", "without")
    }
    found["trials"] = trials(model, name, plan, notes)
    found["edges"] = of_edges(model, name, circuit, plan, notes)
    return found


def trials(model: wb.model.LanguageModel, name: str, plan: Plan, notes: Notes) -> list[dict[str, Any]]:
    """Every method on prompts of its own, by number of pairs and seed."""
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
            for method, act in methods.items():
                say(f"{name}: {method}, {count} pairs, seed {seed}")
                made = notes.get(f"{name} {method} {count} {seed}", act)
                rows.append({"method": method, "pairs": count, "seed": seed, **made})
    if plan.paper:
        task = TASKS[name](model, plan.paper, 99)
        for seed in range(plan.trials):
            say(f"{name}: the paper's protocol, seed {seed}")
            made = notes.get(f"{name} paper {seed}", lambda s=seed, t=task: by_codes(model, t, seed=s, l1=l1))
            rows.append({"method": "discrete", "pairs": plan.paper, "seed": seed, **made})
    return rows


def of_edges(model: wb.model.LanguageModel, name: str, circuit: Tensor, plan: Plan, notes: Notes) -> dict[str, Any]:
    """Edges by brute force, by EAP and by pairs of codes."""
    edges = chosen_edges(circuit, plan.edges, plan.seed)
    task = TASKS[name](model, plan.truth, plan.seed)
    say(f"{name}: {len(edges)} edges by brute force")

    def by_force() -> dict[str, Any]:
        found, took = timed(lambda: patch_edges(model, task[: plan.edge_prompts], edges))
        return {"effects": found.tolist(), **took}

    def by_eap() -> dict[str, Any]:
        found, took = timed(lambda: edge_attribution_patching(model, task))
        return {"scores": [float(found[edge].abs()) for edge in edges], **took}

    def by_pairs(seed: int) -> dict[str, Any]:
        made = TASKS[name](model, 10, 100 + seed)
        how: dict[str, Any] = {"seed": seed, "l1": L1.get(name, 0.02)}
        found, took = timed(lambda: wb.circuits.find_circuit_discrete(model, made.positives, made.corrupted, **how))
        return {"scores": [float(found.edges[edge]) for edge in edges], **took}

    return {
        "edges": [list(edge) for edge in edges],
        "patched": notes.get(f"{name} edges", by_force),
        "eap": notes.get(f"{name} eap", by_eap),
        "discrete": [notes.get(f"{name} pairs {seed}", lambda s=seed: by_pairs(s)) for seed in range(plan.trials)],
    }


def by_hand(plan: Plan, notes: Notes) -> list[dict[str, Any]]:
    """Models whose circuit is known: 10 pairs, 5 seeds of the model, the prompts and the finder at once."""

    def one(kind: str, seed: int, **how: Any) -> dict[str, Any]:
        made = HANDMADE[kind](seed, **how)
        task = made.task(10, seed)
        found = wb.circuits.find_circuit_discrete(made.model, task.positives, task.corrupted, seed=seed)
        patched = wb.circuits.patch_components(made.model, task, mlps=False).heads.abs()
        slopes = wb.circuits.attribution_patching(made.model, task, mlps=False).heads.abs()
        eap = edge_attribution_patching(made.model, task).abs()
        up = torch.zeros_like(made.edges)
        up[0, :, 1] = True
        return {
            "accuracy": wb.circuits.evaluate_task(made.model, task).accuracy,
            "discrete": evaluate_scores(found.heads, made.heads).to_dict(),
            "patch": evaluate_scores(patched, made.heads).to_dict(),
            "attribution": evaluate_scores(slopes, made.heads).to_dict(),
            "discrete edges": evaluate_scores(found.edges[up], made.edges[up]).to_dict(),
            "eap edges": evaluate_scores(eap[up], made.edges[up]).to_dict(),
        }

    cases: list[tuple[str, dict[str, Any]]] = [(kind, {"busy": busy}) for kind in HANDMADE for busy in (0, 4, 8)]
    rows = []
    for kind, how in cases:
        for seed in range(plan.seeds):
            say(f"by hand: {kind} {how}, seed {seed}")
            made = notes.get(f"set by hand: {kind} {how} {seed}", lambda k=kind, s=seed, h=how: one(k, s, **h))
            rows.append({"kind": kind, "seed": seed, **how, **made})
    return rows


def judged(found: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Every method of a task against its truth."""
    circuit = strongest_components(torch.tensor(found["patch"]["heads"]), plan.share)
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    for trial in found["trials"]:
        said = evaluate_scores(torch.tensor(trial["heads"]), circuit).to_dict()
        said |= {"seconds": trial["seconds"], "cpu": trial["cpu"]}
        above = torch.tensor(trial["heads"]) > 0
        said |= {"missed": float((~above)[circuit].double().mean()), "false": float(above[~circuit].double().mean())}
        rows.setdefault((trial["method"], trial["pairs"]), []).append(said)
    nodes = [{"method": method, "pairs": pairs, **_spread(said)} for (method, pairs), said in rows.items()]
    for method in ("mean", "zero", "resample"):
        said = evaluate_scores(torch.tensor(found[method]["heads"]).abs(), circuit).to_dict()
        said |= {"seconds": found[method]["seconds"], "cpu": found[method]["cpu"]}
        nodes.append({"method": method, "pairs": plan.ablated, **_spread([said])})
    effects = torch.tensor(found["edges"]["patched"]["effects"])
    edges = strongest_components(effects, plan.share)
    of_edges = [
        {"method": "EAP", **_spread([evaluate_scores(torch.tensor(found["edges"]["eap"]["scores"]), edges).to_dict()])}
    ]
    pairs = [evaluate_scores(torch.tensor(one["scores"]), edges).to_dict() for one in found["edges"]["discrete"]]
    of_edges.append({"method": "discrete", **_spread(pairs)})
    ten = {row["method"]: row for row in nodes if row["pairs"] == 10}
    curves = {
        trial["method"]: roc_curve(torch.tensor(trial["heads"]), circuit)
        for trial in found["trials"]
        if trial["pairs"] == 10 and trial["seed"] == 0
    }
    return {
        "nodes": nodes,
        "edges": of_edges,
        "curves": curves,
        "behind attribution": ten["attribution"]["auc"] - ten["discrete"]["auc"],
        "of patching's time": ten["discrete"]["cpu"] / (found["patch"]["cpu"] * 10 / found["patch"]["examples"]),
    }


def _spread(said: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over trials, with the standard deviation of the AUC."""
    means = {name: sum(one[name] for one in said) / len(said) for name in said[0]}
    spread = torch.tensor([one["auc"] for one in said]).std(correction=0)
    return means | {"deviation": float(spread), "trials": len(said)}


def experiment(folder: Path, plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    """Everything, going on from the notes of a run that was broken off."""
    model = wb.load_model()
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, asdict(plan)])
    results: dict[str, Any] = {"provenance": provenance(model, plan.seed, plan=asdict(plan)), "tasks": {}}
    results["by hand"] = by_hand(plan, notes)
    for name in names:
        found = of_task(model, name, plan, notes)
        results["tasks"][name] = found | {"judged": judged(found, plan), "published": PUBLISHED[name]}
    return results


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """What is worth citing: all but the scores of single trials."""
    kept = ("about", "example", "right", "wrong", "done", "circuit", "kept", "judged", "published")
    tasks = {name: {key: found[key] for key in kept} for name, found in results["tasks"].items()}
    for name, found in results["tasks"].items():
        tasks[name]["judged"] = {key: value for key, value in found["judged"].items() if key != "curves"}
        tasks[name]["patching"] = {key: found["patch"][key] for key in ("plain", "examples", "seconds", "cpu")}
    return {"provenance": results["provenance"], "by hand": results["by hand"], "tasks": tasks}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the analysis from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/circuits"), help="folder of the report")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help="tasks to look into")
    parser.add_argument("--summary", type=Path, help="also write the figures worth citing to this JSON file")
    asked = parser.parse_args(arguments)
    results = experiment(asked.out, Plan(), asked.tasks)
    write_json(asked.out / "results.json", results)
    if asked.summary:
        write_json(asked.summary, summary(results), indent=1)
    say(f"Written: {write_page(asked.out, results)}")


if __name__ == "__main__":
    main()
