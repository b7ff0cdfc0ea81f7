"""Measurements of a model of a finite state machine: codes that stand for states, and probabilities of next states.

Tamkin, Taufeeque, Goodman, "Codebook Features" (2023), arXiv 2310.17230, section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, Wholes, checked
from workbench.core.display import Shown
from workbench.core.precision import in_float64
from workbench.core.type_words import shown
from workbench.corpus import CorpusError
from workbench.dictionaries.features import Feature
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.kinds import Force
from workbench.model.edits import Intervention
from workbench.model.language_model import LanguageModel
from workbench.synthetic.tokfsm import TokFSM

ROWS = 64
"""Walks in a batch."""


@dataclass(frozen=True)
class StateCounts(Shown):
    """Numbers of activations of each feature at the last digit of each state."""

    counts: Mapping[str, Tensor]
    """By hook point: tokens on which the feature was active, `[n_features, states]`."""
    seen: Tensor
    """Visits of each state: `[states]`."""

    def precision(self, hook_point: str) -> Tensor:
        """Share of a feature's activations that are on a state: `[n_features, states]`; 0 for inactive features."""
        counts = in_float64(self.counts[hook_point])
        return counts / counts.sum(1, keepdim=True).clamp(min=1)

    def recall(self, hook_point: str) -> Tensor:
        """Share of a state's visits on which a feature is active: `[n_features, states]`."""
        return self.counts[hook_point].double() / self.seen.clamp(min=1)


@checked(CorpusError)
@torch.inference_mode()
def count_codes(
    model: LanguageModel,
    machine: TokFSM,
    hook_points: Sequence[str] = (),
    walks: Positive = 256,
    *,
    written: Natural = 0,
    seed: Natural = 2,
) -> StateCounts:
    """Activations of the codes of the model's own codebooks on each state, counted on random walks.

    Args:
        model: a model of the machine's language.
        machine: the machine.
        hook_points: of the codebooks; all of the model's own dictionaries if empty.
        walks: number of walks, each as long as the model's context.
        written: number of digits of the next state that are written already: counts are then of states with these
            digits, states * base ** written columns; see `state_column`.
        seed: of the walks.

    Raises:
        CorpusError: a number out of range, or a hook point where the model runs through no dictionary.
    """
    points = list(hook_points) or list(model.splices)
    for point in points:
        if point not in model.splices:
            raise CorpusError(f"{model.name} runs through no dictionary at {shown(point)}.")
    books = {point: model.splices[point] for point in points}
    columns = machine.states * machine.base**written
    counts = {p: torch.zeros(b.n_features * columns, dtype=torch.long) for p, b in books.items()}  # type: ignore[attr-defined]
    seen = torch.zeros(columns, dtype=torch.long)
    for visited, activations in capture_at_states(model, machine, points, walks, written=written, seed=seed):
        seen += torch.bincount(visited, minlength=columns)
        for point, x in activations.items():
            indices = books[point].encode(x).indices  # type: ignore[attr-defined]  # [n, k]
            counts[point] += torch.bincount(
                (indices * columns + visited[:, None]).flatten(), minlength=len(counts[point])
            )
    return StateCounts({point: one.view(-1, columns) for point, one in counts.items()}, seen)


@checked(CorpusError)
def capture_at_states(
    model: LanguageModel,
    machine: TokFSM,
    hook_points: Sequence[str],
    walks: Positive,
    *,
    written: Natural = 0,
    seed: Natural,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Activations at the last digits of states on random walks.

    Yields:
        States `[n]` and activations by hook point, `[n, width]` each. Where digits of the next state are `written`,
        columns of a state with these digits (see `state_column`) and activations at the last of the digits.
    """
    length = (model.network.n_ctx - 1) // machine.digits
    visited = machine.walk(walks, length, [machine.seed, 19, seed])
    known = length - (written > 0)
    places = torch.arange(1, known + 1) * machine.digits + written
    for some in visited.split(ROWS):
        activations = model.capture(machine.write(some), list(hook_points))
        at = some[:, :known] * machine.base**written
        if written:
            at = at + some[:, 1:] // machine.base ** (machine.digits - written)
        yield at.flatten(), {name: x[:, places].flatten(2).flatten(0, 1) for name, x in activations.items()}


@checked(CorpusError)
def state_column(machine: TokFSM, state: Natural, written: Sequence[Natural]) -> int:
    """The column of `count_codes` for a state followed by written digits."""
    for digit in written:
        state = state * machine.base + digit
    return state


@checked(CorpusError)
def state_codes(model: LanguageModel, counted: StateCounts, state: Natural) -> list[Feature]:
    """For each group of each codebook the code that is active most often on a state (column)."""
    features = []
    if state >= len(counted.seen):
        raise CorpusError(f"state is a column from 0 to {len(counted.seen) - 1:,}, not {state:,}.")
    for point, counts in counted.counts.items():
        book = model.splices[point]
        assert isinstance(book, Dictionary)
        if not book.discrete:
            raise DictionaryError(f"{book.name} has no discrete codes, so that none can stand for a state.")
        best = counts[:, state].view(book.groups, -1).argmax(1)  # [groups]
        size = book.n_features // book.groups
        features += [book.feature(group * size + code) for group, code in enumerate(best.tolist())]
    return features


@checked(CorpusError)
def force_state(
    model: LanguageModel, machine: TokFSM, counted: Sequence[StateCounts], state: Natural, length: Positive
) -> Callable[[Sequence[int]], list[Force]]:
    """A function from the digits written to the interventions that force a state's codes, for `next_states`.

    On the walk's last digit the codes are those that are active most often on this state; on each written digit of the
    next state, those that are active most often there after this state. Columns that no walk visits are left out.

    Args:
        model: a model with codebooks of its own.
        machine: the machine of its language.
        counted: results of `count_codes` with `written` 0, 1, …; with as many as states have digits, every digit of the
            next state is forced.
        state: the state to force.
        length: of the walks.
    """

    def interventions(written: Sequence[int]) -> list[Force]:
        forces = []
        for digits, counts in enumerate(counted[: len(written) + 1]):
            column = state_column(machine, state, written[:digits])
            if int(counts.seen[column]):
                codes = state_codes(model, counts, column)
                forces += [Force(code, "all", positions=(length * machine.digits + digits,)) for code in codes]
        return forces

    return interventions


@checked(CorpusError)
@torch.inference_mode()
def next_states(
    model: LanguageModel,
    machine: TokFSM,
    visited: Wholes,
    interventions: Sequence[Intervention] | Callable[[Sequence[int]], Sequence[Intervention]] = (),
) -> Tensor:
    """Probabilities of the next state after walks `[rows, length]`: `[rows, states]`.

    The probability of a state is the product of those of its digits, each after the digits before. The rest to 1 is on
    tokens that are no state. Interventions may depend on the digits that are written already.
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
