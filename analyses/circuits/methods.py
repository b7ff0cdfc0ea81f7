"""The methods that score heads and edges; each returns its scores with the seconds it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from workbench.circuits import Edge, head_outputs


def timed(measure: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A result with its wall-clock seconds and its processor seconds; other work does not change the latter."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = measure()
    return result, {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def by_ablation(model: wb.model.LanguageModel, task: wb.circuits.Task, method: str) -> dict[str, Any]:
    """Scores by changing every head alone, by one method of `patch_components`."""
    effects, took = timed(lambda: wb.circuits.patch_components(model, task, method, mlps=False))
    return {"heads": effects.heads.tolist(), "plain": effects.plain, "examples": len(task), **took}


def by_gradients(model: wb.model.LanguageModel, task: wb.circuits.Task) -> dict[str, Any]:
    """Scores by attribution patching."""
    effects, took = timed(lambda: wb.circuits.attribution_patching(model, task, mlps=False))
    return {"heads": effects.heads.abs().tolist(), **took}


def by_codes(model: wb.model.LanguageModel, task: wb.circuits.Task, **settings: Any) -> dict[str, Any]:
    """Scores by the discrete autoencoder."""
    circuit, took = timed(lambda: wb.circuits.find_circuit_discrete(model, task.positives, task.corrupted, **settings))
    return {"heads": circuit.heads.tolist(), "loss": circuit.losses[-1], **took}


def by_distance(model: wb.model.LanguageModel, task: wb.circuits.Task) -> dict[str, Any]:
    """Scores without training: the distance between a head's mean outputs on positive and on corrupted prompts."""

    def distances() -> Tensor:
        outputs, count = head_outputs(model, task.positives, task.corrupted)
        return (outputs[:count].mean(0) - outputs[count:].mean(0)).norm(dim=-1)

    scores, took = timed(distances)
    return {"heads": scores.tolist(), **took}


def exchanged(task: wb.circuits.Task) -> wb.circuits.Task:
    """The task with positive and corrupted prompts exchanged: a control, since its circuit does not do the task."""
    return replace(task, positives=task.corrupted, corrupted=task.positives)


def chosen_edges(circuit: Tensor, count: int, seed: int) -> list[Edge]:
    """Edges from lower to higher heads: at most half of them within a circuit `[layer, head]`, the rest from all."""
    chance = torch.Generator().manual_seed(seed)
    layers, heads = circuit.shape
    inside = [tuple(place) for place in circuit.nonzero().tolist()]
    within = [(*one, *other) for one in inside for other in inside if one[0] < other[0]]
    picked = [within[place] for place in torch.randperm(len(within), generator=chance)[: count // 2].tolist()]
    while len(picked) < count:
        low, high = sorted(torch.randint(layers, (2,), generator=chance).tolist())
        one, other = torch.randint(heads, (2,), generator=chance).tolist()
        if low < high and (low, one, high, other) not in picked:
            picked.append((low, one, high, other))
    return sorted(picked)
