"""Cross-layer transcoder: each feature reads before one MLP and writes behind that MLP and all later ones.

Ameisen et al., "Circuit Tracing: Revealing Computational Graphs in Language Models" (2025),
https://transformer-circuits.pub/2025/attribution-graphs/methods.html. With x_l what MLP l reads and y_m what MLP m
writes,

    codes_l = JumpReLU(x_l W_enc_l + b_enc_l)
    y_hat_m = sum over l <= m of codes_l W_dec_l[m] + b_dec_m + x_m W_skip_m

All layers are one dictionary, since only their sum reconstructs. Features are numbered layer by layer. A threshold of
0 is a ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize, pad

from workbench.core.checks import Natural, Positive, checked
from workbench.core.hashing import HALVES
from workbench.dictionaries import cross_layer_learning as learning
from workbench.dictionaries.codes import Codes, check_activations, check_codes
from workbench.dictionaries.folder import SAELENS, DictionaryError, check_fit
from workbench.dictionaries.jumping import L0, JumpReLU
from workbench.dictionaries.settings import Band, Setting, Width
from workbench.dictionaries.sites import Stage
from workbench.dictionaries.trainable import Step, Trainable

ROWS = 1024
"""Activations encoded at a time: bounds the matrix of a layer's pre-activations."""
Layers = Annotated[Positive, Setting("Layers", "How many MLPs it reads and writes.")]
"""Number of layers."""


class CrossLayerTranscoder(Trainable):
    """A transcoder of several layers at once, with a learned threshold for each latent.

    Weights of 16 bits stay as they are and are computed with in float32, a layer's encoder at a time; decoder rows are
    read where they are needed.

    Args:
        d_in: width of what is read, and of what is written, of all layers together.
        width: number of latents of all layers together.
        l0: coefficient of the penalty, the number of active latents.
        layers: number of layers; `d_in` and `width` are multiples of it.
        bandwidth: width of the band around the threshold in which its gradient is estimated.
        skip: whether a linear path leads past the codes of each layer; it starts at 0.
        reads, writes: hook points of all layers in their order, joined by " + "; empty until they are known.
        name: what features call it.
        seed: of the starting weights; None leaves them to be filled.

    Attributes:
        W_enc_T: for each layer `[latents, d_model]`.
        b_enc: for each layer `[latents]`.
        W_dec: for each layer `[latents, layers from this one on, d_model]`; each latent's rows together have norm 1 in
            training.
        b_dec: `[layers, d_model]`.
        W_skip: for each layer `[d_model, d_model]`; empty without a skip path.
        activations: for each layer the `JumpReLU` with its thresholds.
    """

    kind = "cross_layer_transcoder"
    transcodes = True
    across = True
    resamples = True

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        l0: L0 = 1.0,
        *,
        layers: Layers = 2,
        bandwidth: Band = 0.05,
        skip: bool = False,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        super().__init__(name)
        for what, size in (("d_in", d_in), ("width", width)):
            if size % layers:
                raise DictionaryError(f"{what} is of all layers together, a multiple of {layers}, not {size:,}.")
        self.d_in = self.d_out = d_in
        self.n_features = width
        self.layers = self.n_reads = self.n_writes = layers
        self.d_model, self.per_layer, self.skip = d_in // layers, width // layers, skip
        self.reads, self.writes = reads, writes
        d, n = self.d_model, self.per_layer
        self.W_enc_T = _parameters(torch.empty(n, d) for _ in range(layers))
        self.b_enc = _parameters(torch.zeros(n) for _ in range(layers))
        self.W_dec = _parameters(torch.empty(n, layers - layer, d) for layer in range(layers))
        self.b_dec = nn.Parameter(torch.zeros(layers, d), requires_grad=False)
        self.W_skip = _parameters(torch.zeros(d, d) for _ in range(layers if skip else 0))
        self.activations = nn.ModuleList(JumpReLU(n, l0, bandwidth) for _ in range(layers))
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for encoder, decoder in zip(self.W_enc_T, self.W_dec, strict=True):
                    encoder.copy_(normalize(torch.randn(encoder.shape, generator=generator), dim=0))
                    rows = torch.randn(n, decoder[0].numel(), generator=generator)
                    decoder.copy_(normalize(rows, dim=1).view_as(decoder))

    @classmethod
    def example(cls) -> Self:
        """Two layers of width 4, with 12 latents each."""
        return cls(8, 24, layers=2)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The features of each layer, which write from that layer on."""
        n = self.per_layer
        return tuple(
            Stage(range(layer * n, (layer + 1) * n), (layer,), tuple(range(layer, self.layers)))
            for layer in range(self.layers)
        )

    def decoder(self, layer: int) -> Tensor:
        """A layer's decoder, all that a latent writes in one row: `[latents, layers from this one on * d_model]`."""
        return self.W_dec[layer].flatten(1)

    def encode_stage(self, number: int, x: Tensor) -> Codes:
        """Codes of a layer's latents, from what the layer reads `[..., d_model]`."""
        check_activations(x, self.d_model, f"Layer {number} of {self.name}", self.b_dec.device)
        weight, bias = _computed(self.W_enc_T[number]), _computed(self.b_enc[number])
        rows = x.to(weight.dtype).reshape(-1, self.d_model)
        part: Any = self.activations[number]
        parts = [part.codes(torch.addmm(bias, some, weight.T)) for some in rows.split(ROWS)]
        columns = max(values.shape[1] for values, _ in parts)
        values, latents = (
            torch.cat([pad(some, (0, columns - some.shape[1])) for some in kind]) for kind in zip(*parts, strict=True)
        )
        shape = (*x.shape[:-1], columns)
        return Codes(values.view(shape), latents.view(shape) + number * self.per_layer, self.n_features)

    def encode(self, x: Tensor) -> Codes:
        """Activations of all layers `[..., d_in]` as codes: the layers' columns one behind the other."""
        check_activations(x, self.d_in, self.name, self.b_dec.device)
        each = [self.encode_stage(layer, one) for layer, one in enumerate(x.chunk(self.layers, -1))]
        values, indices = (torch.cat([getattr(one, name) for one in each], -1) for name in ("values", "indices"))
        return Codes(values, indices, self.n_features)

    def decode(self, codes: Codes) -> Tensor:
        """Codes as activations of all layers: `[..., d_out]`."""
        check_codes(codes, self.n_features, self.name, self.b_dec.device)
        bias = _computed(self.b_dec)
        out = bias.flatten().repeat(codes.values[..., 0].numel(), 1)  # [rows, d_out]
        for layer in range(self.layers):
            out[:, layer * self.d_model :] += self._decoded(layer, codes)
        return out.view(*codes.values.shape[:-1], self.d_out)

    def _decoded(self, layer: int, codes: Codes) -> Tensor:
        """What a layer's latents write, without bias: `[rows, layers from this one on * d_model]`."""
        first = layer * self.per_layer
        columns = codes.values.shape[-1]
        values, indices = codes.values.reshape(-1, columns), codes.indices.reshape(-1, columns)
        own = (values != 0) & (indices >= first) & (indices < first + self.per_layer)
        latents = indices[own] - first  # [n], row by row
        starts = pad(own.sum(1).cumsum(0), (1, 0))[:-1]
        return self._weighted(layer, latents, values[own], starts)

    def _weighted(self, layer: int, latents: Tensor, values: Tensor, starts: Tensor) -> Tensor:
        """Decoder rows times values `[n]`, summed over the entries of each row, which begin at `starts` `[rows]`."""
        weight = self.W_dec[layer]
        if weight.dtype not in HALVES and not self.lazy:
            return embedding_bag(
                latents, weight.flatten(1), starts, mode="sum", per_sample_weights=values.to(weight.dtype)
            )
        used, places = latents.unique(return_inverse=True)
        how: dict[str, Any] = {"mode": "sum", "per_sample_weights": values.to(_computed(weight[:0]).dtype)}
        each = range(weight.shape[1])  # the rows of one layer that is written are in memory at a time
        return torch.cat([embedding_bag(places, self._rows(layer, used, number), starts, **how) for number in each], -1)

    def _rows(self, layer: int, latents: Tensor | int, number: int | slice = slice(None)) -> Tensor:
        """Decoder rows of latents in float32; raises `DictionaryError` for values that are not finite, which no
        opening has looked at in files that are read row by row."""
        rows = _computed(self.W_dec[layer][latents, number])
        if self.lazy and not bool(rows.isfinite().all()):
            raise DictionaryError(
                f"W_dec of layer {layer} of {self.name} holds values that are not finite; copy it anew."
            )
        return rows

    def reconstruct_stage(self, number: int, x: Tensor, codes: Codes) -> Tensor:
        """What a layer's codes write, with the layer's own bias and skip path at its own MLP."""
        out = self._decoded(number, codes).view(*x.shape[:-1], -1)
        own = _computed(self.b_dec[number])
        if self.skip:
            own = own + x.to(own.dtype) @ _computed(self.W_skip[number])
        return torch.cat([out[..., : self.d_model] + own, out[..., self.d_model :]], -1)

    def reconstruct(self, x: Tensor, codes: Codes | None = None) -> Tensor:
        """`decode`, and x_m W_skip_m where there is a skip path: `[..., d_out]`."""
        out = super().reconstruct(x, codes)
        if not self.skip:
            return out
        each = zip(x.chunk(self.layers, -1), self.W_skip, strict=True)
        return out + torch.cat([one.to(out.dtype) @ _computed(weight) for one, weight in each], -1)

    def direction(self, index: int) -> Tensor:
        """The latent's decoder rows behind zeros for the layers before its own: `[d_out]`."""
        self.check(index)
        layer, latent = divmod(int(index), self.per_layer)
        return pad(self._rows(layer, latent).flatten(), (layer * self.d_model, 0))

    def initialise(self, x: Tensor, target: Tensor | None = None) -> None:
        """See `Trainable`; `b_dec` becomes the target's geometric median."""
        learning.initialise(self, x, target)

    def adopt(self, x: Tensor, target: Tensor | None = None) -> None:
        """See `Trainable`; the norm of each latent's decoder rows moves into its encoder."""
        learning.adopt(self, x, target)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group for each parameter; see `Trainable`."""
        ratio = self.unit_out / self.unit_in
        sizes = {"W_enc_T": ratio, "W_dec": 1.0, "W_skip": ratio}  # all others have the unit of what is written
        return [
            {"params": [parameter], "lr": lr * sizes.get(name.split(".")[0], self.unit_out), "name": name}
            for name, parameter in self.named_parameters()
        ]

    def loss_and_gradients(
        self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None, sparsity: float = 1.0
    ) -> Step:
        """Squared error over all layers, and the penalty; see `Trainable`."""
        return learning.loss_and_gradients(self, x, target, sparsity)

    @torch.no_grad()
    def constrain(self) -> None:
        """Each latent's decoder rows together have norm 1; no threshold below 0."""
        for decoder in self.W_dec:
            decoder.div_(decoder.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None])
        for part in self.activations:
            part.constrain()  # type: ignore[operator]

    def resample(
        self,
        x: Tensor,
        dead: Tensor,
        target: Tensor | None = None,
        *,
        optimiser: torch.optim.Optimizer | None = None,
        generator: torch.Generator | None = None,
    ) -> int:
        """Bricken et al. 2023, layer by layer; see `cross_layer_learning.resample`."""
        return learning.resample(self, x, dead, target, optimiser=optimiser, generator=generator)

    def deciding_settings(self) -> dict[str, Any]:
        """Without those that only learning uses; see `Dictionary`."""
        settings = super().deciding_settings()
        return {name: value for name, value in settings.items() if name not in JumpReLU.only_learns}

    def config(self) -> dict[str, Any]:
        """Under a name that SAELens does not know, with its fields for sizes and hook points."""
        part: Any = self.activations[0]
        settings = {"layers": self.layers, "skip": self.skip} | part.settings()
        return {
            "architecture": self.kind,
            "d_in": self.d_in,
            "d_out": self.d_out,
            "d_sae": self.n_features,
            "metadata": {"sae_lens_version": SAELENS, "hook_name": self.reads, "hook_name_out": self.writes},
            "workbench": {"settings": settings} | self.origin(),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """See `Dictionary`."""
        own = config.get("workbench") or {}
        with torch.device("meta"):  # as in SparseCoder
            made = cls(config["d_in"], config["d_sae"], **own.get("settings", {}), seed=None)
        check_fit(made.state_dict(), tensors)
        made.take_origin(own)
        made.load_state_dict(dict(tensors), assign=True)
        return made


def _parameters(tensors: Iterator[Tensor]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in tensors)


def _computed(weight: Tensor) -> Tensor:
    """A weight in the type that is computed with: float32 for 16 bits."""
    return weight.float() if weight.dtype in HALVES else weight
