"""Groups of neurons that are active together, and a router that picks which groups a token's computation runs.

Read-ME (Cai et al., 2024, arXiv 2410.19123) and MoEfication (Zhang et al., 2022, arXiv 2110.01786) turn a dense MLP
into experts, groups of neurons of equal size, of which a router picks a few for each token. Here neurons are grouped by
the correlation of their activity over tokens (balanced k-means), and the router is a linear map from the MLP's input to
the size of each group's contributions, fitted by ridge regression on the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.display import Rows, Shown, Tabular, columns
from workbench.core.precision import in_float64
from workbench.corpus import Corpus
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.sparsity.evaluation import Sample
from workbench.sparsity.masking import LEAST, Keep, SparsityError, checked_thresholds, down_weights, keeping_above
from workbench.sparsity.outcome import SparsityOutcome

ROUNDS = 8
RIDGE = 1e-3
"""The router's penalty on its weights, as a share of the mean square of the inputs."""


@dataclass(frozen=True)
class NeuronGroups(Tabular):
    """Each layer's neurons in groups of equal size, to one neuron, and a router for each layer."""

    member: Tensor = field(repr=False)
    """The group of each neuron: `[n_layers, d_mlp]`."""
    routers: Tensor = field(repr=False)
    """Maps from the MLP's input, followed by a 1, to a score of each group: `[n_layers, d_model + 1, groups]`."""
    together: list[float]
    """For each layer, the mean correlation of the activity of two neurons of a group."""
    apart: list[float]
    """The same of any two neurons of the layer."""

    @property
    def groups(self) -> int:
        """The number of groups of a layer."""
        return self.routers.shape[-1]

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each layer."""
        return columns(layer=range(len(self.together)), together=self.together, apart=self.apart)

    def _facts(self) -> Mapping[str, object]:
        return {"groups": self.groups, "neurons of a layer": self.member.shape[1]}


@dataclass(frozen=True)
class Routed(Shown):
    """A model that runs only the groups of neurons that a router picks."""

    picked: int
    """Groups that each token runs in each layer."""
    router: str
    """`linear`: by the router; `oracle`: the groups with the largest contributions, which takes the whole layer."""
    saved: float
    """Share of the MLPs' multiplications that are not needed, the router's counted against it."""
    outcome: SparsityOutcome
    """Perplexity, and the share of neurons that are left out."""

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return asdict(self)


@checked(SparsityError)
def group_neurons(
    model: LanguageModel,
    thresholds: Any,
    corpus: Corpus,
    groups: Annotated[Integer, Ge(2)] = 16,
    tokens: Positive = 2048,
    *,
    by: Literal["coactivation", "random"] = "coactivation",
    context: Annotated[Integer, Ge(2)] = 256,
    batch: Positive = 4,
    seed: Natural = 0,
    on_batch: Callable[[int], None] = lambda _: None,
) -> NeuronGroups:
    """The neurons of every layer in groups, with fitted routers.

    Args:
        model: the model.
        thresholds: from where a neuron counts as active: a `Sparsity`, one number for each layer, or one for all.
        corpus: the texts.
        groups: groups of each layer.
        tokens: at most so many.
        by: "coactivation", or "random" for groups drawn at random, with routers of their own, as a control.
        context, batch, seed: as in `measure_sparsities`.
        on_batch: called after each batch with the number of its positions.

    Raises:
        SparsityError: thresholds that don't fit the model, or settings that can't be used.
        CorpusError: texts without two tokens in a row.
    """
    keeps = keeping_above(model, checked_thresholds(model, thresholds))
    weights = down_weights(model)
    width = len(weights[0])
    if groups > width:
        raise SparsityError(f"groups is a whole number from 2 to the {width:,} neurons of a layer, not {groups!r}.")
    norms = [one.norm(dim=1) for one in weights]
    seen = _Seen(len(keeps))
    with uninterrupted(), torch.inference_mode():
        sample = Sample.read(model, corpus, on_batch, tokens=tokens, context=context, batch=batch, seed=seed)

        def add(layer: int, values: Tensor) -> None:
            seen.active[layer].append(keeps[layer](values))
            seen.add_sizes(layer, values.abs() * norms[layer])

        sample.run_plain(add, seen.add_inputs)
        generator = torch.Generator().manual_seed(seed)
        member, together, apart = [], [], []
        for layer in range(len(keeps)):
            alike = _correlations(torch.cat(seen.active[layer]))
            mine = torch.randperm(width, generator=generator).to(alike.device) % groups
            if by == "coactivation":
                mine = balanced_clusters(alike, mine, groups)
            member.append(mine)
            together.append(_mean_within(alike, mine, groups))
            apart.append(_mean_within(alike, torch.zeros_like(mine), 1))
        routers = [seen.router(layer, mine, groups) for layer, mine in enumerate(member)]
    return NeuronGroups(torch.stack(member).cpu(), torch.stack(routers).cpu(), together, apart)


@checked(SparsityError)
def measure_routing(
    model: LanguageModel,
    groups: NeuronGroups,
    corpus: Corpus,
    picked: Sequence[Positive],
    tokens: Positive = 4096,
    *,
    router: Literal["linear", "oracle"] = "linear",
    context: Annotated[Integer, Ge(2)] = 256,
    batch: Positive = 4,
    seed: Natural = 0,
    resamples: Positive = 1000,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Rows[Routed]:
    """The perplexity of a model that runs only the groups that a router picks, for several numbers of groups.

    Args:
        model: the model.
        groups: from `group_neurons` on this model.
        corpus: the texts, best others than the groups are from.
        picked: numbers of groups that run; one result for each.
        tokens: at most so many.
        router: "linear" or "oracle"; see `Routed`.
        context, batch, seed, resamples: as in `measure_sparsities`.
        on_batch: called after each batch with the number of its positions.

    Raises:
        SparsityError: groups of another model, or settings that can't be used.
        CorpusError: texts without two tokens in a row.
    """
    weights = down_weights(model)
    if groups.member.shape != (len(weights), len(weights[0])):
        raise SparsityError(f"These groups are of another model than {model.name}: its layers are of another size.")
    for number in picked:
        if number > groups.groups:
            raise SparsityError(f"Of {groups.groups} groups 1 to {groups.groups} can be picked, not {number!r}.")
    norms = [one.norm(dim=1) for one in weights]
    matrices = len(model.network.neuron_sites)  # two, or three with a gate
    overhead = groups.groups / (matrices * len(norms[0])) if router == "linear" else 0.0
    results: Rows[Routed] = Rows()
    with uninterrupted(), torch.inference_mode():
        sample = Sample.read(model, corpus, on_batch, tokens=tokens, context=context, batch=batch, seed=seed)
        sample.run_plain()
        for number in picked:
            inputs: dict[int, Tensor] = {}
            keeps = [
                _picking(groups, layer, number, None if router == "oracle" else inputs, norms[layer])
                for layer in range(len(norms))
            ]
            sums = sample.run_masked(keeps, inputs.__setitem__)
            saved = 1 - number / groups.groups - overhead
            results.append(Routed(number, router, saved, sums.outcome(resamples, seed)))
    return results


def _picking(groups: NeuronGroups, layer: int, number: int, inputs: dict[int, Tensor] | None, norms: Tensor) -> Keep:
    """The choice of the neurons that a layer runs; `inputs` holds the layer's input, or is None for the oracle."""
    member, router = (one[layer].to(norms.device) for one in (groups.member, groups.routers))

    def keep(values: Tensor) -> Tensor:
        if inputs is None:
            scores = _group_sums(
                values.to(norms.device).abs().float() * norms, member, groups.groups
            )  # [batch, pos, groups]
        else:
            scores = inputs.pop(layer).to(norms.device).float() @ router[:-1] + router[-1]
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(number).indices, True)
        return chosen[..., member].to(values.device)

    return keep


def balanced_clusters(alike: Tensor, member: Tensor, groups: int, rounds: int = ROUNDS) -> Tensor:
    """Groups of similar members, of equal size to one member, by a balanced k-means.

    A member is placed by its mean similarity to the other members of a group. Its similarity to itself would hold it in
    its group.

    Args:
        alike: the similarity of any two members, `[members, members]`.
        member: the group of each member at the start, `[members]`.
        groups: the number of groups.
        rounds: at most so many; fewer where nothing changes any more.

    Returns:
        The group of each member, `[members]`; those of the best round.
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
        for place in order:  # the most similar pair first, while the group has room
            one, group = divmod(place, groups)
            if placed[one] < 0 and room[group]:
                placed[one] = group
                room[group] -= 1
        following = torch.tensor(placed, device=member.device)
        if torch.equal(following, member):
            break
        member = following
        value = _mean_within(alike, member, groups)
        if value > most:
            best, most = member, value
    return best


class _Seen:
    """Activity and sums over tokens of the plain model, from which groups and routers are computed."""

    def __init__(self, layers: int):
        self.active: list[list[Tensor]] = [[] for _ in range(layers)]  # [n, d_mlp] bool each
        self.inputs: dict[int, Tensor] = {}
        self.squares: list[Any] = [0.0] * layers  # [d_model + 1, d_model + 1]
        self.products: list[Any] = [0.0] * layers  # [d_model + 1, d_mlp]

    def add_inputs(self, layer: int, values: Tensor) -> None:
        """Keep the input of a layer's MLP, `[n, d_model]`, for its contributions."""
        self.inputs[layer] = torch.nn.functional.pad(values, (0, 1), value=1.0)

    def add_sizes(self, layer: int, sizes: Tensor) -> None:
        """Add the layer's contributions on the same tokens, `[n, d_mlp]`."""
        inputs = self.inputs.pop(layer)
        self.squares[layer] = self.squares[layer] + in_float64(inputs.T @ inputs)
        self.products[layer] = self.products[layer] + inputs.T @ sizes

    def router(self, layer: int, member: Tensor, groups: int) -> Tensor:
        """The weights of a ridge regression of each group's contributions on the input: `[d_model + 1, groups]`."""
        wanted = _group_sums(in_float64(self.products[layer]), member, groups)
        squares = self.squares[layer]
        held = RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
        return torch.linalg.solve(squares + held, wanted).float().to(self.products[layer].device)


def _group_sums(values: Tensor, member: Tensor, groups: int) -> Tensor:
    """Sums over each group's members: from `[..., members]` to `[..., groups]`."""
    return values.new_zeros(*values.shape[:-1], groups).index_add_(-1, member.to(values.device), values)


def _correlations(active: Tensor) -> Tensor:
    """Correlations of the activity `[n, d_mlp]` of any two neurons: `[d_mlp, d_mlp]`; 0 for constant activity."""
    centred = active.float() - active.float().mean(0)
    unit = centred / centred.norm(dim=0).clamp(min=LEAST)
    return unit.T @ unit


def _mean_within(alike: Tensor, member: Tensor, groups: int) -> float:
    """The mean similarity of two different members of one group; `alike` is `[members, members]`."""
    inside = torch.nn.functional.one_hot(member, groups).to(alike)
    sizes = inside.sum(0)
    total = (inside * (alike @ inside)).sum() - alike.diagonal().sum()
    return float(total / (sizes * (sizes - 1)).sum().clamp(min=1))
