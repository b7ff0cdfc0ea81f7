"""The dose-response experiment: the log-probability of a concept's word against the value its neuron is clamped to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.neuron_decoding.plan import SEED, SITES
from analyses.shared.report import Notes, say, wilson
from workbench.dictionaries.features import Feature
from workbench.interventions.kinds import Clamp
from workbench.model.edits import Group, Run
from workbench.model.language_model import LanguageModel

ROWS = 48
"""Clamped copies of a prompt that run at once."""


def next_word(model: LanguageModel, prompt: str, clamps: Sequence[Clamp], words: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability that the next token is a form of a word, for the plain model and under each clamp alone.

    Args:
        model: the model.
        prompt: a text.
        clamps: one per row.
        words: for each word the tokens that are its forms.

    Returns:
        `[1 + clamps, words + 1]`; the last column is KL(plain ‖ clamped) in nats, the first row the plain model.
    """
    tokens = model.to_tokens(prompt)
    plain: Tensor | None = None
    parts = []
    bound = [[], *(model.bind([clamp]) for clamp in clamps)]
    for first in range(0, len(bound), ROWS):
        batch = bound[first : first + ROWS]
        run = Run([Group(edits, slice(row, row + 1)) for row, edits in enumerate(batch)])
        with torch.inference_mode():
            logits = model.network.run(tokens.expand(len(batch), -1), run, last=1)[:, -1]  # [rows, vocab]
            logprobs = logits.log_softmax(-1)
            plain = logprobs[:1] if plain is None else plain
            kl = (plain.exp() * (plain - logprobs)).sum(-1)
            parts.append(torch.stack([*(logprobs[:, list(ids)].logsumexp(-1) for ids in words), kl], -1))
    return torch.cat(parts)


def measure_dose(
    model: LanguageModel, plan: dict[str, Any], concepts: dict[str, Any], ids: dict[str, list[int]], notes: Notes
) -> dict[str, Any]:
    """The dose-response of each concept at every site, beside that of random neurons of the same layer."""
    dose, by_layer = plan["dose"], {}
    for concept, row in concepts.items():
        by_layer.setdefault(row["layer"], []).append(concept)
    n_layers, measured = len(by_layer), {}
    for number, (layer, here) in enumerate(sorted(by_layer.items())):
        for site in SITES:
            say(f"Dose-response, layer {layer} ({number + 1} of {n_layers}), {site}")
            indices = {concept: concepts[concept]["index"] for concept in here}
            make = partial(dose_in_layer, model, dose, f"neurons.{layer}.{site}", indices, ids)
            measured[layer, site] = notes.get(f"dose/{layer}/{site}", make)
    return {
        concept: {site: dose_of(concept, list(concepts), dose, measured[row["layer"], site]) for site in SITES}
        for concept, row in concepts.items()
    }


def dose_in_layer(
    model: LanguageModel, dose: dict[str, Any], neurons: str, indices: dict[str, int], ids: dict[str, list[int]]
) -> dict[str, Any]:
    """Mean change of every word's log-probability, and mean KL, over the prompts: `[values][words + 1]` per neuron.

    Args:
        model: the model.
        dose: the plan for this experiment.
        neurons: where to clamp, `neurons.{layer}.{site}`.
        indices: the neuron of each concept that has its own in this layer.
        ids: the tokens that are forms of each concept's word.
    """
    _, layer, site = neurons.split(".")
    width = model.network.neuron_hook_point(int(layer), site).width
    others = [index for index in range(width) if index not in indices.values()]
    drawn = random.Random(f"{SEED} {layer}").sample(others, dose["random"])  # the same at every site
    every = [*indices.values(), *drawn]
    clamps = [Clamp(Feature(neurons, index), float(value)) for index in every for value in dose["values"]]
    total = torch.zeros(len(clamps), len(ids) + 1)
    for prompt in dose["prompts"]:
        rows = next_word(model, prompt, clamps, list(ids.values()))
        total += rows[1:] - rows[:1]
    mean = (total / len(dose["prompts"])).reshape(len(every), len(dose["values"]), -1)
    rounded = [[[round(x, 4) for x in value] for value in neuron] for neuron in mean.tolist()]
    return {"own": dict(zip(indices, rounded, strict=False)), "random": rounded[len(indices) :], "drawn": drawn}


def dose_of(concept: str, words: list[str], dose: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """One concept at one site: its curve, the random neurons' curves, and their comparison at the plan's value."""
    column, values, at = words.index(concept), dose["values"], dose["compared"]
    own = np.array(measured["own"][concept])  # [values, words + 1]
    others = np.array(measured["random"])  # [random, values, words + 1]
    up, down = values.index(at), values.index(-at)
    swing = own[up] - own[down]
    random_swing = others[:, up, column] - others[:, down, column]
    rest = np.delete(swing[:-1], column)
    return {
        "curve": own[:, column].tolist(),
        "kl": own[:, -1].tolist(),
        "random_curves": others[:, :, column].tolist(),
        "random_kl": others[:, :, -1].mean(0).tolist(),
        "rise": float(own[up, column]),
        "random_rise": others[:, up, column].tolist(),
        "swing": float(swing[column]),
        "random_swing": random_swing.tolist(),
        "beats_rise": bool((own[up, column] > others[:, up, column]).all()),
        "beats_swing": bool((abs(swing[column]) > abs(random_swing)).all()),
        "word_rank": int((abs(rest) >= abs(swing[column])).sum()),
        "word_changes": own[up, :-1].tolist(),
    }


def summarise_dose(dose: dict[str, Any], concepts: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Means and rates at each site, over all concepts and over the specialised ones."""
    groups = {"all": list(dose), "specialised": [c for c in dose if concepts[c]["specialised"]]}
    summary: dict[str, Any] = {"chance": 1 / (plan["random"] + 1)}
    at = plan["values"].index(plan["compared"])
    for name, members in groups.items():
        summary[name] = {}
        for site in SITES if members else ():
            rows = [dose[concept][site] for concept in members]
            summary[name][site] = {
                "rise": float(np.mean([row["rise"] for row in rows])),
                "random_rise": float(np.mean([row["random_rise"] for row in rows])),
                "swing": float(np.mean([abs(row["swing"]) for row in rows])),
                "random_swing": float(np.mean(np.abs([row["random_swing"] for row in rows]))),
                "raised": wilson(sum(row["rise"] > 0 for row in rows), len(rows)),
                "same_sign": wilson(sum(row["swing"] > 0 for row in rows), len(rows)),
                "beats_rise": wilson(sum(row["beats_rise"] for row in rows), len(rows)),
                "beats_swing": wilson(sum(row["beats_swing"] for row in rows), len(rows)),
                "own_word_first": wilson(sum(row["word_rank"] == 0 for row in rows), len(rows)),
                "kl": float(np.mean([row["kl"][at] for row in rows])),
                "random_kl": float(np.mean([row["random_kl"][at] for row in rows])),
            }
    return summary
