"""The time of finding a concept's direction at every layer, beside one plain pass over the same texts.

    python benchmarks/bench_directions.py [--pairs 200] [--rounds 3] [--methods difference ridge]

Wanted for the difference of means: at most 1.2 times the pass. Both read texts in batches of like lengths; the pass
computes the logits of the last position alone. They take turns, so that other work on the machine slows both alike.
"""

from __future__ import annotations

import argparse
import random

import torch
from timing import Spent, medians, timed

import workbench as wb
from workbench.directions.samples import batches_of

SUBJECTS = ["The dog", "A cat", "My sister", "Our king", "The bird", "His friend", "The old man", "A girl", "That boy"]
PLACES = ["in the garden", "at home", "on the train", "near the river", "after lunch", "before the war"]
KIND = ["loved", "helped", "thanked", "praised"]
RUDE = ["hated", "hurt", "insulted", "blamed"]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["difference", "ridge"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    model = wb.load_model()
    positives, negatives = pairs(settings.pairs)
    passes: list[Spent] = []
    found: dict[str, list[Spent]] = {name: [] for name in settings.methods}
    plain_pass(model, [*positives, *negatives])
    for _ in range(settings.rounds):
        passes.append(timed(lambda: plain_pass(model, [*positives, *negatives]))[1])
        for name, spent in found.items():
            spent.append(
                timed(lambda name=name: wb.directions.find_directions(model, positives, negatives, method=name))[1]
            )
    plain = medians(passes)
    print(f"{settings.pairs} pairs, {model.network.n_layers} layers, {torch.get_num_threads()} threads")
    print(f"  a plain pass  {plain.wall:6.2f} s, {plain.cpu:6.2f} s of the processor")
    for name, spent in found.items():
        one, wanted = medians(spent), " (wanted: 1.2)" if name == "difference" else ""
        print(f"  {name:12}  {one.wall:6.2f} s, {one.cpu:6.2f} s, ratio {one.cpu / plain.cpu:5.2f}{wanted}", flush=True)


def pairs(count: int) -> tuple[list[str], list[str]]:
    """Sentences that differ by their verb, drawn from a seed."""
    chance = random.Random(0)
    drawn = [
        (f"{s} {{}} {o.lower()} {p}", k, r)
        for s in SUBJECTS
        for o in SUBJECTS
        for p in PLACES
        for k, r in zip(KIND, RUDE, strict=True)
    ]
    chance.shuffle(drawn)
    return [t.format(k) for t, k, _ in drawn[:count]], [t.format(r) for t, _, r in drawn[:count]]


def plain_pass(model: wb.model.LanguageModel, texts: list[str]) -> None:
    """Every text once through all layers."""
    rows = [model.to_tokens(text)[0].tolist() for text in texts]
    with torch.inference_mode():
        for batch in batches_of([len(row) for row in rows], model.network.causal):
            tokens = torch.zeros(len(batch), max(len(rows[one]) for one in batch), dtype=torch.long)
            for place, one in enumerate(batch):
                tokens[place, : len(rows[one])] = torch.tensor(rows[one])
            model.run(tokens.to(model.device), [], last=1)


if __name__ == "__main__":
    main()
