"""Davies, "Decoding specialised feature neurons in LLMs with the final projection layer" (2025, arXiv 2501.02688).

Which neurons does the LM head name, does clamping one move the probability of its word, and does a model with a clamped
"dog" neuron talk of dogs? All words, prompts and rules stand in `neuron_decoding.toml`, written before any result was
seen; every choice among neurons and strengths follows from them.

    python analyses/neuron_decoding.py --out reports/neuron_decoding
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from neuron_decoding_clamping import SEED, SITES, favourite_animal, measure_dose, summarise_dose
from neuron_decoding_page import write_page
from report import Notes, provenance, say, wilson, write_json

from workbench.interventions.opening import load_model
from workbench.model.language_model import LanguageModel
from workbench.neurons import NeuronTable, decode_neurons
from workbench.neurons.unembedding import CHUNK, RANDOM_DIRECTIONS, top_both

PLAN = Path(__file__).with_suffix(".toml")
FORMAT = 1
"""Of the notes; a new number makes all results anew."""
WEIGHTS = ("gate", "up", "down")
ONE_WORD = 3
"""A neuron means one word if so many of its top tokens are the same word as the first."""
SAMPLE = 64
"""Neurons per layer and weight whose softmax is computed."""


def read_plan(quick: bool = False) -> dict[str, Any]:
    """What was decided beforehand; `quick` keeps every part and shortens every list."""
    plan = tomllib.loads(PLAN.read_text())
    if quick:
        plan["concepts"] = {family: dict(list(words.items())[:1]) for family, words in plan["concepts"].items()}
        plan["dose"] |= {"values": [-20, 0, 20], "random": 2, "prompts": plan["dose"]["prompts"][:2]}
        some = {"tokens": 12, "sites": ["up", "post"], "values": [20, -20], "random": 1}
        plan["favourite"] |= some | {key: plan["favourite"][key][:2] for key in ("held_out", "counted")}
    return plan


# Which neurons the LM head names


def best_neuron(tables: dict[str, tuple[np.ndarray, np.ndarray]], ids: Sequence[int]) -> dict[str, Any]:
    """The one neuron that names a concept best, over all tables.

    Args:
        tables: for each weight the top tokens `[rows, top_k]` and the excess `[rows]`.
        ids: the tokens that are forms of the concept's word.

    Returns:
        The weight and the row of the neuron, whether its top token is a form, how many of its top tokens are, and its
        excess; these three, in this order, decide.
    """
    best: tuple[tuple[bool, int, float], str, int] | None = None
    for weights, (tokens, excess) in tables.items():
        is_form = np.isin(tokens, ids)  # [rows, top_k]
        forms, top = is_form.sum(1), is_form[:, 0]
        row = int(np.lexsort((excess, forms, top))[-1])
        found = (bool(top[row]), int(forms[row]), float(excess[row])), weights, row
        best = found if best is None or found[0] > best[0] else best
    assert best is not None
    (top, forms, excess), weights, row = best
    return {"weights": weights, "row": row, "top_is_form": top, "forms": forms, "excess": excess}


def specialised(found: dict[str, Any], rule: dict[str, Any]) -> bool:
    """Whether a neuron found counts as specialised by the plan's rule."""
    return found["top_is_form"] and found["forms"] >= rule["min_forms"]


def find_concepts(
    tables: dict[str, NeuronTable],
    null: dict[str, Any],
    ids: dict[str, list[int]],
    words: Iterable[str],
    rule: dict[str, Any],
) -> dict[str, Any]:
    """The best neuron of each word, beside what as many random vectors reach."""
    arrays = {weights: (table.tokens[0], table.excess[0]) for weights, table in tables.items()}
    rows = {}
    for concept in words:
        found = best_neuron(arrays, ids[concept])
        feature = tables[found["weights"]].feature(found["row"])
        hit = tables[found["weights"]].hit(found["row"])
        rows[concept] = found | {
            "feature": str(feature),
            "layer": hit.layer,
            "index": hit.index,
            "specialised": specialised(found, rule),
            "tokens": hit.tokens,
            "form_tokens": len(ids[concept]),
            "null_forms": null["concepts"][concept]["forms"],
            "null_specialised": specialised(null["concepts"][concept], rule),
        }
    return rows


def form_tokens(table: NeuronTable, forms: Sequence[str]) -> list[int]:
    """All tokens that equal one of the forms, whatever their case and the spaces around them."""
    return sorted({token for form in forms for token in table.matching_tokens(form)})


def null_tables(model: LanguageModel, ids: dict[str, list[int]], groups: np.ndarray, top_k: int) -> dict[str, Any]:
    """What chance finds: as many random vectors as there are neurons, with the mean and covariance of each layer's.

    They are harder to beat than directions without structure: they share the neurons' first and second moments.
    """
    chance = torch.Generator().manual_seed(SEED)
    head = model.network.unembedding()
    plain = torch.nn.functional.normalize(torch.randn(RANDOM_DIRECTIONS, head.shape[1], generator=chance), dim=-1)
    tops = torch.cat([(part @ head.T).amax(-1) for part in plain.split(CHUNK)])
    tables = {}
    for weights in WEIGHTS:
        tokens, excess = [], []
        for layer in range(model.network.n_layers):
            real = model.network.neuron_weights(layer, weights)
            mean, n = real.mean(0), len(real)
            drawn = mean + torch.randn(n, n, generator=chance) @ (real - mean) / math.sqrt(n)
            for part in drawn.split(CHUNK):
                scores, best = top_both(part @ head.T, top_k)
                tokens.append(best[0].int())
                excess.append((scores[0, :, 0] / part.norm(dim=-1) - tops.mean()) / tops.std())
        tables[weights] = torch.cat(tokens).numpy(), torch.cat(excess).numpy()
    return {
        "concepts": {concept: best_neuron(tables, forms) for concept, forms in ids.items()},
        "excess": {weights: shares(excess) for weights, (_, excess) in tables.items()},
        "one_word": {w: float((same_word(tokens, groups) >= ONE_WORD).mean()) for w, (tokens, _) in tables.items()},
    }


def same_word(tokens: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How many of a neuron's top tokens are the same word as the first, whatever case and spaces: `[rows]`."""
    words = groups[tokens]  # [rows, top_k]
    return ((words == words[:, :1]) & (words[:, :1] >= 0)).sum(1)


def word_groups(vocabulary: Sequence[str]) -> np.ndarray:
    """A number for each token that two tokens share if they are the same word; -1 for what is no word: `[vocab]`."""
    numbers: dict[str, int] = {}
    folded = [text.strip().casefold() for text in vocabulary]
    return np.array([numbers.setdefault(word, len(numbers)) if word.isalpha() else -1 for word in folded])


def shares(excess: np.ndarray) -> dict[str, float]:
    """Which share of neurons lies above random directions by so many standard deviations."""
    return {str(threshold): float((excess > threshold).mean()) for threshold in (2, 3, 4, 5, 7, 10)}


def describe_tables(tables: dict[str, NeuronTable], groups: np.ndarray, clear: float) -> dict[str, Any]:
    """Per weight: how many neurons have a clear meaning, over all and per layer."""
    said = {}
    for weights, table in tables.items():
        excess = table.excess[0].reshape(table.n_layers, table.d_mlp)
        alike = same_word(table.tokens[0], groups).reshape(excess.shape)
        said[weights] = {
            "excess": shares(excess),
            "clear_by_layer": (excess > clear).mean(1).tolist(),
            "one_word": float((alike >= ONE_WORD).mean()),
            "one_word_by_layer": (alike >= ONE_WORD).mean(1).tolist(),
        }
    return said


def softmax_tops(model: LanguageModel) -> dict[str, list[float]]:
    """The paper's "probability": the highest entry of a neuron's softmax, for neurons drawn from every layer."""
    chance = torch.Generator().manual_seed(SEED)
    head, tops = model.network.unembedding(), {}
    for weights in WEIGHTS:
        drawn = []
        for layer in range(model.network.n_layers):
            real = model.network.neuron_weights(layer, weights)
            drawn.append(real[torch.randperm(len(real), generator=chance)[:SAMPLE]])
        tops[weights] = [
            value for part in torch.cat(drawn).split(CHUNK) for value in (part @ head.T).softmax(-1).amax(-1).tolist()
        ]
    return tops


# All of it


def decode_all(model: LanguageModel, top_k: int, folder: Path, notes: Notes, timed: bool) -> tuple[dict, dict | None]:
    """The three tables; where they are to be timed they are decoded anew, into a folder of the report.

    The rate is reckoned per second of CPU time, so that other work on the machine does not count.
    """
    tables: dict[str, NeuronTable] = {}
    timing: dict[str, Any] = {}
    for weights in WEIGHTS:
        say(f"Decoding the {weights} weights")
        with cache_in(folder / "work" if timed else None):
            wall, cpu = time.perf_counter(), time.process_time()
            tables[weights] = decode_neurons(model, weights, top_k)
            spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        if timed:
            timing[weights] = notes.get(f"timing/{weights}", spent.copy)
    if not timed:
        return tables, None
    work = 2 * len(tables["gate"]) * model.network.unembedding().numel()
    for spent in timing.values():
        spent["gflop_per_cpu_second"] = work / spent["cpu_seconds"] / 1e9
    llama = 2 * 32 * 14336 * 4096 * 128256
    return tables, timing | {"llama_8b_cpu_minutes": llama / timing["up"]["gflop_per_cpu_second"] / 1e9 / 60}


@contextmanager
def cache_in(folder: Path | None) -> Iterator[None]:
    """Let decoded tables be cached in another folder for a while; None leaves all as it is."""
    before = os.environ.get("WORKBENCH_CACHE")
    if folder is not None:
        os.environ["WORKBENCH_CACHE"] = str(folder.resolve())
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop("WORKBENCH_CACHE")
            if before is not None:
                os.environ["WORKBENCH_CACHE"] = before


def experiment(model: LanguageModel, plan: dict[str, Any], folder: Path, quick: bool = False) -> tuple[dict, dict]:
    """Everything: the numbers, and the answers of the favourite-animal experiment."""
    made = provenance(model, SEED, plan_sha256=hashlib.sha256(PLAN.read_bytes()).hexdigest(), quick=quick)
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, plan, quick])
    tables, timing = decode_all(model, plan["rule"]["top_k"], folder, notes, timed=not quick)
    words = {concept: forms for family in plan["concepts"].values() for concept, forms in family.items()}
    animal_words = {animal: said["forms"] for animal, said in plan["animals"].items()}
    ids = {word: form_tokens(tables["gate"], forms) for word, forms in (animal_words | words).items()}
    missing = [word for word in ids if not ids[word]]
    ids, words, animal_words = (
        {word: said for word, said in some.items() if word not in missing} for some in (ids, words, animal_words)
    )
    groups = word_groups(tables["gate"].vocabulary)
    say("Decoding as many random vectors")
    null = notes.get("null", lambda: null_tables(model, ids, groups, plan["rule"]["top_k"]))
    concepts = find_concepts(tables, null, ids, words, plan["rule"])
    animals = find_concepts(tables, null, ids, animal_words, plan["rule"])
    dose = measure_dose(model, plan, concepts, {concept: ids[concept] for concept in words}, notes)
    favourite, texts = favourite_animal(model, plan, animals, notes)
    results = {
        "provenance": made,
        "plan": plan,
        "decoding": {
            "timing": timing,
            "tables": describe_tables(tables, groups, plan["rule"]["clear_excess"]),
            "null": {key: null[key] for key in ("excess", "one_word")},
            "softmax_top": notes.get("softmax", lambda: softmax_tops(model)),
            "neurons": len(tables["gate"]),
            "vocabulary": len(tables["gate"].vocabulary),
        },
        "missing": missing,
        "concepts": concepts,
        "concept_counts": count_concepts(concepts),
        "dose": dose,
        "dose_summary": summarise_dose(dose, concepts, plan["dose"]),
        "animals": animals,
        "favourite": favourite,
    }
    return results, texts


def count_concepts(concepts: dict[str, Any]) -> dict[str, Any]:
    """How many concepts have a neuron, by a weak, a middling and the plan's rule, and how many by chance."""
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


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The few figures that are cited elsewhere, with where they come from."""
    keep = ("weights", "feature", "forms", "excess", "specialised", "null_forms", "tokens")
    effect = ("rise", "swing", "beats_rise", "beats_swing", "word_rank")
    return {
        "provenance": results["provenance"],
        "rule": results["plan"]["rule"],
        "decoding": {key: value for key, value in results["decoding"].items() if key != "softmax_top"}
        | {"softmax_top_median": {w: float(np.median(v)) for w, v in results["decoding"]["softmax_top"].items()}},
        "concept_counts": results["concept_counts"],
        "concepts": {
            concept: {key: row[key] for key in keep}
            | {site: {key: results["dose"][concept][site][key] for key in effect} for site in SITES}
            for concept, row in results["concepts"].items()
        },
        "dose_summary": results["dose_summary"],
        "favourite": results["favourite"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the analysis from the command line."""
    parser = argparse.ArgumentParser(description="The experiments of Davies 2025 (arXiv 2501.02688) on a model.")
    parser.add_argument("--out", type=Path, default=Path("reports/neuron_decoding"), help="folder of the report")
    parser.add_argument("--quick", action="store_true", help="every part on a few words only")
    parser.add_argument("--model", help="a Hugging Face name or a folder; the default model if left out")
    parser.add_argument("--summary", type=Path, help="also write the figures worth citing to this JSON file")
    asked = parser.parse_args(arguments)
    plan = read_plan(asked.quick)
    results, texts = experiment(load_model(asked.model), plan, asked.out, asked.quick)
    write_json(asked.out / "results.json", results)
    write_json(asked.out / "answers.json", texts, indent=1)
    if asked.summary:
        write_json(asked.summary, summary(results), indent=1)
    say(f"Written: {write_page(asked.out, results, texts)}")


if __name__ == "__main__":
    main()
