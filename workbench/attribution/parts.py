"""What a dictionary does at one layer: a transcoder has one part, a cross-layer transcoder has one for each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.codes import Codes
from workbench.dictionaries.cross_layer import CrossLayerTranscoder
from workbench.dictionaries.features import Feature
from workbench.dictionaries.normalising import NONE
from workbench.dictionaries.origin import tell_origin
from workbench.dictionaries.sites import check_count, follow
from workbench.model.language_model import LanguageModel

Transcoder = SparseCoder | CrossLayerTranscoder
Transcoders = Sequence[Transcoder] | Mapping[str, Transcoder] | Mapping[int, Transcoder]


@dataclass(frozen=True, eq=False)
class Part:
    """The features of a dictionary that read at one layer."""

    owner: Transcoder = field(repr=False)
    stage: int
    """Which of the dictionary's stages."""
    layers: tuple[int, ...]
    """The layers whose MLP outputs they write, the first of which they read."""

    @property
    def name(self) -> str:
        """The dictionary's."""
        return self.owner.name

    @property
    def reads(self) -> str:
        """The hook point where they read."""
        return self.owner.read_points[self.stage]

    @property
    def writes(self) -> str:
        """The hook point where they write into their own layer."""
        return self.owner.write_points[self.stage]

    @property
    def bias(self) -> Tensor:
        """The dictionary's bias at the own layer: `[d_model]`."""
        bias = self.owner.b_dec.detach().float()
        return bias[self.stage] if isinstance(self.owner, CrossLayerTranscoder) else bias

    @property
    def skip(self) -> Tensor | None:
        """The linear path past the features: what is written is `x @ skip.T`, `[d_model, d_model]`."""
        if isinstance(self.owner, CrossLayerTranscoder):
            return self.owner.W_skip[self.stage].detach().float().T if self.owner.skip else None
        return None if self.owner.W_skip is None else self.owner.W_skip.detach().float()

    def holds(self, index: int) -> bool:
        """Whether a feature is one of them."""
        return index in self.owner.stages[self.stage].features

    def feature(self, index: int) -> Feature:
        """One of them, or another feature of the dictionary."""
        return self.owner.feature(index)

    def encode(self, read: Tensor) -> Codes:
        """The codes of activations `[..., d_model]`."""
        return self.owner.encode_stage(self.stage, read)

    def written(self, read: Tensor) -> tuple[Tensor, ...]:
        """The shares of the reconstructions of `layers`, `[..., d_model]` each, with bias and linear path."""
        made = self.owner.reconstruct_stage(self.stage, read, self.encode(read))
        return made.float().chunk(len(self.layers), -1)

    def rows(self, indices: Tensor) -> tuple[Tensor, ...]:
        """What a unit of each feature `[n]` writes into each of `layers`: `[n, d_model]` each."""
        if isinstance(self.owner, SparseCoder):
            return (self.owner.W_dec[indices].detach().float(),)
        whole = torch.stack([self.owner.direction(index) for index in indices.tolist()])
        return whole.detach().float().chunk(self.owner.layers, -1)[self.stage :]

    def encoder(self, index: int) -> tuple[Tensor, float]:
        """A feature's pre-activation as `x @ row + constant`: the row `[d_model]` and the constant."""
        owner = self.owner
        if isinstance(owner, CrossLayerTranscoder):
            latent = index - owner.stages[self.stage].features.start
            return owner.W_enc_T[self.stage][latent].detach().float(), float(owner.b_enc[self.stage][latent])
        row, constant = owner.W_enc_T[index].detach().float(), float(owner.b_enc[index])
        return row, constant - float(owner.b_dec.float() @ row) if owner.centred else constant


def owners(parts: Mapping[int, Part]) -> list[Transcoder]:
    """The dictionaries of parts, each once."""
    return list({id(one.owner): one.owner for one in parts.values()}.values())


def transcoders_by_layer(model: LanguageModel, transcoders: Transcoders) -> dict[int, Part]:
    """Parts of transcoders by the layer where they read, in ascending order.

    Where something stands between an MLP and the stream (a norm, a factor), a transcoder may write before it, at
    `mlp.hook_out`, or behind it, at `hook_mlp_out`.

    Raises:
        AttributionError: a transcoder that does not read an MLP's normed input and write its output, or normalises
            it once more, or two of one layer.
    """
    by_layer: dict[int, Part] = {}
    for one in transcoders.values() if isinstance(transcoders, Mapping) else transcoders:
        found = _parts_of(model, one)
        if one.normalises != NONE:
            raise AttributionError(
                f"{one.name} normalises each activation that it reads ({one.normalises}), so that its latents are not "
                "linear in what is upstream; give a transcoder that does not."
            )
        follow(one, model)
        for part in found:
            layer = part.layers[0]
            if layer in by_layer:
                raise AttributionError(
                    f"{by_layer[layer].name} and {one.name} are both of layer {layer}; give one of them."
                )
            by_layer[layer] = part
        tell_origin(one, model)
    return dict(sorted(by_layer.items()))


def _parts_of(model: LanguageModel, one: Transcoder) -> Iterable[Part]:
    check_count(one.name, "reads", one.read_points, one.n_reads)
    check_count(one.name, "writes", one.write_points, one.n_writes)
    if isinstance(one, SparseCoder):
        if one.n_reads > 1:
            raise _refusal(one)
        return [Part(one, 0, (_layer_of(model, one, 0),))]
    layers = [_layer_of(model, one, number) for number in range(one.layers)]
    if layers != sorted(set(layers)):
        raise AttributionError(f"{one.name} reads at the layers {layers}, which are to be in ascending order.")
    return [Part(one, number, tuple(layers[number:])) for number in range(one.layers)]


def _layer_of(model: LanguageModel, one: Transcoder, number: int) -> int:
    """The layer at which a stage reads and writes."""
    points, reads, writes = model.hook_points, one.read_points[number], one.write_points[number]
    for layer in range(model.network.n_layers):
        norm = "ln2.hook_out" if f"blocks.{layer}.ln2.hook_out" in points else "ln1.hook_out"
        read, written = (
            {points[name].key for word in words if (name := f"blocks.{layer}.{word}") in points}
            for words in (("mlp.hook_in", norm, *BEFORE), ("hook_mlp_out", "mlp.hook_out"))
        )
        if writes not in points or points[writes].key not in written:
            continue
        width, sizes = model.network.d_model, (one.d_in // one.n_reads, one.d_out // one.n_writes)
        for size in sizes:
            if size != width:
                raise AttributionError(f"{one.name} is {size:,} wide, and the model's stream is {width:,} wide.")
        if reads in points and points[reads].key in read:
            return layer
        break
    raise _refusal(one)


BEFORE = ("hook_resid_mid", "ln2.hook_in")
"""Hook points of the stream in front of an MLP's norm, where transcoders of circuit-tracer may read."""


def _refusal(one: Transcoder) -> AttributionError:
    return AttributionError(
        f"{one.name} reads {one.reads or 'nowhere'} and writes {one.writes or 'nowhere'}; features are attributed with "
        "transcoders, which read blocks.L.mlp.hook_in and write blocks.L.hook_mlp_out or blocks.L.mlp.hook_out."
    )
