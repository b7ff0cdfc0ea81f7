"""Measures of codes: which stand for which state, which are dead, and which states share one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import workbench as wb
from analyses.tokfsm.plan import Plan
from workbench.synthetic import StateCounts, capture_at_states, count_codes

LEAST_RECALL = 0.01
"""A code of a state is active on at least this share of the state's visits."""


def dead_codes(counted: StateCounts) -> dict[str, float]:
    """Share of the codes at each hook point that are active on no state."""
    return {point: float((counts.sum(1) == 0).double().mean()) for point, counts in counted.counts.items()}


def state_codes(
    model: wb.model.LanguageModel, plain: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, plan: Plan
) -> dict[str, Any]:
    """For each state the most precise code, and the most precise neuron at the same recall.

    Codes and neurons are chosen on one set of walks, precision and recall are measured on another.
    """
    chosen_on, judged_on = (count_codes(model, machine, walks=plan.walks, seed=plan.seed + n) for n in (31, 32))
    rows = []
    best: dict[int, tuple[float, float, str, int]] = {}
    for point in chosen_on.counts:
        precision, recall = chosen_on.precision(point), chosen_on.recall(point)
        score = torch.where(recall > LEAST_RECALL, precision + 1e-6 * recall, -1.0)
        for state, (value, code) in enumerate(zip(*score.max(0), strict=True)):
            candidate = (float(value), float(recall[code, state]), point, int(code))
            best[state] = max(best.get(state, (-2.0, 0.0, "", 0)), candidate)
    recalls = torch.tensor([best[state][1] for state in range(machine.states)])
    neurons = _neurons(plain, machine, plan, recalls)
    by_place: dict[str, list[float]] = {}
    for state in range(machine.states):
        _, _, point, code = best[state]
        precision = float(judged_on.precision(point)[code, state])
        recall = float(judged_on.recall(point)[code, state])
        rows.append({"state": state, "hook_point": point, "code": code, "precision": precision, "recall": recall})
        rows[-1] |= {"neuron": neurons[state]}
    for point, counts in judged_on.counts.items():
        groups = model.splices[point].groups  # type: ignore[attr-defined]
        precision = judged_on.precision(point).amax(1).view(groups, -1)
        active = counts.sum(1).view(groups, -1).double()
        weighted = (precision * active).sum(1) / active.sum(1).clamp(min=1)
        by_place[point] = weighted.tolist()
    mean = sum(row["precision"] for row in rows) / len(rows)
    of_neurons = sum(row["neuron"]["precision"] for row in rows) / len(rows)
    return {"precision": mean, "neuron_precision": of_neurons, "states": rows, "by_place": by_place}


def _neurons(
    plain: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, plan: Plan, recalls: Tensor
) -> list[dict[str, Any]]:
    """For each state the neuron of the plain model, of either sign, that is most precise at this recall `[states]`."""
    points = [plain.network.neuron_hook_point(layer, "post").name for layer in range(plain.network.n_layers)]

    def read(seed: int) -> tuple[Tensor, Tensor]:
        parts = list(capture_at_states(plain, machine, points, plan.walks, seed=seed))
        values = torch.cat([torch.cat([of_point[point] for point in points], 1) for _, of_point in parts])
        return torch.cat([states for states, _ in parts]), values  # [n], [n, neurons]

    states, values = read(plan.seed + 41)
    later, others = read(plan.seed + 42)
    columns = {sign: (sign * values).T.contiguous().sort(1).values for sign in (1, -1)}  # [neurons, n], ascending
    rows = []
    for state in range(machine.states):
        inside = states == state
        best = (-1.0, 0, 0.0, 1)
        for sign in (1, -1):
            threshold = (sign * values[inside]).quantile(1 - recalls[state].clamp(0, 1), dim=0)  # [neurons]
            active = len(values) - torch.searchsorted(columns[sign], threshold[:, None])[:, 0]  # [neurons]
            hits = (sign * values[inside] >= threshold).sum(0)
            precision = hits.double() / active.clamp(min=1)
            value, neuron = precision.max(0)
            best = max(best, (float(value), int(neuron), float(threshold[neuron]), sign))
        _, neuron, limit, sign = best
        active = sign * others[:, neuron] >= limit
        hits = int((active & (later == state)).sum())
        layer, index = divmod(neuron, others.shape[1] // plain.network.n_layers)
        rows.append(
            {
                "neuron": f"neurons.{layer}.post:{index}",
                "sign": sign,
                "precision": hits / max(int(active.sum()), 1),
                "recall": hits / max(int((later == state).sum()), 1),
            }
        )
    return rows


def divergences(
    model: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, counted: StateCounts
) -> dict[str, dict[str, float]]:
    """Jensen–Shannon divergence (bits) of the successors of two states: pairs that share a code, and all pairs."""
    truth = machine.follows.double() / machine.edges
    middle = (truth[:, None] + truth[None]) / 2

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp(min=1e-12).log2()).sum(-1)

    js = entropy(middle) - (entropy(truth)[:, None] + entropy(truth)[None]) / 2  # [states, states]
    above = torch.ones_like(js).triu(1).bool()
    by_point = {}
    for point, counts in counted.counts.items():
        book = model.splices[point]
        groups = book.groups  # type: ignore[attr-defined]
        modal = counts.view(groups, -1, machine.states).argmax(1)  # [groups, states]
        shared = (modal[:, :, None] == modal[:, None]) & above  # [groups, states, states]
        by_point[point] = {
            "shared": float(js.expand_as(shared)[shared].mean()) if bool(shared.any()) else float("nan"),
            "random": float(js[above].mean()),
            "pairs": int(shared.sum()),
        }
    return by_point
