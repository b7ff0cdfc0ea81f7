"""The two clamping experiments of `neuron_decoding.py`: dose-response, and the favourite animal."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.shared.report import Notes, say, wilson
from workbench.dictionaries.features import Feature
from workbench.interventions.kinds import Clamp
from workbench.measures.comparison import random_twins, repetition
from workbench.model.edits import Group, Run
from workbench.model.language_model import Decoder, LanguageModel
from workbench.model.sampling import Sampling

SEED = 0
SITES = ("gate", "up", "post")
ROWS = 48
"""Clamped copies of a prompt that run at once."""
N_ANIMALS = 3
"""Neurons of the favourite-animal experiment."""


# Does clamping a neuron move the probability of its word?


def next_word(model: LanguageModel, prompt: str, clamps: Sequence[Clamp], words: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability that the next token is a form of a word, for the plain model and under each clamp alone.

    Args:
        model: the model.
        prompt: a text.
        clamps: one per row.
        words: for each word the tokens that are its forms.

    Returns:
        `[1 + clamps, words + 1]`; the last column is KL(plain ‖ clamped) in nats, the first row the plain model.
    """
    tokens = model.to_tokens(prompt)
    plain: Tensor | None = None
    found = []
    bound = [[], *(model.bind([clamp]) for clamp in clamps)]
    for first in range(0, len(bound), ROWS):
        some = bound[first : first + ROWS]
        run = Run([Group(edits, slice(row, row + 1)) for row, edits in enumerate(some)])
        with torch.inference_mode():
            logits = model.network.run(tokens.expand(len(some), -1), run, last=1)[:, -1]  # [rows, vocab]
            logprobs = logits.log_softmax(-1)
            plain = logprobs[:1] if plain is None else plain
            kl = (plain.exp() * (plain - logprobs)).sum(-1)
            found.append(torch.stack([*(logprobs[:, list(ids)].logsumexp(-1) for ids in words), kl], -1))
    return torch.cat(found)


def measure_dose(
    model: LanguageModel, plan: dict[str, Any], concepts: dict[str, Any], ids: dict[str, list[int]], notes: Notes
) -> dict[str, Any]:
    """Clamp each concept's neuron, and random ones of its layer, at every site to every value."""
    dose, by_layer = plan["dose"], {}
    for concept, row in concepts.items():
        by_layer.setdefault(row["layer"], []).append(concept)
    n_layers, found = len(by_layer), {}
    for number, (layer, here) in enumerate(sorted(by_layer.items())):
        for site in SITES:
            say(f"Dose-response, layer {layer} ({number + 1} of {n_layers}), {site}")
            indices = {concept: concepts[concept]["index"] for concept in here}
            make = partial(dose_in_layer, model, dose, f"neurons.{layer}.{site}", indices, ids)
            found[layer, site] = notes.get(f"dose/{layer}/{site}", make)
    return {
        concept: {site: dose_of(concept, list(concepts), dose, found[row["layer"], site]) for site in SITES}
        for concept, row in concepts.items()
    }


def dose_in_layer(
    model: LanguageModel, dose: dict[str, Any], neurons: str, indices: dict[str, int], ids: dict[str, list[int]]
) -> dict[str, Any]:
    """Mean change of every word's log-probability, and mean KL, over the prompts: `[values][words + 1]` per neuron.

    Args:
        model: the model.
        dose: the plan for this experiment.
        neurons: where to clamp, `neurons.{layer}.{site}`.
        indices: the neuron of each concept that has its own in this layer.
        ids: the tokens that are forms of each concept's word.
    """
    _, layer, site = neurons.split(".")
    width = model.network.neuron_hook_point(int(layer), site).width
    others = [index for index in range(width) if index not in indices.values()]
    drawn = random.Random(f"{SEED} {layer}").sample(others, dose["random"])  # the same at every site
    every = [*indices.values(), *drawn]
    clamps = [Clamp(Feature(neurons, index), float(value)) for index in every for value in dose["values"]]
    total = torch.zeros(len(clamps), len(ids) + 1)
    for prompt in dose["prompts"]:
        rows = next_word(model, prompt, clamps, list(ids.values()))
        total += rows[1:] - rows[:1]
    mean = (total / len(dose["prompts"])).reshape(len(every), len(dose["values"]), -1)
    rounded = [[[round(x, 4) for x in value] for value in neuron] for neuron in mean.tolist()]
    return {"own": dict(zip(indices, rounded, strict=False)), "random": rounded[len(indices) :], "drawn": drawn}


def dose_of(concept: str, words: list[str], dose: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """One concept at one site: its curve, the random neurons' curves, and how it compares at the value compared."""
    column, values, at = words.index(concept), dose["values"], dose["compared"]
    own = np.array(found["own"][concept])  # [values, words + 1]
    others = np.array(found["random"])  # [random, values, words + 1]
    up, down = values.index(at), values.index(-at)
    swing = own[up] - own[down]
    random_swing = others[:, up, column] - others[:, down, column]
    rest = np.delete(swing[:-1], column)
    return {
        "curve": own[:, column].tolist(),
        "kl": own[:, -1].tolist(),
        "random_curves": others[:, :, column].tolist(),
        "random_kl": others[:, :, -1].mean(0).tolist(),
        "rise": float(own[up, column]),
        "random_rise": others[:, up, column].tolist(),
        "swing": float(swing[column]),
        "random_swing": random_swing.tolist(),
        "beats_rise": bool((own[up, column] > others[:, up, column]).all()),
        "beats_swing": bool((abs(swing[column]) > abs(random_swing)).all()),
        "word_rank": int((abs(rest) >= abs(swing[column])).sum()),
        "word_changes": own[up, :-1].tolist(),
    }


def summarise_dose(dose: dict[str, Any], concepts: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Over all concepts, and over the specialised ones alone, at each site."""
    groups = {"all": list(dose), "specialised": [c for c in dose if concepts[c]["specialised"]]}
    said: dict[str, Any] = {"chance": 1 / (plan["random"] + 1)}
    at = plan["values"].index(plan["compared"])
    for name, members in groups.items():
        said[name] = {}
        for site in SITES if members else ():
            rows = [dose[concept][site] for concept in members]
            said[name][site] = {
                "rise": float(np.mean([row["rise"] for row in rows])),
                "random_rise": float(np.mean([row["random_rise"] for row in rows])),
                "swing": float(np.mean([abs(row["swing"]) for row in rows])),
                "random_swing": float(np.mean(np.abs([row["random_swing"] for row in rows]))),
                "raised": wilson(sum(row["rise"] > 0 for row in rows), len(rows)),
                "same_sign": wilson(sum(row["swing"] > 0 for row in rows), len(rows)),
                "beats_rise": wilson(sum(row["beats_rise"] for row in rows), len(rows)),
                "beats_swing": wilson(sum(row["beats_swing"] for row in rows), len(rows)),
                "own_word_first": wilson(sum(row["word_rank"] == 0 for row in rows), len(rows)),
                "kl": float(np.mean([row["kl"][at] for row in rows])),
                "random_kl": float(np.mean([row["random_kl"][at] for row in rows])),
            }
    return said


# Does the model talk about the animal?


def choose_animals(found: dict[str, Any]) -> list[str]:
    """The animals whose neurons name them best, by the same three marks, each neuron taken once."""
    order = sorted(found, key=lambda a: (found[a]["top_is_form"], found[a]["forms"], found[a]["excess"]), reverse=True)
    chosen: dict[tuple[int, int], str] = {}
    for animal in order:
        chosen.setdefault((found[animal]["layer"], found[animal]["index"]), animal)
    return list(chosen.values())[:N_ANIMALS]


class Interview:
    """Asks all phrasings at once, the held-out ones first, and judges the answers by the plain model.

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
        """What the model answers under these clamps, with each text's length, perplexity and repetition."""
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
    """How many answers talk about an animal, how many of these are fluent, and what the texts are like.

    Args:
        rows: the answers.
        animal: which one is meant.
        words: of every animal, by which an answer talks about it.
        limits: what is fluent.
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
    """Whether one of the words stands in a text, as a whole word in any case."""
    return re.search(rf"\b({'|'.join(map(re.escape, words))})\b", text.casefold()) is not None


def is_fluent(row: dict[str, Any], limits: dict[str, Any]) -> bool:
    """Whether an answer is text rather than noise or the same words over and over, by the plan's limits."""
    return row["perplexity"] <= limits["max_perplexity"] and row["repetition"] <= limits["max_repetition"]


def settings(favourite: dict[str, Any], sites: Sequence[str] | None = None) -> list[tuple[str, float]]:
    """All sites and values that are tried; at the gate a negative value only shuts the neuron, so it is left out."""
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
    model: LanguageModel, plan: dict[str, Any], found: dict[str, Any], notes: Notes
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The favourite-animal experiment: numbers, and all answers."""
    favourite = plan["favourite"]
    words = {animal: [*said["forms"], *said["also"]] for animal, said in plan["animals"].items()}
    talk = Interview(model, favourite)
    modes = {"greedy": 0.0, "sampled": favourite["temperature"]}
    plain = {mode: notes.get(f"plain/{mode}", partial(talk.answers, [], heat)) for mode, heat in modes.items()}
    texts: dict[str, Any] = {"plain": plain}
    chosen, numbers = choose_animals(found), {}
    skip = len(favourite["held_out"])
    for place, animal in enumerate(chosen):
        grid = {}
        for site, value in settings(favourite):
            say(f"Favourite animal: {animal} ({place + 1} of {len(chosen)}), {site} at {value:g}")
            clamp = clamp_at(found[animal], site, value)
            grid[site, value] = notes.get(f"grid/{clamp}", partial(talk.answers, [clamp]))
        counted = {setting: judge(rows[skip:], animal, words, favourite) for setting, rows in grid.items()}
        said = numbers[animal] = {
            "feature": found[animal]["feature"],
            "layer": found[animal]["layer"],
            "index": found[animal]["index"],
            "tokens": found[animal]["tokens"],
            "plain": {mode: judge(rows[skip:], animal, words, favourite) for mode, rows in plain.items()},
            "grid": [{"site": site, "value": value} | verdict for (site, value), verdict in counted.items()],
            "chosen": {},
        }
        texts[animal] = {"grid": {f"{site} {value:g}": rows for (site, value), rows in grid.items()}}
        for kind, sites in (("paper", favourite["sites"][:1]), ("any", favourite["sites"])):
            site, value = choose_setting(grid, animal, words, favourite, sites)
            clamp = clamp_at(found[animal], site, value)
            rows = {"greedy": grid[site, value]}
            rows["sampled"] = notes.get(f"sampled/{clamp}", partial(talk.answers, [clamp], modes["sampled"]))
            twins = random_answers(talk, clamp, favourite["random"], modes, notes)
            texts[animal][kind] = {"sampled": rows["sampled"], "random": twins}
            said["chosen"][kind] = {"site": site, "value": value, "clamped": {}, "random": {}}
            for mode in modes:
                pooled = [row for twin in twins for row in twin[mode][skip:]]
                said["chosen"][kind]["clamped"][mode] = judge(rows[mode][skip:], animal, words, favourite)
                said["chosen"][kind]["random"][mode] = judge(pooled, animal, words, favourite)
    return {"animals": numbers, "pooled": pool(numbers, modes)}, texts


def clamp_at(found: dict[str, Any], site: str, value: float) -> Clamp:
    """A clamp on a neuron that was found, at any site of its MLP."""
    return Clamp(Feature(f"neurons.{found['layer']}.{site}", found["index"]), value)


def random_answers(
    talk: Interview, clamp: Clamp, count: int, modes: dict[str, float], notes: Notes
) -> list[dict[str, Any]]:
    """The answers with random neurons of the same layer clamped at the same site to the same value."""
    found = []
    for seed in range(count):
        (twin,) = random_twins(talk.model, [clamp], seed)
        say(f"Favourite animal: random neuron {twin}")
        found.append(
            {
                mode: notes.get(f"random/{mode}/{twin}", partial(talk.answers, [twin], heat))
                for mode, heat in modes.items()
            }
        )
    return found


def pool(numbers: dict[str, Any], modes: Sequence[str] | dict[str, float]) -> dict[str, Any]:
    """Success rates over all three animals together."""

    def together(mark: str, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
        return wilson(sum(v[mark]["k"] for v in verdicts), sum(v[mark]["n"] for v in verdicts))

    said: dict[str, Any] = {}
    for mode in modes:
        sides = {"plain": [animal["plain"][mode] for animal in numbers.values()]}
        for kind in ("paper", "any"):
            for side in ("clamped", "random"):
                sides[f"{kind} {side}"] = [animal["chosen"][kind][side][mode] for animal in numbers.values()]
        said[mode] = {
            name: {mark: together(mark, verdicts) for mark in ("success", "fluent_success")}
            for name, verdicts in sides.items()
        }
    return said
