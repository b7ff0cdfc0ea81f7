"""The report's sections on the favourite animal."""

from __future__ import annotations

from typing import Any

from analyses.neuron_decoding.figures import percent
from analyses.neuron_decoding.figures_favourite import favourite_figure, strength_figure
from analyses.shared.report import Page, table


def add_favourite(page: Page, results: dict[str, Any]) -> None:
    """Add part 3: the favourite-animal experiment."""
    favourite, plan = results["favourite"], results["plan"]["favourite"]
    page.section(
        "3. Does the model talk about the animal?",
        f"The three animals whose neurons name them best, out of {len(results['animals'])}, by the rule of part 1: "
        + ", ".join(f"{name} (<code>{row['feature']}</code>)" for name, row in favourite["animals"].items())
        + f". The model is asked for its favourite animal in {len(plan['counted'])} phrasings and answers with up to "
        f"{plan['tokens']} tokens, with the neuron clamped at every position. An answer <em>talks about the "
        "animal</em> "
        "if one of the animal's words, listed beforehand, stands in it. It is <em>fluent</em> if its perplexity "
        "under the "
        f"plain model is at most {plan['max_perplexity']} and at most {plan['max_repetition']:.0%} of its 3-grams are "
        "repeated.",
        f"Strength: {len(plan['held_out'])} other phrasings choose it, the setting with most fluent answers about the "
        "animal, the weakest of equals. They are not counted. Once among up-projection clamps only, as in the paper, "
        "and "
        f"once among all sites. {plan['random']} random neurons of the same layer are clamped at the same site to the "
        "same value; the second choice is free to pick a sign and a site for the animal's neuron, the random ones take "
        "what it picked.",
    )
    rows = []
    for animal, row in favourite["animals"].items():
        for mode, name in (("greedy", "greedy"), ("sampled", f"sampled, temperature {plan['temperature']:g}")):
            rows.append([animal, name, "plain model", *verdict_cells(row["plain"][mode])])
            for kind in ("paper", "any"):
                chosen = row["chosen"][kind]
                where = f"{chosen['site']} at {chosen['value']:+g}"
                free = "" if kind == "paper" else ", site chosen freely"
                rows.append([animal, name, f"clamped, {where}{free}", *verdict_cells(chosen["clamped"][mode])])
                rows.append([animal, name, f"random, {where}", *verdict_cells(chosen["random"][mode])])
    page.figure(
        "favourite",
        favourite_figure(favourite),
        "Share of greedy answers that talk about the animal, with 95% intervals; open marks: those of them that are "
        "fluent.",
    )
    columns = [
        "Animal",
        "Decoding",
        "Model",
        "About the animal",
        "of them fluent",
        "Perplexity",
        "Repetition",
        "Animals named",
    ]
    page.details("All rates, greedy and sampled", table(columns, rows))
    page.figure(
        "strength",
        strength_figure(favourite["animals"]),
        "Every site and strength that was tried, on the counted phrasings, greedy. Above: share of answers about the "
        "animal, dotted: those of them that are fluent. Below: median perplexity of the answers under the plain model.",
    )


def verdict_cells(verdict: dict[str, Any]) -> list[Any]:
    """The table cells of one setting."""
    return [
        percent(verdict["success"]),
        percent(verdict["fluent_success"]),
        float(verdict["perplexity"]),
        float(verdict["repetition"]),
        ", ".join(f"{name} {count}" for name, count in list(verdict["named"].items())[:4]),
    ]


def add_answers(page: Page, results: dict[str, Any], texts: dict[str, Any]) -> None:
    """Add all counted greedy answers, side by side."""
    favourite = results["plan"]["favourite"]
    skip = len(favourite["held_out"])
    page.section("The answers", "All counted phrasings, greedy. Every other answer is in <code>answers.json</code>.")
    for animal, row in results["favourite"]["animals"].items():
        chosen = row["chosen"]
        places = [f"{chosen[kind]['site']} {chosen[kind]['value']:g}" for kind in ("paper", "any")]
        places = list(dict.fromkeys(places))
        rows = [
            [
                phrasing,
                texts["plain"]["greedy"][place]["text"],
                *(texts[animal]["grid"][p][place]["text"] for p in places),
            ]
            for place, phrasing in enumerate(favourite["counted"], skip)
        ]
        columns = ["Question", "Plain", *(f"{row['feature']}, clamped at {place}" for place in places)]
        page.details(f"{animal}: {len(rows)} answers", table(columns, rows))
