"""The page of `neuron_decoding.py`: its tables, and the paper's claims beside what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from analyses.neuron_decoding.figures import (
    SITES,
    concept_figure,
    depth_figure,
    dose_figure,
    favourite_figure,
    layer_figure,
    matrix_figure,
    percent,
    short,
    small_multiples,
    softmax_figure,
    strength_figure,
)
from analyses.shared.report import Cell, Page, table, tokens

MARKS = {"yes": "holds", "partly": "holds in part", "no": "not shown", "open": "not tested"}


def write_page(folder: Path, results: dict[str, Any], texts: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    made = results["provenance"]
    page = Page(
        folder,
        "Neurons read through the LM head",
        "Davies (2025) multiplies an MLP neuron's weight vector with the LM head: the tokens with the highest scores "
        "name the neuron. Clamping a neuron so named should then move its word. Here are the paper's experiments on "
        f"{made['model']}, with words, prompts and rules that were written down before any result was seen.",
    )
    page.add("<h2>What the paper claims, and what was measured</h2>", claims(results))
    for add in (add_concepts, add_dose, add_depth, add_matrix, add_favourite, add_decoding):
        add(page, results)
    add_answers(page, results, texts)
    return page.write(made)


def claims(results: dict[str, Any]) -> str:
    """The table of claims; each verdict follows from the rule in its last column."""
    counts, pooled = results["concept_counts"], results["favourite"]["pooled"]["greedy"]
    up, chance = results["dose_summary"]["all"]["up"], results["dose_summary"]["chance"]
    timing = results["decoding"]["timing"]
    rows = []

    found, by_chance = counts["specialised"], counts["null_specialised"]
    apart = found["low"] > by_chance["high"]
    rows.append(
        (
            "The LM head finds neurons specialised in a concept, such as “dog” and “California”.",
            f"A specialised neuron for {percent(found)} of the concepts; among as many random vectors for "
            f"{percent(by_chance)}. Concept by concept: {counts['only_neurons']} have one among the neurons only, "
            f"{counts['only_null']} among the random vectors only (exact test of these pairs: "
            f"p = {paired_p(counts['only_neurons'], counts['only_null']):.2g}).",
            "yes" if apart and found["rate"] >= 0.5 else "partly" if apart else "no",
            "more than by chance (intervals apart), and for at least half of the concepts",
        )
    )
    raises = up["beats_rise"]["low"] > chance and up["raised"]["low"] > 0.5
    moves = up["beats_swing"]["low"] > chance
    rows.append(
        (
            "Clamping such a neuron's up projection moves the probability of its concept.",
            f"Clamped to +{results['plan']['dose']['compared']}, the word becomes likelier for "
            f"{percent(up['raised'])}; "
            f"it rises more than under every random neuron for {percent(up['beats_rise'])}, and the difference between "
            f"the positive and the negative clamp is larger than any random neuron's for {percent(up['beats_swing'])} "
            f"(by chance {chance:.0%}).",
            "yes" if raises and moves else "partly" if moves or raises else "no",
            "yes: raised in most concepts, and both comparisons above chance; in part: one comparison above chance",
        )
    )
    ours = pooled["paper clamped"]["fluent_success"]
    others = [pooled[side]["fluent_success"]["high"] for side in ("plain", "paper random")]
    rows.append(
        (
            "With the “dog” neuron clamped the model always discusses dogs when asked for its favourite animal.",
            f"Three neurons, up projection: fluent answers about the animal {percent(ours)}; plain model "
            f"{percent(pooled['plain']['fluent_success'])}; random neurons clamped equally "
            f"{percent(pooled['paper random']['fluent_success'])}.",
            "yes" if ours["rate"] >= 0.95 else "partly" if ours["low"] > max(others) else "no",
            "yes: at least 95%; in part: interval above those of the plain model and of random neurons",
        )
    )
    if timing:
        neurons = results["decoding"]["neurons"]
        spent = timing["up"]
        measured = (
            f"{neurons:,} up neurons of {results['provenance']['model']}: {spent['cpu_seconds']:.0f} s of CPU time, "
            f"{spent['gflop_per_cpu_second']:.0f} GFLOP per second of it. At that rate Llama 3.1 8B's 458,752, of "
            f"{2 * 4096 * 128256 / 1e9:.1f} GFLOP each, take {timing['llama_8b_cpu_minutes']:.0f} minutes."
        )
        rows.append(
            (
                "All up-projection neurons of Llama 3.1 8B are decoded in less than 15 minutes without parallelism, in "
                "10 seconds on a GPU.",
                measured,
                "open",
                "another machine and model; the figure is given for comparison",
            )
        )
    rows.append(
        (
            "75.4% of the instruct model's neurons keep the base model's top token.",
            "The base model was not at hand; <code>compare_decodings</code> measures it.",
            "open",
            "",
        )
    )
    cells = [
        [Cell(claim), Cell(measured), Cell(f'<span class="{mark}">{MARKS[mark]}</span>'), Cell(rule)]
        for claim, measured, mark, rule in rows
    ]
    return table(["The paper", "Here", "", "Rule of the verdict"], cells)


def paired_p(one: int, other: int) -> float:
    """Exact two-sided test of whether two counts of unlike pairs are equal (McNemar), from the binomial."""
    n = one + other
    tail = sum(math.comb(n, k) for k in range(max(one, other), n + 1)) / 2**n
    return min(1.0, 2 * tail)


def none_at_all(concepts: list[str]) -> str:
    """A sentence on concepts that no neuron names, whose "best neuron" is then only the one of highest excess."""
    if not concepts:
        return ""
    return (
        f"No neuron has any form of {', '.join(concepts)} among its top tokens; the rule then takes the neuron of "
        "highest "
        "excess, which has nothing to do with the word, and it stays in the counts below. "
    )


def add_concepts(page: Page, results: dict[str, Any]) -> None:
    """Part 1: the neuron of each concept."""
    concepts, rule, counts = results["concepts"], results["plan"]["rule"], results["concept_counts"]
    page.section(
        "1. Is there a neuron for each concept?",
        f"{len(concepts)} concepts were written down first. For each, all {3 * results['decoding']['neurons']:,} "
        "weight "
        "vectors (gate, up and down of every neuron) compete, in their own direction, as they are. A token is a "
        "<em>form</em> of the concept if it is its word, its plural or its adjective in any case, with or without a "
        "space. The best neuron has a form as its top token; then, of several, it has most forms among its top "
        f"{rule['top_k']} tokens; then the highest excess. It counts as <em>specialised</em> if the top token is a "
        "form "
        f"and at least {rule['min_forms']} of the {rule['top_k']} are.",
        f"Specialised: {percent(counts['specialised'])}. The same search through as many random vectors, drawn with "
        "each "
        f"layer's own mean and covariance: {percent(counts['null_specialised'])}. The best neuron has "
        f"{counts['mean_forms']:.1f} forms on average, the best random vector {counts['null_mean_forms']:.1f}. "
        + none_at_all(counts["no_form_at_all"])
        + f"The excess measures something else: its median over the specialised neurons is "
        f"{counts['specialised_median_excess']:.1f} standard deviations.",
    )
    order = sorted(concepts, key=lambda c: (concepts[c]["forms"], concepts[c]["excess"]))
    page.figure(
        "concepts",
        concept_figure({concept: concepts[concept] for concept in order}, rule),
        "Forms of the concept's word among its best neuron's top tokens. Diamonds: the best of as many random vectors. "
        "Bars that reach the line, with a form as top token, are specialised.",
    )
    rows = [
        [
            concept,
            concepts[concept]["feature"],
            "yes" if concepts[concept]["specialised"] else "no",
            concepts[concept]["forms"],
            concepts[concept]["excess"],
            tokens(concepts[concept]["tokens"][:8]),
        ]
        for concept in reversed(order)
    ]
    columns = ["Concept", "Best neuron", "Specialised", "Forms", "Excess (SD)", "Top tokens"]
    page.details("All concepts and their neurons", table(columns, rows))


def add_dose(page: Page, results: dict[str, Any]) -> None:
    """Part 2: log-probability of the word against the clamp value."""
    dose, said, plan = results["dose"], results["dose_summary"], results["plan"]["dose"]
    counts = results["concept_counts"]["specialised"]
    page.section(
        "2. Does clamping it move the word?",
        "Each concept's neuron is clamped at its up projection (the paper's site), at its gate or behind both "
        "(post), at "
        f"every position of {len(plan['prompts'])} neutral prompts. What is measured is the log-probability that the "
        "next "
        f"token is a form of the word, in nats, less the plain model's. Beside it {plan['random']} random neurons of "
        "the "
        "same layer are clamped at the same site to the same value.",
        "A neuron's up and down weights can both change sign without changing the model, so a positive clamp need not "
        "raise the word even when the neuron is about it. The <em>swing</em>, the difference between the clamp at "
        f"+{plan['compared']} and at −{plan['compared']}, shows control either way.",
    )
    rows = []
    for site in SITES:
        for group in ("all", "specialised"):
            row = said[group].get(site)
            if row:
                rows.append(
                    [
                        site if group == "all" else f"{site}, specialised only",
                        row["rise"],
                        row["random_rise"],
                        short(row["beats_rise"]),
                        row["swing"],
                        row["random_swing"],
                        short(row["beats_swing"]),
                        short(row["same_sign"]),
                    ]
                )
    columns = [
        "Clamped at",
        f"Rise at +{plan['compared']}",
        "random",
        f"Above all {plan['random']} random",
        "|Swing|",
        "random",
        f"Above all {plan['random']} random",
        "Swing upwards",
    ]
    page.add(
        table(columns, rows),
        f'<p class="note">Means over {len(dose)} concepts, {counts["k"]} of them specialised, in nats. By chance a '
        f"neuron is above all {plan['random']} others in {said['chance']:.0%} of cases. Intervals are 95%, Wilson.</p>",
    )
    hard = [f"{site} {said['all'][site]['kl']:.3f} (random {said['all'][site]['random_kl']:.3f})" for site in SITES]
    page.add(
        f'<p class="note">How hard the clamps at +{plan["compared"]} push the whole model, as the mean KL divergence '
        f"of its next token from the plain model's, in nats: {', '.join(hard)}.</p>"
    )
    page.figure(
        "dose_mean",
        dose_figure(dose, plan["values"]),
        "Change of the word's log-probability, averaged over the concepts; the bands hold the middle half of them. "
        "Grey: "
        "random neurons of the same layers.",
    )
    page.figure(
        "dose_concepts",
        small_multiples(dose, plan["values"]),
        "Every concept by itself. The grey band spans the random neurons; all panels share one scale.",
    )


def add_depth(page: Page, results: dict[str, Any]) -> None:
    """Part 2, continued: where in the model the neurons that move their word lie."""
    page.figure(
        "depth",
        depth_figure(results["dose"], results["concepts"]),
        "Swing of each concept's word against the layer of its neuron; filled: specialised, open: not, grey: the "
        "random "
        "neurons of that layer. This figure was thought of after the results were seen.",
    )


def add_matrix(page: Page, results: dict[str, Any]) -> None:
    """Part 2, continued: which words does each concept's neuron move?"""
    dose, said, at = results["dose"], results["dose_summary"]["all"], results["plan"]["dose"]["compared"]
    page.add(
        "<h3>Its own word more than the others?</h3>",
        f"<p>Each row is a concept's neuron clamped to +{at}, each column a concept's word. The other concepts' "
        "neurons "
        "are a harder control than random ones: they are specialised too. By swing, the own word moves most of all "
        + "; ".join(f"at {site} for {percent(said[site]['own_word_first'])}" for site in SITES)
        + f". By chance it would be 1 in {len(dose)}.</p>",
    )
    page.figure(
        "words",
        matrix_figure(dose),
        "Change of log P(word), in nats. Reddish: likelier. The diagonal is the concept's own word.",
    )


def add_favourite(page: Page, results: dict[str, Any]) -> None:
    """Part 3: the favourite-animal experiment."""
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
    for animal, said in favourite["animals"].items():
        for mode, name in (("greedy", "greedy"), ("sampled", f"sampled, temperature {plan['temperature']:g}")):
            rows.append([animal, name, "plain model", *verdict_cells(said["plain"][mode])])
            for kind in ("paper", "any"):
                chosen = said["chosen"][kind]
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


def add_decoding(page: Page, results: dict[str, Any]) -> None:
    """Part 4: how many neurons mean anything, and what the softmax says."""
    said, rule = results["decoding"], results["plan"]["rule"]
    threshold = str(rule["clear_excess"])
    rows = [
        [
            weights,
            100 * row["excess"][threshold],
            100 * said["null"]["excess"][weights][threshold],
            100 * row["one_word"],
            100 * said["null"]["one_word"][weights],
            f"{np.median(said['softmax_top'][weights]):.1e}",
        ]
        for weights, row in said["tables"].items()
    ]
    page.section(
        "4. How many neurons have a clear meaning?",
        "Two measures that need no list of words. <em>Excess</em>: how far a neuron's top score lies above the top "
        "scores "
        f"of random directions of the same norm, in their standard deviations; clear from {threshold}. <em>One "
        "word</em>: "
        f"at least 3 of the top {rule['top_k']} tokens are the same word as the first, in whatever case and spacing. "
        "Chance: random vectors with each layer's mean and covariance.",
    )
    columns = ["Weights", "Clear, %", "by chance, %", "One word, %", "by chance, %", "Softmax of the top token, median"]
    page.add(table(columns, rows))
    page.figure(
        "layers",
        layer_figure(said, threshold),
        "Share of each layer's neurons with a clear meaning, and of those whose top tokens are one word. Dashed: "
        "chance, "
        "over all layers.",
    )
    page.figure(
        "softmax",
        softmax_figure(said),
        f"The highest entry of the softmax over a neuron's {said['vocabulary']:,} raw scores, which the paper reads "
        "as a "
        "probability. Dashed: every token alike. The weights' norms set its size, so it compares neurons of one model "
        "only.",
    )


def add_answers(page: Page, results: dict[str, Any], texts: dict[str, Any]) -> None:
    """All counted greedy answers, side by side; the rest is in `answers.json`."""
    favourite = results["plan"]["favourite"]
    skip = len(favourite["held_out"])
    page.section("The answers", "All counted phrasings, greedy. Every other answer is in <code>answers.json</code>.")
    for animal, said in results["favourite"]["animals"].items():
        chosen = said["chosen"]
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
        columns = ["Question", "Plain", *(f"{said['feature']}, clamped at {place}" for place in places)]
        page.details(f"{animal}: {len(rows)} answers", table(columns, rows))
