"""What a model of a finite state machine knows of it: codes that stand for states, and the states it expects next.

Tamkin, Taufeeque, Goodman, "Codebook Features" (2023), arXiv 2310.17230, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.dictionaries.codebook import Codebook
from workbench.edits import Intervention
from workbench.features import Feature
from workbench.generation import LanguageModel
from workbench.tokfsm import TokFSM

ROWS = 64
"""Walks that run at once."""


@dataclass(frozen=True)
class StateCounts:
    """How often each feature was active at the last digit of each state."""

    counts: Mapping[str, Tensor]
    """By hook point: tokens on which the feature was active, `[n_features, states]`."""
    seen: Tensor
    """How often each state was visited: `[states]`."""

    def precision(self, hook_point: str) -> Tensor:
        """Share of a feature's activations that are on a state: `[n_features, states]`; 0 for silent features."""
        counts = self.counts[hook_point].double()
        return counts / counts.sum(1, keepdim=True).clamp(min=1)

    def recall(self, hook_point: str) -> Tensor:
        """Share of a state's visits on which a feature is active: `[n_features, states]`."""
        return self.counts[hook_point].double() / self.seen.clamp(min=1)


@torch.inference_mode()
def count_codes(
    model: LanguageModel, machine: TokFSM, hook_points: Sequence[str] = (), walks: int = 1024, *, seed: int = 2
) -> StateCounts:
    """Count on random walks which codes of the model's own codebooks are active on which states.

    Args:
        model: of the machine's language.
        machine: the machine.
        hook_points: where; all of the model's own dictionaries if empty.
        walks: how many, each as long as the model sees.
        seed: of the walks.
    """
    points = list(hook_points) or list(model.splices)
    books = {point: model.splices[point] for point in points}
    counts = {p: torch.zeros(b.n_features * machine.states, dtype=torch.long) for p, b in books.items()}  # type: ignore[attr-defined]
    seen = torch.zeros(machine.states, dtype=torch.long)
    for visited, found in at_states(model, machine, points, walks, seed=seed):
        seen += torch.bincount(visited, minlength=machine.states)
        for point, x in found.items():
            indices = books[point].encode(x).indices  # type: ignore[attr-defined]  # [n, k]
            counts[point] += torch.bincount(
                (indices * machine.states + visited[:, None]).flatten(), minlength=len(counts[point])
            )
    return StateCounts({point: one.view(-1, machine.states) for point, one in counts.items()}, seen)


def at_states(
    model: LanguageModel, machine: TokFSM, hook_points: Sequence[str], walks: int, *, seed: int
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """States visited on random walks `[n]`, and the activations at their last digits `[n, width]` by hook point."""
    length = (model.network.n_ctx - 1) // machine.digits
    visited = machine.walk(walks, length, [machine.seed, 19, seed])
    places = torch.arange(1, length + 1) * machine.digits
    for some in visited.split(ROWS):
        found = model.capture(machine.write(some), list(hook_points))
        yield some.flatten(), {name: x[:, places].flatten(2).flatten(0, 1) for name, x in found.items()}


def codes_of_state(model: LanguageModel, counted: StateCounts, state: int) -> list[Feature]:
    """For each codebook, and each group of it, the code that is active on this state most often."""
    features = []
    for point, counts in counted.counts.items():
        book = model.splices[point]
        assert isinstance(book, Codebook)
        best = counts[:, state].view(book.groups, book.n_codes).argmax(1)
        features += [book.feature(group * book.n_codes + code) for group, code in enumerate(best.tolist())]
    return features


@torch.inference_mode()
def next_states(
    model: LanguageModel, machine: TokFSM, visited: Tensor, interventions: Sequence[Intervention] = ()
) -> Tensor:
    """Which state the model expects after walks `[rows, length]`: probabilities `[rows, states]`.

    The probability of a state is that of its digits one after another, each given those before. What is left to one is
    on tokens that are no state.
    """
    tokens = machine.write(visited)
    shares = torch.ones(len(tokens), 1)
    with model.intervening(interventions):
        for _ in range(machine.digits):
            logits = torch.cat([model(part)[:, -1] for part in tokens.split(ROWS * machine.base)])
            digit = logits.softmax(-1)[:, : machine.base].view(*shares.shape, machine.base)  # [rows, prefixes, base]
            shares = (shares[..., None] * digit).flatten(1)
            tokens = tokens.repeat_interleave(machine.base, 0)
            appended = torch.arange(machine.base).repeat(len(tokens) // machine.base)[:, None]
            tokens = torch.cat([tokens, appended], 1)
    return shares[:, : machine.states]
