"""Discrete key-value bottleneck: frozen keys choose which values are fetched, and only fetched values ever learn.

Träuble, Goyal, Rahaman, Mozer, Kawaguchi, Bengio, Schölkopf, "Discrete Key-Value Bottleneck" (2022), arXiv 2207.11240.
Each codebook sees the activation through a random projection of its own, finds the nearest key and fetches its value;
the mean of the fetched values is the output, such as the logits of classes. An update touches nothing but what was
fetched, so that what was learned about other inputs is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from workbench.core.checks import Floats, Natural, Positive, Rate, Share, Wholes, checked
from workbench.dictionaries.codes import Codes, check_activations, check_codes
from workbench.dictionaries.folder import DictionaryError, check_fit
from workbench.dictionaries.protocol import Dictionary

ROWS = 1024
"""Activations encoded at a time: bounds the `[rows, n_keys]` matrix of distances."""


class KeyValueBottleneck(Dictionary):
    """Key-value pairs as features.

    Args:
        d_in: width of the activations.
        d_value: width of the values, such as the number of classes.
        codebooks: how many; each fetches one value.
        n_keys: pairs in each codebook.
        d_key: width of the random projections.
        hook_point: what it reads.
        name: what features call it.
        seed: of the projections and of the keys before they are learned; None leaves them to be filled.

    Attributes:
        projections: `[codebooks, d_in, d_key]`, fixed.
        keys: `[codebooks, n_keys, d_key]`; `learn_keys` sets them.
        values: `[codebooks, n_keys, d_value]`; begin at 0. Feature `c * n_keys + i` is pair i of codebook c.

    Raises:
        DictionaryError: sizes that can't be used.
    """

    kind = "key_value"
    noun = "pair"

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        d_value: Positive,
        codebooks: Positive = 64,
        n_keys: Positive = 1024,
        d_key: Positive = 14,
        *,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        super().__init__(name)
        self.d_in, self.d_out, self.n_features = d_in, d_value, codebooks * n_keys
        self.codebooks = self.groups = codebooks
        self.n_keys = n_keys
        self.reads, self.writes = hook_point, ""
        self.register_buffer("projections", torch.empty(codebooks, d_in, d_key))
        self.register_buffer("keys", torch.empty(codebooks, n_keys, d_key))
        self.values = nn.Parameter(torch.zeros(codebooks, n_keys, d_value), requires_grad=False)
        self.projections: Tensor
        self.keys: Tensor
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            self.projections.copy_(torch.randn(self.projections.shape, generator=generator) / d_in**0.5)
            self.keys.copy_(torch.randn(self.keys.shape, generator=generator))

    @classmethod
    def example(cls) -> Self:
        """Three codebooks of five pairs, with random values."""
        bottleneck = cls(8, 4, codebooks=3, n_keys=5, d_key=2)
        bottleneck.values.copy_(torch.randn(bottleneck.values.shape, generator=torch.Generator().manual_seed(1)))
        return bottleneck

    def encode(self, x: Tensor) -> Codes:
        """Activations `[..., d_in]` as pairs `[..., codebooks]`, each with the weight 1 / codebooks."""
        check_activations(x, self.d_in, self.name, self.keys.device)
        indices = self._nearest(self._projected(x.reshape(-1, self.d_in)))
        indices = indices + self.n_keys * torch.arange(self.codebooks, device=indices.device)
        indices = indices.view(*x.shape[:-1], self.codebooks)
        return Codes(self.values.new_full(indices.shape, 1 / self.codebooks), indices, self.n_features)

    def _projected(self, rows: Tensor) -> Tensor:
        """Activations `[n, d_in]` as each codebook sees them: `[codebooks, n, d_key]`."""
        return torch.einsum("nd,cdk->cnk", rows.to(self.keys.dtype), self.projections)

    @torch.no_grad()
    def _nearest(self, projected: Tensor) -> Tensor:
        """Place of the nearest key in each codebook, for `[codebooks, n, d_key]`: `[n, codebooks]`."""
        half = self.keys.square().sum(-1)[:, None] / -2  # [codebooks, 1, n_keys]
        keys = self.keys.transpose(1, 2)  # [codebooks, d_key, n_keys]
        parts = [torch.baddbmm(half, some, keys).argmax(-1) for some in projected.split(ROWS, dim=1)]
        return torch.cat(parts, 1).T

    def decode(self, codes: Codes) -> Tensor:
        """The weighted sum of the fetched values: `[..., d_value]`."""
        check_codes(codes, self.n_features, self.name, self.keys.device)
        fetched = self.values.flatten(0, 1)[codes.indices]  # [..., columns, d_value]
        return (codes.values.unsqueeze(-1).to(fetched) * fetched).sum(-2)

    def direction(self, index: int) -> Tensor:
        """The pair's value: `[d_value]`."""
        self.check(index)
        return self.values.flatten(0, 1)[index]

    @checked(DictionaryError)
    @torch.no_grad()
    def learn_keys(
        self, x: Floats, *, epochs: Natural = 10, batch: Positive = 256, decay: Share = 0.95, seed: Natural = 0
    ) -> list[float]:
        """Set the keys to centres of activations, by k-means with moving averages; the values start anew.

        As the paper does: averages with this decay, counts smoothed by 1e-5, keys that nothing is near to replaced by
        activations.

        Args:
            x: activations, without labels, `[n, d_in]`.
            epochs: times through them.
            batch: activations per update.
            decay: of the averages.
            seed: of the order.

        Returns:
            The mean squared distance to the nearest key, for each epoch.
        """
        if x.ndim != 2 or not len(x):
            raise DictionaryError(f"Keys are learned from activations [n, {self.d_in}], not {list(x.shape)}.")
        check_activations(x, self.d_in, self.name, self.keys.device)
        projected = self._projected(x)  # [codebooks, n, d_key]
        chance = torch.Generator().manual_seed(seed)
        first = torch.stack([torch.randint(len(x), (self.n_keys,), generator=chance) for _ in range(self.codebooks)])
        first = first.to(projected.device)
        self.keys.copy_(projected.gather(1, first[..., None].expand(-1, -1, projected.shape[-1])))
        noise = torch.randn(self.keys.shape, generator=chance).to(projected.device)
        self.keys.add_(1e-4 * noise * projected.std())
        counts = torch.ones(self.codebooks, self.n_keys, device=projected.device)
        sums = self.keys.clone()
        history = []
        for _ in range(epochs):
            distance = 0.0
            for rows in torch.randperm(len(x), generator=chance).split(batch):
                part = projected[:, rows]  # [codebooks, batch, d_key]
                nearest = self._nearest(part).T  # [codebooks, batch]
                places = nearest[..., None].expand_as(part)
                distance += float((part - self.keys.gather(1, places)).square().sum(-1).mean(0).sum())
                chosen = torch.zeros_like(counts).scatter_add_(1, nearest, torch.ones_like(part[..., 0]))
                counts.mul_(decay).add_(chosen, alpha=1 - decay)
                sums.mul_(decay).add_(torch.zeros_like(sums).scatter_add_(1, places, part), alpha=1 - decay)
                total = counts.sum(1, keepdim=True)
                smoothed = (counts + 1e-5) / (total + self.n_keys * 1e-5) * total
                self.keys.copy_(sums / smoothed[..., None])
                self._replace_dead(part, counts, sums, chance)
            history.append(distance / len(x))
        self.values.zero_()
        return history

    def _replace_dead(self, part: Tensor, counts: Tensor, sums: Tensor, chance: torch.Generator) -> None:
        """Keys that hardly anything has been near to become activations of the batch."""
        dead = counts < 1e-2 * counts.mean()
        if not bool(dead.any()):
            return
        drawn = torch.randint(part.shape[1], counts.shape, generator=chance).to(part.device)
        fresh = part.gather(1, drawn[..., None].expand_as(self.keys))
        self.keys[dead] = fresh[dead]
        counts[dead] = counts.mean()
        sums[dead] = fresh[dead] * counts.mean()

    @checked(DictionaryError)
    @torch.no_grad()
    def learn(self, x: Floats | Codes, labels: Wholes, lr: Rate = 0.3, smoothing: Share = 0.1) -> float:
        """One step of gradient descent on the fetched values, with the mean of the values as logits.

        Args:
            x: activations, `[batch, d_in]`, or their codes, `[batch, codebooks]`: keys are frozen, so that codes have
                to be computed only once.
            labels: classes, `[batch]`, from 0 to `d_value` - 1.
            lr: learning rate, of the sum over the batch, so that it means the same for any number of codebooks.
            smoothing: share of each label that is spread over all classes.

        Returns:
            The cross-entropy before the step, in nats.
        """
        batch = list((x.indices if isinstance(x, Codes) else x).shape[:1])
        if list(labels.shape) != batch or not batch[0]:
            raise DictionaryError(f"Labels are [batch] = {batch}, not {list(labels.shape)}.")
        if int(labels.min()) < 0 or int(labels.max()) >= self.d_out:
            raise DictionaryError(f"A label is a class from 0 to {self.d_out - 1}.")
        codes = x if isinstance(x, Codes) else self.encode(x)
        logits = self.decode(codes)
        target = nn.functional.one_hot(labels, self.d_out).to(logits) * (1 - smoothing) + smoothing / self.d_out
        loss = nn.functional.cross_entropy(logits, target)
        slope = (logits.softmax(-1) - target)[:, None].expand(-1, self.codebooks, -1)  # [batch, codebooks, d_value]
        self.values.view(self.n_features, -1).index_add_(
            0, codes.indices.flatten(), slope.reshape(-1, self.d_out), alpha=-lr
        )
        return float(loss)

    def config(self) -> dict[str, Any]:
        """Under a name that SAELens does not know, with its fields for sizes and hook points."""
        settings = {"codebooks": self.codebooks, "n_keys": self.n_keys, "d_key": self.keys.shape[-1]}
        return {
            "architecture": self.kind,
            "d_in": self.d_in,
            "d_out": self.d_out,
            "d_sae": self.n_features,
            "metadata": {"hook_name": self.reads},
            "workbench": {"settings": settings},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """See `Dictionary`."""
        with torch.device("meta"):  # as in SparseCoder
            bottleneck = cls(config["d_in"], config["d_out"], **config["workbench"]["settings"], seed=None)
        check_fit(bottleneck.state_dict(), tensors)
        bottleneck.load_state_dict(dict(tensors), assign=True)
        return bottleneck
