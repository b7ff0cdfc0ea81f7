"""Dunefsky, Chlenski and Nanda (2024, arXiv 2406.11944), section 5: the greater-than task, on the default model.

"The war lasted from the year 1732 to the year 17": the next two digits should be greater than 32. GPT-2 small writes
years as two tokens, so that the paper compares the probabilities of all endings above 32 and below. SmolLM2 splits
every digit off: the prompt stops at the century, and what can be compared is the *first differing digit*, the decade,
that is 4 to 9 for 32 against 0 to 2 (the year's own decade counts for neither, since it goes on both ways).

    P-difference = P(digits above the year's decade) - P(digits below it)

How much of it is left with a transcoder in place of an MLP, and without that MLP? Which latents carry the year's
decade, and which words describe them, from weights alone?
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import workbench as wb
from analyses.greater_than.latents import by_decade, carriers, words
from analyses.greater_than.page import write_page
from analyses.greater_than.rows import published_rows
from analyses.greater_than.task import SMALLEST, Plan, behaviour, prompts, removed, replaced
from analyses.shared.report import Notes, provenance, say
from analyses.shared.study import Outcome, Study
from workbench.dictionaries.coder import SparseCoder

FORMAT = 1
"""Format of the notes; a new number measures everything anew."""


def experiment(
    model: wb.model.LanguageModel, coders: Sequence[SparseCoder], plan: Plan, folder: Path
) -> dict[str, Any]:
    """All results; an interrupted run resumes from its notes."""
    hashes = [one.hash for one in coders]
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, hashes, asdict(plan)])
    examples = prompts(plan)
    say(f"{len(examples)} prompts, such as: {examples[0][0]}")
    results: dict[str, Any] = {"provenance": provenance(model, plan.seed, plan=asdict(plan), transcoders=hashes)}
    results["example"] = examples[0][0]
    results["model"] = notes.get("model", lambda: behaviour(model, examples))
    say(f"P-difference {results['model']['p_difference']:.3f}")
    results["mlps"] = []
    for one in coders:
        row: dict[str, Any] = {"name": one.name}
        row["transcoder"] = notes.get(f"{one.name} in place", lambda c=one: behaviour(model, examples, replaced(c)))
        row["ablated"] = notes.get(f"{one.name} removed", lambda c=one: behaviour(model, examples, removed(c)))
        results["mlps"].append(row)
        say(f"{one.name}: {row['transcoder']['p_difference']:.3f}, without {row['ablated']['p_difference']:.3f}")
    together = [edit for one in coders for edit in replaced(one)]
    results["all"] = notes.get("all in place", lambda: behaviour(model, examples, together))
    without = [edit for one in coders for edit in removed(one)]
    results["none"] = notes.get("all removed", lambda: behaviour(model, examples, without))
    results["carriers"] = notes.get("carriers", lambda: carriers(model, coders, examples, plan))
    by_layer = {int(one.writes.split(".")[1]): one for one in coders}
    strongest = results["carriers"]["on_decade"][0]
    coder = by_layer[strongest["layer"]]
    results["words"] = notes.get("words", lambda: words(model, coder, strongest["index"], plan))
    results["by_decade"] = notes.get("by decade", lambda: by_decade(model, coder, strongest["index"], examples))
    return results


def run(settings: Namespace) -> Outcome:
    """Measure, and write the report."""
    plan = SMALLEST if settings.smallest else Plan(settings.prompts, settings.graphs, seed=settings.seed)
    coders: Any = [wb.load_dictionary(name) for name in settings.transcoders]
    results = experiment(wb.load_model(), coders, plan, settings.out)
    return Outcome(results, results, write_page(settings.out, results))


def add_options(parser: ArgumentParser) -> None:
    """Add the transcoders and the numbers of prompts."""
    shipped = [f"transcoder-{layer}" for layer in range(10, 16)]
    parser.add_argument("--transcoders", nargs="*", default=shipped, help="names or folders (default: those that ship)")
    parser.add_argument("--prompts", type=int, default=Plan.prompts, help=f"(default: {Plan.prompts})")
    parser.add_argument(
        "--graphs", type=int, default=Plan.graphs, help=f"prompts with an attribution graph (default: {Plan.graphs})"
    )


STUDY = Study(run, published_rows, shared=("seed",), add_options=add_options)
