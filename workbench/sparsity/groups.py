"""Groups of neurons that are active together, and a router that picks which groups a token's computation runs.

Read-ME (Cai et al., 2024, arXiv 2410.19123) and MoEfication (Zhang et al., 2022, arXiv 2110.01786) turn a dense MLP
into experts, groups of neurons of equal size, of which a router picks a few for each token. Here neurons are grouped by
how alike their activity is over tokens (balanced k-means on its correlation), and the router is a linear map from the
MLP's input to the size of each group's contributions, fitted by ridge regression on the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel, uninterrupted
from workbench.sparsity.evaluation import Sample, SparsityOutcome, checked_sizes, summarised
from workbench.sparsity.masking import LEAST, SparsityError, checked_thresholds, down_weights, keeping_above

ROUNDS = 8
RIDGE = 1e-3
"""Of the mean square of the inputs: how strongly the router's weights are held small."""


@dataclass(frozen=True)
class NeuronGroups:
    """Each layer's neurons in groups of equal size, to one neuron, and a router for each layer."""

    member: Tensor = field(repr=False)
    """Which group each neuron is in: `[n_layers, d_mlp]`."""
    routers: Tensor = field(repr=False)
    """From the MLP's input, with a 1 behind it, to a score of each group: `[n_layers, d_model + 1, groups]`."""
    together: list[float]
    """For each layer, the mean correlation of the activity of two neurons of a group."""
    apart: list[float]
    """The same of any two neurons of the layer."""

    @property
    def groups(self) -> int:
        """How many groups a layer has."""
        return self.routers.shape[-1]


@dataclass(frozen=True)
class Routed:
    """What it does to run only the groups that are picked."""

    picked: int
    """Groups that each token runs in each layer."""
    router: str
    """`linear`: by the router; `oracle`: those with the largest contributions, which takes the whole layer to know."""
    saved: float
    """Share of the MLPs' multiplications that are not needed, the router's counted against it."""
    outcome: SparsityOutcome
    """Perplexity, and the share of neurons that are left out."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def group_neurons(
    model: LanguageModel,
    thresholds: Any,
    corpus: Corpus,
    groups: int = 16,
    tokens: int = 2048,
    *,
    by: str = "coactivation",
    context: int = 256,
    batch: int = 4,
    seed: int = 0,
    tick: Callable[[int], None] = lambda _: None,
) -> NeuronGroups:
    """Group the neurons of every layer, and fit the routers.

    Args:
        model: the model.
        thresholds: when a neuron counts as active: a `Sparsity`, or one number for each layer, or one for all.
        corpus, tokens, context, batch, seed: the texts, as in `measure_sparsities`.
        groups: of each layer.
        by: "coactivation", or "random" for groups drawn at random, with routers of their own, to compare with.
        tick: told how many positions have been run, batch by batch.

    Raises:
        SparsityError: thresholds that don't fit the model, or settings that can't be used.
        CorpusError: texts without two tokens in a row.
    """
    keeps = keeping_above(model, checked_thresholds(model, thresholds))
    checked_sizes(tokens, context, batch, seed, 1)
    weights = down_weights(model)
    width = len(weights[0])
    if isinstance(groups, bool) or not isinstance(groups, int) or not 2 <= groups <= width:
        raise SparsityError(f"groups is a whole number from 2 to the {width:,} neurons of a layer, not {groups!r}.")
    if by not in ("coactivation", "random"):
        raise SparsityError(f"Neurons are grouped by 'coactivation' or at 'random', not by {by!r}.")
    norms = [one.norm(dim=1) for one in weights]
    seen = _Seen(len(keeps))
    with uninterrupted(), torch.inference_mode():
        sample = Sample.read(model, corpus, tick, tokens=tokens, context=context, batch=batch, seed=seed)

        def look(layer: int, values: Tensor) -> None:
            seen.active[layer].append(keeps[layer](values))
            seen.note(layer, values.abs() * norms[layer])

        sample.run_plain(look, seen.read)
        chance = torch.Generator().manual_seed(seed)
        member, together, apart = [], [], []
        for layer in range(len(keeps)):
            alike = _correlations(torch.cat(seen.active[layer]))
            mine = torch.randperm(width, generator=chance) % groups
            if by == "coactivation":
                mine = balanced_clusters(alike, mine, groups)
            member.append(mine)
            together.append(_mean_within(alike, mine, groups))
            apart.append(_mean_within(alike, torch.zeros_like(mine), 1))
        routers = [seen.router(layer, mine, groups) for layer, mine in enumerate(member)]
    return NeuronGroups(torch.stack(member), torch.stack(routers), together, apart)


def measure_routing(
    model: LanguageModel,
    groups: NeuronGroups,
    corpus: Corpus,
    picked: Sequence[int],
    tokens: int = 4096,
    *,
    router: str = "linear",
    context: int = 256,
    batch: int = 4,
    seed: int = 0,
    resamples: int = 1000,
    tick: Callable[[int], None] = lambda _: None,
) -> list[Routed]:
    """Run a model with only the groups that a router picks, and see what becomes of its perplexity.

    Args:
        model, corpus, tokens, context, batch, seed, resamples: as in `measure_sparsities`; best texts that the groups
            were not made on.
        groups: from `group_neurons` on this model.
        picked: for each of these numbers of groups.
        router: "linear" or "oracle"; see `Routed`.
        tick: told how many positions have been run, batch by batch.

    Raises:
        SparsityError: groups of another model, or settings that can't be used.
        CorpusError: texts without two tokens in a row.
    """
    checked_sizes(tokens, context, batch, seed, resamples)
    weights = down_weights(model)
    if groups.member.shape != (len(weights), len(weights[0])):
        raise SparsityError(f"These groups are of another model than {model.name}: its layers are of another size.")
    if router not in ("linear", "oracle"):
        raise SparsityError(f"The router is 'linear' or 'oracle', not {router!r}.")
    for number in picked:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= groups.groups:
            raise SparsityError(f"Of {groups.groups} groups 1 to {groups.groups} can be picked, not {number!r}.")
    norms = [one.norm(dim=1) for one in weights]
    matrices = len(model.network.neuron_sites)  # two, or three with a gate
    overhead = groups.groups / (matrices * len(norms[0])) if router == "linear" else 0.0
    found = []
    with uninterrupted(), torch.inference_mode():
        sample = Sample.read(model, corpus, tick, tokens=tokens, context=context, batch=batch, seed=seed)
        sample.run_plain()
        for number in picked:
            given: dict[int, Tensor] = {}
            keeps = [
                _picking(groups, layer, number, None if router == "oracle" else given, norms[layer])
                for layer in range(len(norms))
            ]
            outcome = sample.run_thinned(keeps, given.__setitem__)
            saved = 1 - number / groups.groups - overhead
            found.append(Routed(number, router, saved, summarised(outcome, resamples, seed)))
    return found


def _picking(groups: NeuronGroups, layer: int, number: int, given: dict[int, Tensor] | None, norms: Tensor) -> Any:
    """Which neurons a layer runs; `given` has the layer's input, or is None for the oracle."""
    member, router = groups.member[layer], groups.routers[layer]

    def keep(values: Tensor) -> Tensor:
        if given is None:
            scores = _group_sums(values.abs().float() * norms, member, groups.groups)  # [batch, pos, groups]
        else:
            scores = given.pop(layer).float() @ router[:-1] + router[-1]
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(number).indices, True)
        return chosen[..., member]

    return keep


def balanced_clusters(alike: Tensor, member: Tensor, groups: int, rounds: int = ROUNDS) -> Tensor:
    """Groups of equal size, to one member, of what is alike: a balanced k-means.

    A member is placed by its mean likeness to the others of a group. Likeness to itself would hold it where it is.

    Args:
        alike: how alike any two are, `[members, members]`.
        member: the groups to begin with, `[members]`.
        groups: how many.
        rounds: at most so many; fewer where nothing changes any more.

    Returns:
        The group of each member, `[members]`; the best of the rounds.
    """
    count = len(alike)
    others = alike - alike.diagonal().diag()
    best, most = member, _mean_within(alike, member, groups)
    for _ in range(rounds):
        inside = torch.nn.functional.one_hot(member, groups).to(alike)  # [members, groups]
        scores = others @ inside / (inside.sum(0) - inside).clamp(min=1)
        order = scores.flatten().argsort(descending=True).tolist()
        room = [count // groups + (group < count % groups) for group in range(groups)]
        placed = [-1] * count
        for place in order:  # the most alike pair first, as long as the group has room
            one, group = divmod(place, groups)
            if placed[one] < 0 and room[group]:
                placed[one] = group
                room[group] -= 1
        following = torch.tensor(placed)
        if torch.equal(following, member):
            break
        member = following
        value = _mean_within(alike, member, groups)
        if value > most:
            best, most = member, value
    return best


class _Seen:
    """What grouping and routers are made from, added up while the plain model runs."""

    def __init__(self, layers: int):
        self.active: list[list[Tensor]] = [[] for _ in range(layers)]  # [n, d_mlp] bool each
        self.inputs: dict[int, Tensor] = {}
        self.squares: list[Any] = [0.0] * layers  # [d_model + 1, d_model + 1]
        self.products: list[Any] = [0.0] * layers  # [d_model + 1, d_mlp]

    def read(self, layer: int, values: Tensor) -> None:
        """A layer's input, `[n, d_model]`."""
        self.inputs[layer] = torch.nn.functional.pad(values, (0, 1), value=1.0)

    def note(self, layer: int, sizes: Tensor) -> None:
        """The contributions that came of it, `[n, d_mlp]`."""
        given = self.inputs.pop(layer)
        self.squares[layer] = self.squares[layer] + (given.T @ given).double()
        self.products[layer] = self.products[layer] + given.T @ sizes

    def router(self, layer: int, member: Tensor, groups: int) -> Tensor:
        """Ridge regression of each group's contributions on the input: `[d_model + 1, groups]`."""
        wanted = _group_sums(self.products[layer].double(), member, groups)
        squares = self.squares[layer]
        held = RIDGE * squares.diagonal().mean() * torch.eye(len(squares)).double()
        return torch.linalg.solve(squares + held, wanted).float()


def _group_sums(values: Tensor, member: Tensor, groups: int) -> Tensor:
    """Sums over each group's members: from `[..., members]` to `[..., groups]`."""
    made = values.new_zeros(*values.shape[:-1], groups)
    return made.index_add_(-1, member, values)


def _correlations(active: Tensor) -> Tensor:
    """Of the activity `[n, d_mlp]` of any two neurons, `[d_mlp, d_mlp]`; 0 for one whose activity never changes."""
    centred = active.float() - active.float().mean(0)
    unit = centred / centred.norm(dim=0).clamp(min=LEAST)
    return unit.T @ unit


def _mean_within(alike: Tensor, member: Tensor, groups: int) -> float:
    """The mean likeness of two different members of one group; `alike` is `[members, members]`."""
    inside = torch.nn.functional.one_hot(member, groups).to(alike)
    sizes = inside.sum(0)
    total = (inside * (alike @ inside)).sum() - alike.diagonal().sum()
    return float(total / (sizes * (sizes - 1)).sum().clamp(min=1))
