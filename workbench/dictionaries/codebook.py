"""Codebooks: an activation is replaced by the few code vectors that are most like it, so that features are discrete.

Tamkin, Taufeeque, Goodman, "Codebook Features: Sparse and Discrete Interpretability for Neural Networks" (2023), arXiv
2310.17230. The activation is cut into groups, one for each attention head at `attn.hook_z`, and each group has a
codebook of its own; with one group the codebook is plain. A code's value is its weight in the mixture: 1 where the k
chosen codes are summed, as in the paper, 1/k where their mean is taken, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, layer_norm, normalize

from workbench.core.checks import Natural, Positive, checked
from workbench.dictionaries.codes import Codes, check_activations, check_codes
from workbench.dictionaries.features import Feature
from workbench.dictionaries.folder import DictionaryError, check_fit
from workbench.dictionaries.learning import unit_of
from workbench.dictionaries.settings import Setting
from workbench.dictionaries.sparse import top_k
from workbench.dictionaries.trainable import SpliceTerms, Step, Trainable
from workbench.dictionaries.variance import unexplained

Combination = Literal["sum", "mean"]
"""What the chosen codes of a group become."""
Similarity = Literal["cosine", "inner", "euclidean"]
"""Cosine, inner product, or the nearest."""
ROWS = 4096
"""Scores are computed for so many activations at a time: bounds the `[rows, n_codes]` matrix."""
ROUNDS = 10
"""Rounds of k-means at the start."""
NOISE = 0.01
"""Size of the noise on a revived code, as a share of the activation that it takes over."""


class Codebook(Trainable):
    """One codebook for each group of coordinates; the k most similar codes of each stand for the activation.

    Args:
        d_in: width of the activations, all groups together.
        n_codes: codes in each group's codebook.
        k: codes chosen in each group.
        groups: how many parts the activation is cut into, such as the number of heads; divides `d_in`.
        combine: "sum" or "mean" of the chosen codes.
        similarity: "cosine", "inner" (product) or "euclidean" (the nearest).
        normalize_input: whether each group is brought to mean 0 and variance 1 first, and stays so.
        hook_point: what it reads and writes.
        name: what features call it.
        seed: of the starting codes; None leaves them to be filled.

    Attributes:
        codes: `[groups, n_codes, d_in / groups]`. Feature `g * n_codes + c` is code c of group g.

    Raises:
        DictionaryError: sizes or words that can't be used.
    """

    kind = "codebook"
    noun = "code"
    discrete = True
    resamples = True

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        n_codes: Annotated[Positive, Setting("Codes", "How many codes to learn in each group.")],
        k: Annotated[Positive, Setting("Active per token", "How many codes of each group are active at once.")] = 1,
        groups: Annotated[
            Positive, Setting("Groups", "Parts of the activation with codes of their own, as heads.")
        ] = 1,
        *,
        combine: Combination = "sum",
        similarity: Similarity = "cosine",
        normalize_input: bool = False,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        super().__init__(name)
        if d_in % groups:
            raise DictionaryError(f"A width of {d_in:,} can't be cut into {groups:,} equal groups.")
        if k > n_codes:
            raise DictionaryError(f"k is at most n_codes, {n_codes:,}, not {k:,}.")
        self.d_in = self.d_out = d_in
        self.n_codes, self.k, self.groups = n_codes, k, groups
        self._extra = 0
        self.n_features = groups * n_codes
        self.combine, self.similarity, self.normalize_input = combine, similarity, normalize_input
        self.reads = self.writes = hook_point
        self.codes = nn.Parameter(torch.empty(groups, n_codes, d_in // groups), requires_grad=False)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            self.codes.copy_(normalize(torch.randn(self.codes.shape, generator=generator), dim=-1))

    @classmethod
    def example(cls) -> Self:
        """Two groups of width 4 with six codes each, two of which are chosen."""
        return cls(8, 6, k=2, groups=2)

    @property
    def chosen(self) -> int:
        """Codes chosen in each group at present: `k`, and more of them after `widen`."""
        return self.k + self._extra

    @property
    def weight(self) -> float:
        """The value of a chosen code."""
        return 1.0 if self.combine == "sum" else 1 / self.chosen

    def group_of(self, index: int) -> int:
        """The group that a feature's code belongs to."""
        self.check(index)
        return index // self.n_codes

    def drawn_like(self, index: int, generator: torch.Generator) -> Feature:
        """A code drawn at random from the group of another: what forcing that one is compared with."""
        code = int(torch.randint(self.n_codes, (1,), generator=generator))
        return self.feature(self.group_of(index) * self.n_codes + code)

    def prepare(self, x: Tensor) -> Tensor:
        """Activations `[..., d_in]` as codes see them: `[..., groups, d_in / groups]`."""
        check_activations(x, self.d_in, self.name, self.codes.device)
        parts = x.to(self.codes.dtype).unflatten(-1, (self.groups, -1))
        return layer_norm(parts, parts.shape[-1:]) if self.normalize_input else parts

    @torch.no_grad()
    def encode(self, x: Tensor) -> Codes:
        """Activations as codes `[..., groups * k]`, group by group, in each the most similar code first."""
        parts = self.prepare(x).reshape(-1, self.groups, self.d_in // self.groups)  # [rows, groups, d]
        indices = torch.empty(len(parts), self.groups, self.chosen, dtype=torch.long, device=parts.device)
        room = parts.new_empty(min(ROWS, len(parts)), self.n_codes)  # fresh memory costs more than the product
        for group in range(self.groups):
            keys, bias = self._keys(group)
            for start in range(0, len(parts), ROWS):
                rows = parts[start : start + ROWS, group]
                scores = torch.mm(rows, keys, out=room[: len(rows)])  # [rows, n_codes]
                scores = scores if bias is None else scores.add_(bias)
                indices[start : start + ROWS, group] = _most_similar(scores, self.chosen) + group * self.n_codes
        indices = indices.view(*x.shape[:-1], self.groups * self.chosen)
        return Codes(parts.new_full(indices.shape, self.weight), indices, self.n_features)

    def _keys(self, group: int) -> tuple[Tensor, Tensor | None]:
        """What activations are multiplied with `[d, n_codes]`, and what is added, for scores by similarity."""
        codes = self.codes[group]
        if self.similarity == "cosine":  # the activation's own norm changes no order
            return normalize(codes, dim=-1).T, None
        if self.similarity == "inner":
            return codes.T, None
        return codes.T, codes.square().sum(-1) / -2  # |x - c|² = |x|² - 2 (x·c - |c|²/2)

    def decode(self, codes: Codes) -> Tensor:
        """Codes as activations: `[..., d_out]`."""
        check_codes(codes, self.n_features, self.name, self.codes.device)
        columns = codes.indices.shape[-1]
        indices = codes.indices.reshape(-1, columns)  # [rows, columns]
        values = codes.values.reshape(-1, columns).to(self.codes.dtype)
        bags = indices // self.n_codes + self.groups * torch.arange(len(indices), device=indices.device)[:, None]
        order = bags.flatten().argsort(stable=True)  # by row, and in it by group
        starts = torch.searchsorted(
            bags.flatten()[order], torch.arange(len(indices) * self.groups, device=indices.device)
        )
        table = self.codes.flatten(0, 1)  # [n_features, d]
        output = embedding_bag(
            indices.flatten()[order], table, starts, mode="sum", per_sample_weights=values.flatten()[order]
        )
        return output.reshape(*codes.indices.shape[:-1], self.d_out)

    def reconstruct(self, x: Tensor, codes: Codes | None = None) -> Tensor:
        """The decoded codes, `[..., d_out]`, with the straight-through gradient; see `pass_through`."""
        return self.pass_through(x, self.decode(self.encode(x) if codes is None else codes))

    def pass_through(self, x: Tensor, output: Tensor) -> Tensor:
        """The decoded codes `output` of activations `x`, `[..., d_in]` both, with a gradient for the activations too.

        The codes get the gradient of their output. The choice of codes passes no gradient, so the activation gets the
        gradient of the output as if it had been left in place (van den Oord et al. 2017, arXiv 1711.00937).
        """
        if not (torch.is_grad_enabled() and x.requires_grad):
            return output
        source = self.prepare(x).flatten(-2)
        return output + (source - source.detach())

    def splice_terms(self, read: Tensor, written: Tensor, codes: Codes) -> SpliceTerms:
        """The output passes the gradient straight through, and the codes are compared with the prepared activation."""
        alone, target = self.decode(codes), self.prepare(written).flatten(-2)
        return SpliceTerms(self.pass_through(read, alone), alone, target)

    def widen(self, first_k: int, share: float) -> None:
        """Choose from `first_k` codes (share 1) to `k` codes (share 0) in each group."""
        self._extra = max(0, round(self.k + (first_k - self.k) * share) - self.k)

    def direction(self, index: int) -> Tensor:
        """The code vector at its group's coordinates, 0 elsewhere: `[d_out]`."""
        whole = self.codes.new_zeros(self.groups, self.d_in // self.groups)
        group = self.group_of(index)
        whole[group] = self.codes[group, index % self.n_codes]
        return whole.flatten()

    def force(self, codes: Codes, index: int, replaces: str) -> Codes:
        """Codes in which one code is active: in place of its group's least similar one, of all of them, or beside them.

        Where the code is active already, only "all" changes anything: it alone remains. A forced code counts as the
        most similar, so that the next one forced does not displace it while others are left.

        Args:
            codes: `[..., columns]`, in the order of `encode`.
            index: the code.
            replaces: "least", "all" or "none".

        Returns:
            One column, of the forced code, and behind it the same as before.
        """
        group = self.group_of(index)
        here = (codes.indices // self.n_codes == group) & (codes.values != 0)  # [..., columns]
        present = (here & (codes.indices == index)).any(-1, keepdim=True)
        if replaces == "all":
            weight = 1.0  # a mixture of one
            removed = here
        else:
            weight = torch.where(present, 0.0, self.weight)
            last = here & (here.flip(-1).cumsum(-1).flip(-1) == 1)
            removed = last & ~present if replaces == "least" else torch.zeros_like(here)
        added = torch.zeros_like(codes.values[..., :1]) + weight
        values = torch.cat([added, codes.values.masked_fill(removed, 0)], -1)
        new = codes.indices.new_full((*codes.indices.shape[:-1], 1), index)
        return Codes(values, torch.cat([new, codes.indices], -1), codes.n_features)

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor | None = None) -> None:
        """The codes become the centres of the sample's clusters, by k-means, so sized that k of them make up a centre.

        A group with more codes than the sample has activations gets activations, with a little noise where they are
        used twice.
        """
        parts = self.prepare(x)  # [n, groups, d]
        self.unit_in = self.unit_out = _unit(parts)
        self.initialised = self.measured = True
        chance = torch.Generator().manual_seed(0)
        for group in range(self.groups):
            self.codes[group] = self._centres(parts[:, group], chance) / (self.chosen * self.weight)

    def adopt(self, x: Tensor, target: Tensor | None = None) -> None:
        """The unit where no file states it; see `Trainable`."""
        unit = _unit(self.prepare(x))
        if not self.measured:
            self.unit_in = self.unit_out = unit
        self.measured = True

    def _centres(self, points: Tensor, chance: torch.Generator) -> Tensor:
        """Cluster centres of points `[n, d]`: `[n_codes, d]`."""
        order = torch.randperm(len(points), generator=chance).to(points.device)
        drawn = order[torch.arange(self.n_codes, device=points.device) % len(points)]
        centres = self._noisy(points[drawn], chance) if self.n_codes >= len(points) else points[drawn].clone()
        if self.n_codes >= len(points):
            return centres
        for _ in range(ROUNDS):
            nearest = torch.addmm(centres.square().sum(1) / -2, points, centres.T).argmax(1)  # [n]
            counts = torch.bincount(nearest, minlength=self.n_codes)
            sums = torch.zeros_like(centres).index_add_(0, nearest, points)
            centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
        return centres

    def _noisy(self, points: Tensor, chance: torch.Generator | None) -> Tensor:
        """Points with noise of a small share of their own size."""
        noise = torch.randn(points.shape, generator=chance, dtype=points.dtype).to(points.device)
        return points + NOISE * points.norm(dim=-1, keepdim=True) * normalize(noise, dim=-1)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The codes alone; see `Trainable`."""
        return [{"params": [self.codes], "lr": lr * self.unit_out, "name": "codes"}]

    @torch.no_grad()
    def loss_and_gradients(
        self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None, sparsity: float = 1.0
    ) -> Step:
        """Squared distance between the decoded codes and the activation; see `Trainable`."""
        source = self.prepare(x).flatten(1)  # [batch, d_in]
        codes = self.encode(x)
        error = self.decode(codes) - source
        square = self.unit_out**2 * len(x)
        squared = float(error.square().sum())
        g = (error * (2 * self.weight / square)).view(-1, 1, self.d_in // self.groups)  # [batch * groups, 1, d]
        self.codes.grad = torch.zeros_like(self.codes)
        g = g.expand(-1, self.chosen, -1).flatten(0, 1)  # [batch * groups * k, d]
        self.codes.grad.view(self.n_features, -1).index_add_(0, codes.indices.flatten(), g)
        return Step(
            loss=squared / square,
            error=squared / square,
            penalty=0.0,
            auxiliary=0.0,
            fvu=unexplained(squared, source),
            l0=float(self.groups * self.chosen),
            fired=torch.bincount(codes.indices.flatten(), minlength=self.n_features),
        )

    @torch.no_grad()
    def resample(
        self,
        x: Tensor,
        dead: Tensor,
        target: Tensor | None = None,
        *,
        optimiser: torch.optim.Optimizer | None = None,
        generator: torch.Generator | None = None,
    ) -> int:
        """Dead codes take over activations drawn at random, with a little noise; returns how many."""
        parts = self.prepare(x).reshape(-1, self.groups, self.d_in // self.groups)
        for group, lost in enumerate(dead.view(self.groups, self.n_codes)):
            index = lost.nonzero()[:, 0]
            drawn = torch.randint(len(parts), (len(index),), generator=generator).to(parts.device)
            self.codes[group, index] = self._noisy(parts[drawn, group], generator) / (self.chosen * self.weight)
            for moment in optimiser.state.get(self.codes, {}).values() if optimiser else ():
                if isinstance(moment, Tensor) and moment.shape == self.codes.shape:
                    moment[group, index] = 0
        return int(dead.sum())

    def config(self) -> dict[str, Any]:
        """Under a name that SAELens does not know, with its fields for sizes and hook points."""
        settings = {name: getattr(self, name) for name in ("k", "groups", "combine", "similarity", "normalize_input")}
        return {
            "architecture": self.kind,
            "d_in": self.d_in,
            "d_sae": self.n_features,
            "dtype": str(self.codes.dtype).removeprefix("torch."),
            "metadata": {"hook_name": self.reads},
            "workbench": {"settings": settings} | self.origin(),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """See `Dictionary`."""
        own = config["workbench"]
        settings = own["settings"]
        with torch.device("meta"):  # as in SparseCoder
            book = cls(config["d_in"], config["d_sae"] // settings["groups"], **settings, seed=None)
        book.take_origin(own)
        check_fit(book.state_dict(), tensors)
        book.load_state_dict(dict(tensors), assign=True)
        return book


def _unit(parts: Tensor) -> float:
    """The unit of parts `[n, groups, d]`."""
    return unit_of(parts.flatten(1), parts.flatten(1).mean(0))


def _most_similar(scores: Tensor, k: int) -> Tensor:
    """Columns of the k highest scores `[rows, n_codes]` of each row, the highest first: `[rows, k]`."""
    chosen = top_k(scores, k)
    return chosen if k == 1 else chosen.gather(1, scores.gather(1, chosen).argsort(1, descending=True))
