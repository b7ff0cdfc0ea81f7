"""Data, learners and one trial of the study of learning kinds of text one after another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import workbench as wb
from workbench.dictionaries.codes import Codes
from workbench.figures.common import AGAINST, FOR

POINT = "blocks.15.hook_resid_post"
ORDERED, MIXED, AS_MIXED = "one after another", "all mixed", "one after another, at the rate for all mixed"
"""Ways to learn. The best rate for an order is known only after all kinds were seen; the third way therefore has the
rate that is best when they are mixed."""
COLOURS = {"key-value bottleneck": FOR, "linear probe": AGAINST, "MLP": "#7c8b93"}


@dataclass(frozen=True)
class Plan:
    """What is learned from, and how.

    Attributes named `rates` are learning rates, one of which is chosen for each learner.
    """

    tokens: int = 64
    """Tokens of each text that are read, from its beginning."""
    epochs: int = 20
    """Passes over the texts of one kind before the next kind."""
    batch: int = 16
    codebooks: int = 256
    n_keys: int = 1024
    d_key: int = 32
    seeds: int = 5
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    probe_rates: tuple[float, ...] = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


SMALLEST = Plan(
    tokens=8, epochs=1, codebooks=8, n_keys=8, d_key=4, seeds=1, rates=(0.1,), probe_rates=(1e-3,)
)  # fmt: skip
"""Checks that the study runs."""


@dataclass(frozen=True)
class Data:
    """Activations of texts and their kinds, in three parts."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]
    kinds: list[str]


def data(x: Tensor, labels: Sequence[str], seed: int) -> Data:
    """The parts `learn` (60% of each kind), `choose` (20%, for learning rates) and `test` (20%), standardised.

    Args:
        x: activations `[texts, width]`.
        labels: the kind of each text.
        seed: of the split.
    """
    kinds = sorted(set(labels))
    y = torch.tensor([kinds.index(label) for label in labels])
    chance = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {"learn": [], "choose": [], "test": []}
    for kind in range(len(kinds)):
        rows = (y == kind).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=chance)]
        first, second = round(0.6 * len(rows)), round(0.8 * len(rows))
        for name, part in zip(parts, (rows[:first], rows[first:second], rows[second:]), strict=True):
            parts[name].append(part)
    at = {name: torch.cat(part) for name, part in parts.items()}
    mean, std = x[at["learn"]].mean(0), x[at["learn"]].std(0) + 1e-6
    return Data({n: (x[r] - mean) / std for n, r in at.items()}, {n: y[r] for n, r in at.items()}, kinds)


Learner = tuple[Callable[[Tensor], object], Callable[[str], Tensor]]
"""A function that learns from the texts at some rows of the part `learn`, and one that returns scores `[texts, kinds]`
of a part."""


class Trial:
    """One split of the texts and one order of the kinds.

    Args:
        x: activations `[texts, width]`.
        labels: the kind of each text.
        plan: the settings.
        seed: of the split, the order, the keys and the learners.
    """

    def __init__(self, x: Tensor, labels: Sequence[str], plan: Plan, seed: int):
        self.data, self.plan, self.seed = data(x, labels, seed), plan, seed
        chance = torch.Generator().manual_seed(seed + 50)
        self.order: list[int] = torch.randperm(len(self.data.kinds), generator=chance).tolist()

    @functools.cached_property
    def keys(self) -> wb.dictionaries.KeyValueBottleneck:
        """The bottleneck with learned keys; keys are learned without labels."""
        bottleneck = wb.dictionaries.KeyValueBottleneck(
            self.data.x["learn"].shape[1],
            len(self.data.kinds),
            self.plan.codebooks,
            self.plan.n_keys,
            self.plan.d_key,
            seed=self.seed,
        )
        bottleneck.learn_keys(self.data.x["learn"], epochs=10, seed=self.seed)
        return bottleneck

    @functools.cached_property
    def codes(self) -> dict[str, Codes]:
        """Codes of all texts by part, from the frozen keys."""
        return {part: self.keys.encode(x) for part, x in self.data.x.items()}

    def learner(self, name: str, rate: float) -> Learner:
        """A new learner of this name and learning rate."""
        x, y = self.data.x, self.data.y["learn"]
        if name == "key-value bottleneck":
            keys, codes = self.keys, self.codes
            keys.values.zero_()
            values, indices, n = codes["learn"].values, codes["learn"].indices, codes["learn"].n_features
            return lambda rows: keys.learn(
                Codes(values[rows], indices[rows], n), y[rows], lr=rate
            ), lambda part: keys.decode(codes[part])
        torch.manual_seed(self.seed)
        width, kinds = x["learn"].shape[1], len(self.data.kinds)
        net: nn.Module = nn.Linear(width, kinds)
        if name == "MLP":
            net = nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, kinds))
        optimiser = torch.optim.Adam(net.parameters(), lr=rate, fused=True)

        def learn(rows: Tensor) -> None:
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x["learn"][rows]), y[rows], label_smoothing=0.1).backward()
            optimiser.step()

        return learn, lambda part: net(x[part]).detach()

    def run(self, name: str, rate: float, mixed: bool) -> dict[str, Any]:
        """Learn the kinds one after another, or all mixed.

        Returns:
            `choose` and `test`: the final accuracy on these parts. `curve`: after each kind the accuracy on the texts
            of `choose` whose kinds were seen.
        """
        learn, score = self.learner(name, rate)
        chance = torch.Generator().manual_seed(self.seed)
        y = self.data.y
        curve = []
        for number, kind in enumerate([-1] if mixed else self.order):
            rows = torch.arange(len(y["learn"])) if mixed else (y["learn"] == kind).nonzero()[:, 0]
            for _ in range(self.plan.epochs):
                for batch in rows[torch.randperm(len(rows), generator=chance)].split(self.plan.batch):
                    learn(batch)
            seen = torch.isin(y["choose"], torch.tensor(self.order[: None if mixed else number + 1]))
            curve.append(float((score("choose").argmax(-1) == y["choose"])[seen].double().mean()))
        test = float((score("test").argmax(-1) == y["test"]).double().mean())
        return {"choose": curve[-1], "test": test, "curve": curve}
