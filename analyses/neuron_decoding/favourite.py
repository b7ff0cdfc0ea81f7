"""The favourite-animal experiment: whether a model with a clamped animal neuron talks about this animal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from analyses.neuron_decoding.plan import SEED
from analyses.shared.report import Notes, say, wilson
from workbench.dictionaries.features import Feature
from workbench.evaluation import repetition
from workbench.interventions.kinds import Clamp
from workbench.measures.comparison import random_twins
from workbench.model.language_model import Decoder, LanguageModel
from workbench.model.sampling import Sampling

N_ANIMALS = 3
"""Animals whose neurons are clamped."""


def choose_animals(animals: dict[str, Any]) -> list[str]:
    """The animals whose neurons name them best, by the order of `best_neuron`; each neuron is used once."""
    marks = ("top_is_form", "forms", "excess")
    order = sorted(animals, key=lambda name: [animals[name][mark] for mark in marks], reverse=True)
    chosen: dict[tuple[int, int], str] = {}
    for animal in order:
        chosen.setdefault((animals[animal]["layer"], animals[animal]["index"]), animal)
    return list(chosen.values())[:N_ANIMALS]


class Interview:
    """Asks all phrasings at once, the held-out ones first, and scores the answers under the plain model.

    Args:
        model: the model.
        favourite: the plan for this experiment.
    """

    def __init__(self, model: LanguageModel, favourite: dict[str, Any]):
        self.model = model
        self.new = favourite["tokens"]
        self.prompts = [model.chat_prompt(text) for text in favourite["held_out"] + favourite["counted"]]
        self.plain = Decoder(model.network, [], *model.prompt_batch(self.prompts, self.new), self.new)

    def answers(self, clamps: Sequence[Clamp], temperature: float = 0.0) -> list[dict[str, Any]]:
        """The model's answers under these clamps, each with its length, perplexity and repetition."""
        sampling = Sampling(temperature, seed=SEED)
        written = self.model.generate_batch(self.prompts, self.new, interventions=clamps, sampling=sampling)
        return [
            {"text": one.text, "length": len(one.tokens), "perplexity": value, "repetition": repetition(one.tokens)}
            for one, value in zip(written, self.perplexities([one.tokens for one in written]), strict=True)
        ]

    def perplexities(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """Perplexity of the answer to each phrasing under the plain model; NaN for an empty one."""
        longest = max(1, *map(len, texts))
        tokens = torch.tensor([[*text] + [0] * (longest - len(text)) for text in texts])  # [rows, new]
        followed = self.plain.fork(list(range(len(texts))), []).feed(tokens)  # [rows, new, vocab]
        logits = torch.cat([self.plain.logits[:, None], followed[:, :-1]], 1)
        logprobs = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
        return [
            math.exp(-float(row[: len(text)].mean())) if text else math.nan
            for row, text in zip(logprobs, texts, strict=True)
        ]


def judge(
    rows: Sequence[dict[str, Any]], animal: str, words: dict[str, list[str]], limits: dict[str, Any]
) -> dict[str, Any]:
    """Rates of answers that talk about an animal, and of fluent ones; perplexity, repetition, and the animals named.

    Args:
        rows: the answers.
        animal: the animal.
        words: the words of every animal, by which an answer talks about it.
        limits: the plan's limits of a fluent answer.
    """
    about = [mentions(row["text"], words[animal]) for row in rows]
    named = {name: sum(mentions(row["text"], own) for row in rows) for name, own in words.items()}
    fluent = [is_fluent(row, limits) for row in rows]
    return {
        "success": wilson(sum(about), len(rows)),
        "fluent_success": wilson(sum(a and f for a, f in zip(about, fluent, strict=True)), len(rows)),
        "fluent": float(np.mean(fluent)),
        "perplexity": float(np.median([row["perplexity"] for row in rows if row["length"]] or [math.nan])),
        "repetition": float(np.mean([row["repetition"] for row in rows])),
        "named": dict(sorted(((name, k) for name, k in named.items() if k), key=lambda item: -item[1])),
    }


def mentions(text: str, words: Sequence[str]) -> bool:
    """Whether a text contains one of the words, as a whole word in any case."""
    return re.search(rf"\b({'|'.join(map(re.escape, words))})\b", text.casefold()) is not None


def is_fluent(row: dict[str, Any], limits: dict[str, Any]) -> bool:
    """Whether the perplexity and the repetition of an answer are within the plan's limits."""
    return row["perplexity"] <= limits["max_perplexity"] and row["repetition"] <= limits["max_repetition"]


def settings(favourite: dict[str, Any], sites: Sequence[str] | None = None) -> list[tuple[str, float]]:
    """All pairs of site and value; at the gate negative values are left out, since they only shut the neuron."""
    return [
        (site, float(value))
        for site in sites or favourite["sites"]
        for value in favourite["values"]
        if site != "gate" or value > 0
    ]


def choose_setting(
    grid: dict[tuple[str, float], list[dict[str, Any]]],
    animal: str,
    words: dict[str, list[str]],
    favourite: dict[str, Any],
    sites: Sequence[str],
) -> tuple[str, float]:
    """The setting with most fluent answers about the animal on the held-out phrasings; the weakest of equals."""
    held_out = len(favourite["held_out"])

    def merit(setting: tuple[str, float]) -> tuple[int, int, float]:
        verdict = judge(grid[setting][:held_out], animal, words, favourite)
        return verdict["fluent_success"]["k"], verdict["success"]["k"], -abs(setting[1])

    return max(settings(favourite, sites), key=merit)  # of equals the first in the plan's order


def favourite_animal(
    model: LanguageModel, plan: dict[str, Any], animals: dict[str, Any], notes: Notes
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of the experiment, and all answers.

    Args:
        model: the model.
        plan: as `read_plan` returns it.
        animals: the best neuron of each animal.
        notes: where answers are kept.
    """
    favourite = plan["favourite"]
    words = {animal: [*row["forms"], *row["also"]] for animal, row in plan["animals"].items()}
    talk = Interview(model, favourite)
    modes = {"greedy": 0.0, "sampled": favourite["temperature"]}
    plain = {mode: notes.get(f"plain/{mode}", partial(talk.answers, [], heat)) for mode, heat in modes.items()}
    texts: dict[str, Any] = {"plain": plain}
    chosen, numbers = choose_animals(animals), {}
    skip = len(favourite["held_out"])
    for place, animal in enumerate(chosen):
        grid = {}
        for site, value in settings(favourite):
            say(f"Favourite animal: {animal} ({place + 1} of {len(chosen)}), {site} at {value:g}")
            clamp = clamp_at(animals[animal], site, value)
            grid[site, value] = notes.get(f"grid/{clamp}", partial(talk.answers, [clamp]))
        counted = {setting: judge(rows[skip:], animal, words, favourite) for setting, rows in grid.items()}
        row = numbers[animal] = {
            **{key: animals[animal][key] for key in ("feature", "layer", "index", "tokens")},
            "plain": {mode: judge(rows[skip:], animal, words, favourite) for mode, rows in plain.items()},
            "grid": [{"site": site, "value": value} | verdict for (site, value), verdict in counted.items()],
            "chosen": {},
        }
        texts[animal] = {"grid": {f"{site} {value:g}": rows for (site, value), rows in grid.items()}}
        for kind, sites in (("paper", favourite["sites"][:1]), ("any", favourite["sites"])):
            site, value = choose_setting(grid, animal, words, favourite, sites)
            clamp = clamp_at(animals[animal], site, value)
            answers = {"greedy": grid[site, value]}
            answers["sampled"] = notes.get(f"sampled/{clamp}", partial(talk.answers, [clamp], modes["sampled"]))
            twins = random_answers(talk, clamp, favourite["random"], modes, notes)
            texts[animal][kind] = {"sampled": answers["sampled"], "random": twins}
            row["chosen"][kind] = {"site": site, "value": value, "clamped": {}, "random": {}}
            for mode in modes:
                pooled = [answer for twin in twins for answer in twin[mode][skip:]]
                row["chosen"][kind]["clamped"][mode] = judge(answers[mode][skip:], animal, words, favourite)
                row["chosen"][kind]["random"][mode] = judge(pooled, animal, words, favourite)
    return {"animals": numbers, "pooled": pool(numbers, modes)}, texts


def clamp_at(neuron: dict[str, Any], site: str, value: float) -> Clamp:
    """A clamp on a neuron, as `find_concepts` returns it, at any site of its MLP."""
    return Clamp(Feature(f"neurons.{neuron['layer']}.{site}", neuron["index"]), value)


def random_answers(
    talk: Interview, clamp: Clamp, count: int, modes: dict[str, float], notes: Notes
) -> list[dict[str, Any]]:
    """The answers with random neurons of the same layer clamped at the same site to the same value."""
    answers = []
    for seed in range(count):
        (twin,) = random_twins(talk.model, [clamp], seed)
        say(f"Favourite animal: random neuron {twin}")
        answers.append(
            {
                mode: notes.get(f"random/{mode}/{twin}", partial(talk.answers, [twin], heat))
                for mode, heat in modes.items()
            }
        )
    return answers


def pool(numbers: dict[str, Any], modes: Sequence[str] | dict[str, float]) -> dict[str, Any]:
    """Success rates over all animals together."""

    def together(mark: str, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
        return wilson(sum(v[mark]["k"] for v in verdicts), sum(v[mark]["n"] for v in verdicts))

    pooled: dict[str, Any] = {}
    for mode in modes:
        sides = {"plain": [animal["plain"][mode] for animal in numbers.values()]}
        for kind in ("paper", "any"):
            for side in ("clamped", "random"):
                sides[f"{kind} {side}"] = [animal["chosen"][kind][side][mode] for animal in numbers.values()]
        pooled[mode] = {
            name: {mark: together(mark, verdicts) for mark in ("success", "fluent_success")}
            for name, verdicts in sides.items()
        }
    return pooled
