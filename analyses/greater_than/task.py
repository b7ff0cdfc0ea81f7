"""The greater-than task in single digits, and the model's behaviour on it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from workbench.dictionaries.coder import SparseCoder
from workbench.model.edits import BoundEdit, Edit

PUBLISHED = {"model": 0.883, "transcoder 10": 0.798}
"""P-difference in the paper, on GPT-2 small, whose endings of two digits are one token."""
NOUNS = ("war", "siege", "reign", "voyage", "project", "strike", "trial", "drought", "expedition", "treaty")
CENTURIES = (16, 17, 18)
DECADES = tuple(range(2, 8))
"""Decades of start years; at least two digits lie above and two below each."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    prompts: int = 150
    graphs: int = 12
    """Prompts with an attribution graph."""
    top: int = 10
    """Latents and tokens listed."""
    seed: int = 0


SMALLEST = Plan(prompts=4, graphs=1, top=3)
"""Checks that the study runs."""


def prompts(plan: Plan) -> list[tuple[str, int, int]]:
    """Prompts with the decade and the unit of their start year, in random order."""
    every = list(itertools.product(NOUNS, CENTURIES, DECADES, range(2, 9)))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(plan.seed)).tolist()[: plan.prompts]
    chosen = [every[place] for place in order]
    return [
        (f"The {noun} lasted from the year {century}{decade}{unit} to the year {century}", decade, unit)
        for noun, century, decade, unit in chosen
    ]


def digit_ids(model: wb.model.LanguageModel) -> list[int]:
    """Token ids of the ten digits.

    Raises:
        ValueError: the tokenizer does not write each digit as one token.
    """
    rows = [model.to_tokens(str(digit), start=False)[0].tolist() for digit in range(10)]
    if any(len(ids) != 1 for ids in rows):
        raise ValueError(f"{model.name} does not write each digit as one token; the task needs another form there.")
    return [ids[0] for ids in rows]


def p_difference(probabilities: Tensor, decades: Tensor) -> Tensor:
    """P(digits above the decade) - P(digits below): `[n]`, from probabilities of the ten digits `[n, 10]`."""
    digits = torch.arange(10)
    above, below = digits > decades[:, None], digits < decades[:, None]
    return (probabilities * above).sum(1) - (probabilities * below).sum(1)


def behaviour(
    model: wb.model.LanguageModel, examples: Sequence[tuple[str, int, int]], edits: Sequence[BoundEdit] = ()
) -> dict[str, Any]:
    """Figures of the task under edits: mean P-difference with its standard error, and the mean probability by digit.

    `digits` is the mean total probability of the ten digits, `not_below` the share of prompts whose most likely digit
    is the decade or above it.
    """
    ids, decades = torch.tensor(digit_ids(model)), torch.tensor([decade for _, decade, _ in examples])
    groups: dict[int, list[int]] = {}
    rows = [model.to_tokens(text)[0] for text, _, _ in examples]
    for number, row in enumerate(rows):
        groups.setdefault(len(row), []).append(number)
    probabilities = torch.zeros(len(examples), 10)
    with torch.inference_mode():
        for places in groups.values():
            for batch in torch.tensor(places).split(25):
                tokens = torch.stack([rows[number] for number in batch.tolist()])
                logits = model.run(tokens, edits, last=1)[:, -1]
                probabilities[batch] = logits.softmax(-1)[:, ids]
    differences = p_difference(probabilities, decades)
    best = probabilities.argmax(1)
    return {
        "p_difference": float(differences.mean()),
        "standard_error": float(differences.std() / len(differences) ** 0.5),
        "digits": float(probabilities.sum(1).mean()),
        "not_below": float((best >= decades).double().mean()),
        "by_digit": [probabilities[decades == decade].mean(0).tolist() for decade in DECADES],
    }


def replaced(coder: SparseCoder) -> list[Edit]:
    """Edits that replace an MLP's output by its transcoder's, from the second token on."""
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen[:] = [x]
        return x

    def write(x: Tensor) -> Tensor:
        output = coder.reconstruct(seen.pop())
        return torch.cat([x[:, :1], output[:, 1:]], 1)

    return [Edit(coder.reads, remember), Edit(coder.writes, write)]


def removed(coder: SparseCoder) -> list[Edit]:
    """The edit that zeroes the output of a transcoder's MLP, from the second token on."""
    return [Edit(coder.writes, lambda x: torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1))]
