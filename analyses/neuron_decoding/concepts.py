"""The neurons that the LM head names, and the same search among random vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from analyses.neuron_decoding.plan import ONE_WORD, SAMPLE, SEED, WEIGHTS
from analyses.shared.report import wilson
from workbench.model.language_model import LanguageModel
from workbench.neurons.unembedding import CHUNK, RANDOM_DIRECTIONS, NeuronTable, top_both


def best_neuron(tables: dict[str, tuple[np.ndarray, np.ndarray]], ids: Sequence[int]) -> dict[str, Any]:
    """The neuron that names a concept best, over all tables.

    Args:
        tables: for each weight the top tokens `[rows, top_k]` and the excess `[rows]`.
        ids: the tokens that are forms of the concept's word.

    Returns:
        The weight and the row of the neuron, whether its top token is a form, how many of its top tokens are forms, and
        its excess; the last three decide, in this order.
    """
    best: tuple[tuple[bool, int, float], str, int] | None = None
    for weights, (tokens, excess) in tables.items():
        is_form = np.isin(tokens, ids)  # [rows, top_k]
        forms, top = is_form.sum(1), is_form[:, 0]
        row = int(np.lexsort((excess, forms, top))[-1])
        candidate = (bool(top[row]), int(forms[row]), float(excess[row])), weights, row
        best = candidate if best is None or candidate[0] > best[0] else best
    assert best is not None
    (top, forms, excess), weights, row = best
    return {"weights": weights, "row": row, "top_is_form": top, "forms": forms, "excess": excess}


def specialised(neuron: dict[str, Any], rule: dict[str, Any]) -> bool:
    """Whether a neuron, as `best_neuron` returns it, is specialised by the plan's rule."""
    return neuron["top_is_form"] and neuron["forms"] >= rule["min_forms"]


def find_concepts(
    tables: dict[str, NeuronTable],
    null: dict[str, Any],
    ids: dict[str, list[int]],
    words: Iterable[str],
    rule: dict[str, Any],
) -> dict[str, Any]:
    """The best neuron of each word, with the result of as many random vectors."""
    arrays = {weights: (table.tokens[0], table.excess[0]) for weights, table in tables.items()}
    rows = {}
    for concept in words:
        neuron = best_neuron(arrays, ids[concept])
        feature = tables[neuron["weights"]].feature(neuron["row"])
        hit = tables[neuron["weights"]].hit(neuron["row"])
        rows[concept] = neuron | {
            "feature": str(feature),
            "layer": hit.layer,
            "index": hit.index,
            "specialised": specialised(neuron, rule),
            "tokens": hit.tokens,
            "form_tokens": len(ids[concept]),
            "null_forms": null["concepts"][concept]["forms"],
            "null_specialised": specialised(null["concepts"][concept], rule),
        }
    return rows


def form_tokens(table: NeuronTable, forms: Sequence[str]) -> list[int]:
    """Ids of all tokens that equal one of the forms, in any case and with any spaces around them."""
    return sorted({token for form in forms for token in table.matching_tokens(form)})


def null_tables(
    model: LanguageModel, ids: dict[str, list[int]], groups: np.ndarray, top_k: int, n_layers: int
) -> dict[str, Any]:
    """The control: results of as many random vectors as neurons, with the mean and covariance of each layer's.

    They share the neurons' first and second moments, and are therefore harder to beat than isotropic directions.

    Args:
        model: the model.
        ids: the tokens that are forms of each concept's word.
        groups: as `word_groups` returns them.
        top_k: tokens read of each vector.
        n_layers: the lowest layers for which vectors are drawn.
    """
    chance = torch.Generator().manual_seed(SEED)
    head = model.network.lm_head
    plain = torch.nn.functional.normalize(torch.randn(RANDOM_DIRECTIONS, head.width, generator=chance), dim=-1)
    tops = torch.cat([head.products(part).amax(-1) for part in plain.split(CHUNK)])
    tables = {}
    for weights in WEIGHTS:
        tokens, excess = [], []
        for layer in range(n_layers):
            real = model.network.neuron_weights(layer, weights)
            mean, n = real.mean(0), len(real)
            drawn = mean + torch.randn(n, n, generator=chance) @ (real - mean) / math.sqrt(n)
            for part in drawn.split(CHUNK):
                scores, best = top_both(head.products(part), top_k)
                tokens.append(best[0].int())
                excess.append((scores[0, :, 0] / part.norm(dim=-1) - tops.mean()) / tops.std())
        tables[weights] = torch.cat(tokens).numpy(), torch.cat(excess).numpy()
    return {
        "concepts": {concept: best_neuron(tables, forms) for concept, forms in ids.items()},
        "excess": {weights: shares(excess) for weights, (_, excess) in tables.items()},
        "one_word": {w: float((same_word(tokens, groups) >= ONE_WORD).mean()) for w, (tokens, _) in tables.items()},
    }


def same_word(tokens: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The number of a neuron's top tokens that are the same word as the first, in any case and spacing: `[rows]`."""
    words = groups[tokens]  # [rows, top_k]
    return ((words == words[:, :1]) & (words[:, :1] >= 0)).sum(1)


def word_groups(vocabulary: Sequence[str]) -> np.ndarray:
    """A number for each token, equal for tokens of the same word, and -1 for tokens that are no word: `[vocab]`."""
    numbers: dict[str, int] = {}
    folded = [text.strip().casefold() for text in vocabulary]
    return np.array([numbers.setdefault(word, len(numbers)) if word.isalpha() else -1 for word in folded])


def shares(excess: np.ndarray) -> dict[str, float]:
    """The share of neurons whose excess is above a threshold, by threshold in standard deviations."""
    return {str(threshold): float((excess > threshold).mean()) for threshold in (2, 3, 4, 5, 7, 10)}


def describe_tables(tables: dict[str, NeuronTable], groups: np.ndarray, clear: float) -> dict[str, Any]:
    """For each weight the share of neurons with a clear meaning, over all and by layer."""
    described = {}
    for weights, table in tables.items():
        excess = table.excess[0].reshape(table.n_layers, table.d_mlp)
        alike = same_word(table.tokens[0], groups).reshape(excess.shape)
        described[weights] = {
            "excess": shares(excess),
            "clear_by_layer": (excess > clear).mean(1).tolist(),
            "one_word": float((alike >= ONE_WORD).mean()),
            "one_word_by_layer": (alike >= ONE_WORD).mean(1).tolist(),
        }
    return described


def softmax_tops(model: LanguageModel) -> dict[str, list[float]]:
    """The highest entry of a neuron's softmax, the paper's "probability", for neurons drawn from every layer."""
    chance = torch.Generator().manual_seed(SEED)
    head, tops = model.network.lm_head, {}
    for weights in WEIGHTS:
        drawn = []
        for layer in range(model.network.n_layers):
            real = model.network.neuron_weights(layer, weights)
            drawn.append(real[torch.randperm(len(real), generator=chance)[:SAMPLE]])
        tops[weights] = [
            value
            for part in torch.cat(drawn).split(CHUNK)
            for value in head.products(part).softmax(-1).amax(-1).tolist()
        ]
    return tops


def count_concepts(concepts: dict[str, Any]) -> dict[str, Any]:
    """The number of concepts with a neuron, by a weak, a middle and the plan's rule, and the number by chance."""
    rows = list(concepts.values())
    return {
        "specialised": wilson(sum(row["specialised"] for row in rows), len(rows)),
        "null_specialised": wilson(sum(row["null_specialised"] for row in rows), len(rows)),
        "top_token": wilson(sum(row["top_is_form"] for row in rows), len(rows)),
        "mean_forms": float(np.mean([row["forms"] for row in rows])),
        "null_mean_forms": float(np.mean([row["null_forms"] for row in rows])),
        "more_forms_than_null": wilson(sum(row["forms"] > row["null_forms"] for row in rows), len(rows)),
        "fewer_forms_than_null": wilson(sum(row["forms"] < row["null_forms"] for row in rows), len(rows)),
        "only_neurons": sum(row["specialised"] and not row["null_specialised"] for row in rows),
        "only_null": sum(row["null_specialised"] and not row["specialised"] for row in rows),
        "no_form_at_all": [concept for concept, row in concepts.items() if row["forms"] == 0],
        "specialised_median_excess": float(
            np.median([row["excess"] for row in rows if row["specialised"]] or [math.nan])
        ),
        "weights": {weights: sum(row["weights"] == weights for row in rows) for weights in WEIGHTS},
    }
