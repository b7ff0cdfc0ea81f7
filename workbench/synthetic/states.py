"""What a model of a finite state machine knows of it: codes that stand for states, and the states it expects next.

Tamkin, Taufeeque, Goodman, "Codebook Features" (2023), arXiv 2310.17230, section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.features import Feature
from workbench.dictionaries.folder import DictionaryError
from workbench.interventions.kinds import Force
from workbench.model.edits import Intervention
from workbench.model.language_model import LanguageModel
from workbench.synthetic.tokfsm import TokFSM

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
    model: LanguageModel,
    machine: TokFSM,
    hook_points: Sequence[str] = (),
    walks: int = 256,
    *,
    written: int = 0,
    seed: int = 2,
) -> StateCounts:
    """Count on random walks which codes of the model's own codebooks are active on which states.

    Args:
        model: of the machine's language.
        machine: the machine.
        hook_points: where; all of the model's own dictionaries if empty.
        walks: how many, each as long as the model sees.
        written: count so many digits further on, where part of the next state is written already: in place of states
            stand then states with these digits, of which there are states * base ** written; see `place_of`.
        seed: of the walks.
    """
    points = list(hook_points) or list(model.splices)
    books = {point: model.splices[point] for point in points}
    columns = machine.states * machine.base**written
    counts = {p: torch.zeros(b.n_features * columns, dtype=torch.long) for p, b in books.items()}  # type: ignore[attr-defined]
    seen = torch.zeros(columns, dtype=torch.long)
    for visited, found in at_states(model, machine, points, walks, written=written, seed=seed):
        seen += torch.bincount(visited, minlength=columns)
        for point, x in found.items():
            indices = books[point].encode(x).indices  # type: ignore[attr-defined]  # [n, k]
            counts[point] += torch.bincount(
                (indices * columns + visited[:, None]).flatten(), minlength=len(counts[point])
            )
    return StateCounts({point: one.view(-1, columns) for point, one in counts.items()}, seen)


def at_states(
    model: LanguageModel, machine: TokFSM, hook_points: Sequence[str], walks: int, *, written: int = 0, seed: int
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """States visited on random walks `[n]`, and the activations at their last digits `[n, width]` by hook point; or, if
    digits of the next state are `written`, the places of both together and the activations at the last of these."""
    length = (model.network.n_ctx - 1) // machine.digits
    visited = machine.walk(walks, length, [machine.seed, 19, seed])
    known = length - (written > 0)
    places = torch.arange(1, known + 1) * machine.digits + written
    for some in visited.split(ROWS):
        found = model.capture(machine.write(some), list(hook_points))
        at = some[:, :known] * machine.base**written
        if written:
            at = at + some[:, 1:] // machine.base ** (machine.digits - written)
        yield at.flatten(), {name: x[:, places].flatten(2).flatten(0, 1) for name, x in found.items()}


def place_of(machine: TokFSM, state: int, written: Sequence[int]) -> int:
    """The column of a state behind which some digits are written, among those that `count_codes` counts."""
    for digit in written:
        state = state * machine.base + digit
    return state


def codes_of_state(model: LanguageModel, counted: StateCounts, state: int) -> list[Feature]:
    """For each codebook, and each group of it, the code that is active on this state (column) most often."""
    features = []
    for point, counts in counted.counts.items():
        book = model.splices[point]
        assert isinstance(book, Dictionary)
        if not book.discrete:
            raise DictionaryError(f"{book.name} has no discrete codes, so that none can stand for a state.")
        best = counts[:, state].view(book.groups, -1).argmax(1)  # [groups]
        size = book.n_features // book.groups
        features += [book.feature(group * size + code) for group, code in enumerate(best.tolist())]
    return features


def forcing(
    model: LanguageModel, machine: TokFSM, counted: Sequence[StateCounts], state: int, length: int
) -> Callable[[Sequence[int]], list[Force]]:
    """What forces a state's codes after walks of `length` states, for `next_states`.

    On the walk's last digit the codes that the model has most often on this state's; on each digit of the next state
    that has been written since, those that it has most often there after this state. A state with digits behind it that
    no walk has is left alone.

    Args:
        model: with codebooks of its own.
        machine: whose language it speaks.
        counted: what `count_codes` counted with `written` 0, 1, …; as many as states have digits force it to the end.
        state: whose codes.
        length: of the walks.
    """

    def edits(written: Sequence[int]) -> list[Force]:
        made = []
        for digits, counts in enumerate(counted[: len(written) + 1]):
            column = place_of(machine, state, written[:digits])
            if int(counts.seen[column]):
                codes = codes_of_state(model, counts, column)
                made += [Force(code, "all", positions=(length * machine.digits + digits,)) for code in codes]
        return made

    return edits


@torch.inference_mode()
def next_states(
    model: LanguageModel,
    machine: TokFSM,
    visited: Tensor,
    interventions: Sequence[Intervention] | Callable[[Sequence[int]], Sequence[Intervention]] = (),
) -> Tensor:
    """Which state the model expects after walks `[rows, length]`: probabilities `[rows, states]`.

    The probability of a state is that of its digits one after another, each given those before. What is left to one is
    on tokens that are no state. Interventions may depend on the digits that are written already.
    """
    tokens = machine.write(visited)
    shares = torch.ones(len(tokens), 1)
    for done in range(machine.digits):
        parts = []
        for number, written in enumerate(itertools.product(range(machine.base), repeat=done)):
            edits = interventions(written) if callable(interventions) else interventions
            whole = torch.cat([tokens, torch.tensor(written, dtype=torch.long).expand(len(tokens), -1)], 1)
            with model.intervening(edits):
                logits = torch.cat([model(part)[:, -1] for part in whole.split(ROWS * machine.base)])
            parts.append(shares[:, number, None] * logits.softmax(-1)[:, : machine.base])
        shares = torch.cat(parts, 1)  # [rows, base ** (done + 1)]
    return shares[:, : machine.states]
