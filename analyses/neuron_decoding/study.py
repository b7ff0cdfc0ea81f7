"""Davies, "Decoding specialised feature neurons in LLMs with the final projection layer" (2025, arXiv 2501.02688).

Which neurons does the LM head name, does clamping one move the probability of its word, and does a model with a clamped
"dog" neuron talk of dogs? All words, prompts and rules are in `plan.toml`, written before any result was seen; every
choice among neurons and strengths follows from them.
"""

from __future__ import annotations

import hashlib
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from analyses.neuron_decoding.concepts import (
    count_concepts,
    describe_tables,
    find_concepts,
    form_tokens,
    null_tables,
    softmax_tops,
    word_groups,
)
from analyses.neuron_decoding.dose import measure_dose, summarise_dose
from analyses.neuron_decoding.favourite import favourite_animal
from analyses.neuron_decoding.page import write_page
from analyses.neuron_decoding.plan import PLAN, SEED, SITES, WEIGHTS, read_plan
from analyses.neuron_decoding.rows import published_rows
from analyses.shared.report import Notes, provenance, say, write_json
from analyses.shared.study import Outcome, Study
from workbench.interventions.opening import load_model
from workbench.model.language_model import LanguageModel
from workbench.neurons.unembedding import NeuronTable, decode_neurons

FORMAT = 1
"""Format of the notes; a new number computes all results anew."""


def decode_all(model: LanguageModel, top_k: int, folder: Path, notes: Notes, timed: bool) -> tuple[dict, dict | None]:
    """The decoded tables by weights, and their timing; for timing they are decoded anew, into a folder of the report.

    The rate is per second of CPU time, which other work on the machine does not change.
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
    work = 2 * len(tables["gate"]) * model.network.lm_head.weight.numel()
    for spent in timing.values():
        spent["gflop_per_cpu_second"] = work / spent["cpu_seconds"] / 1e9
    llama = 2 * 32 * 14336 * 4096 * 128256
    return tables, timing | {"llama_8b_cpu_minutes": llama / timing["up"]["gflop_per_cpu_second"] / 1e9 / 60}


@contextmanager
def cache_in(folder: Path | None) -> Iterator[None]:
    """Cache decoded tables in another folder inside the `with` block; None changes nothing."""
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
    """All results, and the answers of the favourite-animal experiment; an interrupted run resumes from its notes.

    Args:
        model: the model.
        plan: as `read_plan` returns it.
        folder: of the report.
        quick: whether to leave out the timing, and to draw random vectors in the first layer only.
    """
    source = provenance(model, SEED, plan_sha256=hashlib.sha256(PLAN.read_bytes()).hexdigest(), quick=quick)
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, plan, quick])
    tables, timing = decode_all(model, plan["rule"]["top_k"], folder, notes, timed=not quick)
    words = {concept: forms for family in plan["concepts"].values() for concept, forms in family.items()}
    animal_words = {animal: row["forms"] for animal, row in plan["animals"].items()}
    ids = {word: form_tokens(tables["gate"], forms) for word, forms in (animal_words | words).items()}
    missing = [word for word in ids if not ids[word]]
    ids, words, animal_words = (
        {word: row for word, row in rows.items() if word not in missing} for rows in (ids, words, animal_words)
    )
    groups = word_groups(tables["gate"].vocabulary)
    say("Decoding as many random vectors")
    n_layers = 1 if quick else model.network.n_layers
    null = notes.get("null", lambda: null_tables(model, ids, groups, plan["rule"]["top_k"], n_layers))
    concepts = find_concepts(tables, null, ids, words, plan["rule"])
    animals = find_concepts(tables, null, ids, animal_words, plan["rule"])
    dose = measure_dose(model, plan, concepts, {concept: ids[concept] for concept in words}, notes)
    favourite, texts = favourite_animal(model, plan, animals, notes)
    results = {
        "provenance": source,
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


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures worth citing, with their provenance."""
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


def run(settings: Namespace) -> Outcome:
    """Measure, and write the report; every answer goes to `answers.json`."""
    plan = read_plan(settings.smallest)
    results, texts = experiment(load_model(settings.model), plan, settings.out, settings.smallest)
    write_json(settings.out / "answers.json", texts, indent=1)
    return Outcome(results, summary(results), write_page(settings.out, results, texts))


STUDY = Study(run, published_rows, shared=("model",))
