"""The report on neurons read through the LM head: its sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from analyses.neuron_decoding.claims import claims_table
from analyses.neuron_decoding.figures import (
    SITES,
    concept_figure,
    depth_figure,
    dose_figure,
    layer_figure,
    matrix_figure,
    percent,
    short,
    small_multiples,
    softmax_figure,
)
from analyses.neuron_decoding.page_favourite import add_answers, add_favourite
from analyses.shared.report import Page, table, tokens


def write_page(folder: Path, results: dict[str, Any], texts: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    source = results["provenance"]
    page = Page(
        folder,
        "Neurons read through the LM head",
        "Davies (2025) multiplies an MLP neuron's weight vector with the LM head: the tokens with the highest scores "
        "name the neuron. Clamping such a neuron should then move its word. Here are the paper's experiments on "
        f"{source['model']}, with words, prompts and rules that were written down before any result was seen.",
    )
    page.add("<h2>What the paper claims, and what was measured</h2>", claims_table(results))
    for add in (add_concepts, add_dose, add_depth, add_matrix, add_favourite, add_decoding):
        add(page, results)
    add_answers(page, results, texts)
    return page.write(source)


def none_at_all(concepts: list[str]) -> str:
    """A sentence on concepts that no neuron names, whose best neuron is the one of highest excess."""
    if not concepts:
        return ""
    return (
        f"No neuron has any form of {', '.join(concepts)} among its top tokens; the rule then takes the neuron of "
        "highest "
        "excess, which is unrelated to the word; it stays in the counts below. "
    )


def add_concepts(page: Page, results: dict[str, Any]) -> None:
    """Add part 1: the neuron of each concept."""
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
    """Add part 2: the log-probability of the word against the clamp value."""
    dose, summary, plan = results["dose"], results["dose_summary"], results["plan"]["dose"]
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
            row = summary[group].get(site)
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
        f"neuron is above all {plan['random']} others in {summary['chance']:.0%} of cases. Intervals: 95%, Wilson.</p>",
    )
    hard = [
        f"{site} {summary['all'][site]['kl']:.3f} (random {summary['all'][site]['random_kl']:.3f})" for site in SITES
    ]
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
    """Add to part 2: the layers of the neurons that move their word."""
    page.figure(
        "depth",
        depth_figure(results["dose"], results["concepts"]),
        "Swing of each concept's word against the layer of its neuron; filled: specialised, open: not, grey: the "
        "random "
        "neurons of that layer. This figure was added after the results were seen.",
    )


def add_matrix(page: Page, results: dict[str, Any]) -> None:
    """Add to part 2: the words that each concept's neuron moves."""
    dose, summary, at = results["dose"], results["dose_summary"]["all"], results["plan"]["dose"]["compared"]
    page.add(
        "<h3>Its own word more than the others?</h3>",
        f"<p>Each row is a concept's neuron clamped to +{at}, each column a concept's word. The other concepts' "
        "neurons "
        "are a harder control than random ones: they are specialised too. By swing, the own word moves most of all "
        + "; ".join(f"at {site} for {percent(summary[site]['own_word_first'])}" for site in SITES)
        + f". By chance it would be 1 in {len(dose)}.</p>",
    )
    page.figure(
        "words",
        matrix_figure(dose),
        "Change of log P(word), in nats. Reddish: likelier. The diagonal is the concept's own word.",
    )


def add_decoding(page: Page, results: dict[str, Any]) -> None:
    """Add part 4: the shares of neurons with a clear meaning, and the softmax."""
    decoding, rule = results["decoding"], results["plan"]["rule"]
    threshold = str(rule["clear_excess"])
    rows = [
        [
            weights,
            100 * row["excess"][threshold],
            100 * decoding["null"]["excess"][weights][threshold],
            100 * row["one_word"],
            100 * decoding["null"]["one_word"][weights],
            f"{np.median(decoding['softmax_top'][weights]):.1e}",
        ]
        for weights, row in decoding["tables"].items()
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
        layer_figure(decoding, threshold),
        "Share of each layer's neurons with a clear meaning, and of those whose top tokens are one word. Dashed: "
        "chance, "
        "over all layers.",
    )
    page.figure(
        "softmax",
        softmax_figure(decoding),
        f"The highest entry of the softmax over a neuron's {decoding['vocabulary']:,} raw scores, which the paper "
        "reads as a probability. Dashed: every token alike. The weights' norms set its size, so it compares neurons of "
        "one model only.",
    )
