"""The paper's claims beside what was measured; each verdict follows from the rule in its row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analyses.neuron_decoding.figures import percent
from analyses.shared.report import Cell, table

MARKS = {"yes": "holds", "partly": "holds in part", "no": "not shown", "open": "not tested"}


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
        paper: the claim.
        here: what was measured.
        verdict: a key of `MARKS`.
        rule: the rule of the verdict.
    """

    paper: str
    here: str
    verdict: str
    rule: str


def claims_table(results: dict[str, Any]) -> str:
    """The table of claims, as HTML."""
    cells = [
        [
            Cell(one.paper),
            Cell(one.here),
            Cell(f'<span class="{one.verdict}">{MARKS[one.verdict]}</span>'),
            Cell(one.rule),
        ]
        for one in claims(results)
    ]
    return table(["The paper", "Here", "", "Rule of the verdict"], cells)


def claims(results: dict[str, Any]) -> Iterator[Claim]:
    """All claims of the paper, in its order."""
    yield _concepts(results["concept_counts"])
    yield _clamping(results["dose_summary"], results["plan"]["dose"]["compared"])
    yield _favourite(results["favourite"]["pooled"]["greedy"])
    if results["decoding"]["timing"]:
        yield _speed(results["decoding"], results["provenance"]["model"])
    yield Claim(
        "75.4% of the instruct model's neurons keep the base model's top token.",
        "The base model was not available; <code>compare_decodings</code> measures it.",
        "open",
        "",
    )


def _concepts(counts: Mapping[str, Any]) -> Claim:
    neurons, by_chance = counts["specialised"], counts["null_specialised"]
    apart = neurons["low"] > by_chance["high"]
    return Claim(
        "The LM head finds neurons specialised in a concept, such as “dog” and “California”.",
        f"A specialised neuron for {percent(neurons)} of the concepts; among as many random vectors for "
        f"{percent(by_chance)}. Concept by concept: {counts['only_neurons']} have one among the neurons only, "
        f"{counts['only_null']} among the random vectors only (exact test of these pairs: "
        f"p = {paired_p(counts['only_neurons'], counts['only_null']):.2g}).",
        "yes" if apart and neurons["rate"] >= 0.5 else "partly" if apart else "no",
        "more than by chance (intervals apart), and for at least half of the concepts",
    )


def clamping_verdict(dose_summary: Mapping[str, Any]) -> str:
    """The verdict on clamping at the up projection, a key of `MARKS`."""
    up, chance = dose_summary["all"]["up"], dose_summary["chance"]
    raises = up["beats_rise"]["low"] > chance and up["raised"]["low"] > 0.5
    moves = up["beats_swing"]["low"] > chance
    return "yes" if raises and moves else "partly" if moves or raises else "no"


def _clamping(dose_summary: Mapping[str, Any], compared: float) -> Claim:
    up = dose_summary["all"]["up"]
    return Claim(
        "Clamping such a neuron's up projection moves the probability of its concept.",
        f"Clamped to +{compared}, the word becomes likelier for {percent(up['raised'])}; "
        f"it rises more than under every random neuron for {percent(up['beats_rise'])}, and the difference between "
        f"the positive and the negative clamp is larger than any random neuron's for {percent(up['beats_swing'])} "
        f"(by chance {dose_summary['chance']:.0%}).",
        clamping_verdict(dose_summary),
        "yes: raised in most concepts, and both comparisons above chance; in part: one comparison above chance",
    )


def _favourite(pooled: Mapping[str, Any]) -> Claim:
    clamped = pooled["paper clamped"]["fluent_success"]
    others = [pooled[side]["fluent_success"]["high"] for side in ("plain", "paper random")]
    return Claim(
        "With the “dog” neuron clamped the model always discusses dogs when asked for its favourite animal.",
        f"Three neurons, up projection: fluent answers about the animal {percent(clamped)}; plain model "
        f"{percent(pooled['plain']['fluent_success'])}; random neurons clamped equally "
        f"{percent(pooled['paper random']['fluent_success'])}.",
        "yes" if clamped["rate"] >= 0.95 else "partly" if clamped["low"] > max(others) else "no",
        "yes: at least 95%; in part: interval above those of the plain model and of random neurons",
    )


def _speed(decoding: Mapping[str, Any], model: str) -> Claim:
    spent, minutes = decoding["timing"]["up"], decoding["timing"]["llama_8b_cpu_minutes"]
    return Claim(
        "All up-projection neurons of Llama 3.1 8B are decoded in less than 15 minutes without parallelism, in "
        "10 seconds on a GPU.",
        f"{decoding['neurons']:,} up neurons of {model}: {spent['cpu_seconds']:.0f} s of CPU time, "
        f"{spent['gflop_per_cpu_second']:.0f} GFLOP per second of it. At that rate Llama 3.1 8B's 458,752, of "
        f"{2 * 4096 * 128256 / 1e9:.1f} GFLOP each, take {minutes:.0f} minutes.",
        "open",
        "another machine and model; the figure is given for comparison",
    )


def paired_p(one: int, other: int) -> float:
    """P-value of McNemar's exact two-sided test that two counts of discordant pairs are equal."""
    n = one + other
    tail = sum(math.comb(n, k) for k in range(max(one, other), n + 1)) / 2**n
    return min(1.0, 2 * tail)
