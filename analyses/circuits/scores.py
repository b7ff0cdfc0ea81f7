"""Scores of every method against the circuit that patching finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from analyses.circuits.plan import Plan
from workbench.circuits import evaluate_scores, roc_curve, strongest_components


def judged_methods(task: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Scores of all methods on one task, given what was measured of it: nodes, edges, ROC curves, time."""
    circuit = strongest_components(torch.tensor(task["patch"]["heads"]), plan.share)
    nodes = _nodes(task, circuit, plan)
    effects = torch.tensor(task["edges"]["patched"]["effects"])
    edges = strongest_components(effects, plan.share)
    by_eap = [evaluate_scores(torch.tensor(task["edges"]["eap"]["scores"]), edges).to_dict()]
    by_pairs = [evaluate_scores(torch.tensor(one["scores"]), edges).to_dict() for one in task["edges"]["discrete"]]
    ten = {row["method"]: row for row in nodes if row["pairs"] == 10}
    curves = {
        trial["method"]: roc_curve(torch.tensor(trial["heads"]), circuit)
        for trial in task["trials"]
        if trial["pairs"] == 10 and trial["seed"] == 0
    }
    return {
        "nodes": nodes,
        "edges": [{"method": "EAP", **_spread(by_eap)}, {"method": "discrete", **_spread(by_pairs)}],
        "curves": curves,
        "behind attribution": ten["attribution"]["auc"] - ten["discrete"]["auc"],
        "of patching's time": ten["discrete"]["cpu"] / (task["patch"]["cpu"] * 10 / task["patch"]["examples"]),
    }


def _nodes(task: dict[str, Any], circuit: torch.Tensor, plan: Plan) -> list[dict[str, Any]]:
    """Scores of the heads: the mean over trials for each method and number of pairs, then the other ablations."""
    by_method: dict[tuple[str, int], list[dict[str, float]]] = {}
    for trial in task["trials"]:
        scores = evaluate_scores(torch.tensor(trial["heads"]), circuit).to_dict()
        scores |= {"seconds": trial["seconds"], "cpu": trial["cpu"]}
        above = torch.tensor(trial["heads"]) > 0
        scores |= {"missed": float((~above)[circuit].double().mean()), "false": float(above[~circuit].double().mean())}
        by_method.setdefault((trial["method"], trial["pairs"]), []).append(scores)
    nodes = [{"method": method, "pairs": pairs, **_spread(trials)} for (method, pairs), trials in by_method.items()]
    for method in ("mean", "zero", "resample"):
        scores = evaluate_scores(torch.tensor(task[method]["heads"]).abs(), circuit).to_dict()
        scores |= {"seconds": task[method]["seconds"], "cpu": task[method]["cpu"]}
        nodes.append({"method": method, "pairs": plan.ablated, **_spread([scores])})
    return nodes


def _spread(trials: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over trials, with the standard deviation of the AUC."""
    means = {name: sum(one[name] for one in trials) / len(trials) for name in trials[0]}
    deviation = torch.tensor([one["auc"] for one in trials]).std(correction=0)
    return means | {"deviation": float(deviation), "trials": len(trials)}
