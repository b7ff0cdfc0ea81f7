"""Fewer key and value heads: each group of heads becomes one, by singular vectors of keys and values, or by the mean.

Yu et al., "Effectively Compress KV Heads for LLM" (2024), arXiv 2406.07056, take keys and values of a calibration text
and keep, for each group, the directions with most variance; the rest of the change goes into the matrices around them.
Ainslie et al., "GQA" (2023), arXiv 2305.13245, take the mean of the heads' weights.

With rotary positions a key is rotated after its projection, plane by plane, and a checkpoint rotates one key for the
whole group. So the map of the keys must commute with the rotation: in each plane the group's keys are complex numbers,
and their best combination is the first eigenvector of their covariance. Queries take its conjugate, which makes the
replacement exact where the group's keys are multiples of one another. A pass with such keys shows whether an
architecture keeps to this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel, uninterrupted
from workbench.surgery.child import Child, make_child
from workbench.surgery.child_building import (
    PROBE,
    SurgeryError,
    build,
    changed_config,
    complete,
    layers_path,
    parameter_shapes,
    state_of,
    tolerance,
)
from workbench.surgery.inputs import as_model, calibration, load_calibration
from workbench.surgery.registry import Argument, Cancelled, Operation, register

Method = Literal["svd", "mean"]


@checked(SurgeryError)
def merge_kv_heads(
    model: LanguageModel | Child,
    heads: Integer,
    *,
    method: Method = "svd",
    corpus: Corpus | None = None,
    tokens: Positive = 4096,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Child:
    """A child whose attention keeps fewer keys and values in its cache.

    Args:
        model: a model or a child; it stays as it is.
        heads: key and value heads per layer that remain; neighbours are merged.
        method: "svd" of keys and values on a calibration text, or "mean" of the heads' weights.
        corpus: texts to calibrate on; by default the bundled stories.
        tokens: number of tokens of the calibration.
        seed: of the choice of the texts.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: a number of heads that does not divide the old one, or an architecture whose heads can't merge:
            one where joining heads that hold the same moves a logit.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    shape = _shape(model, heads)
    _check_exact(model, shape, method)
    corpus = calibration(corpus)
    spread = _covariances(model, shape, corpus, tokens=tokens, seed=seed, cancel=cancel) if method == "svd" else None
    tensors: dict[str, Tensor] = {}
    for layer in range(model.network.n_layers):
        if progress:
            progress(layer / model.network.n_layers, f"layer {layer}")
        if cancel is not None and cancel():
            raise Cancelled("Joining of heads was stopped; nothing has changed.")
        attention = f"{layers_path(model)}.{layer}.self_attn"
        matrices = _Attention(model.network.module, attention, shape)
        tensors |= matrices.averaged() if spread is None else matrices.joined(*spread[layer])
    step = {"operation": "merge_kv_heads", "heads": heads, "method": method}
    if spread is not None:
        step |= {"calibrated_on": corpus.name, "corpus_hash": corpus.hash, "tokens": tokens}
    return make_child(model, tensors, step, config={"num_key_value_heads": heads}, seed=seed)


@dataclass(frozen=True)
class _Shape:
    """Numbers of heads, and their width."""

    queries: int
    old: int
    new: int
    width: int

    @property
    def joined(self) -> int:
        """Old key and value heads that become one."""
        return self.old // self.new


def _shape(model: LanguageModel, heads: int) -> _Shape:
    """The numbers of heads; refuses an attention of another form, and a number of heads that can't be had."""
    sizes: Any = model.network.config.get_text_config()
    old = getattr(sizes, "num_key_value_heads", None)
    module: Any = model.network.module.get_submodule(f"{layers_path(model)}.0")
    attention = getattr(module, "self_attn", None)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    if old is None or not all(hasattr(attention, part) for part in parts):
        raise SurgeryError(
            f"{model.name} has no key and value heads that its configuration could have fewer of; this is for models "
            "like Llama, Mistral and Qwen2."
        )
    if not 0 < heads < old or old % heads:
        fitting = [number for number in range(1, old) if old % number == 0]
        choices = f"it can have {', '.join(map(str, fitting))}" if fitting else "it can't have fewer"
        raise SurgeryError(f"{model.name} has {old} key and value heads per layer; {choices}, not {heads}.")
    queries, keys, values, out = (getattr(attention, part).weight.shape for part in parts)
    width = keys[0] // old
    number = sizes.num_attention_heads
    if keys[0] != old * width or values[0] != keys[0] or width % 2 or not queries[0] == out[1] == number * width:
        raise SurgeryError(f"The heads of {model.name} do not have one width, so they can't be joined.")
    return _Shape(number, old, heads, width)


@torch.no_grad()
def _check_exact(model: LanguageModel, shape: _Shape, method: Method) -> None:
    """Refuse an attention in which joining moves logits where it must not: where a group's heads hold the same.

    A twin of the model has such heads: under "mean" equal ones; under "svd" keys that are multiples of one another in
    each plane, and values that are one another under a matrix. Norms of queries and keys, clipping, and rotations of
    other planes than those of `_as_complex` show.

    Raises:
        SurgeryError: a logit moves.
    """
    module: Any = model.network.module
    chance = torch.Generator().manual_seed(0)
    equal, joined = dict[str, Tensor](), dict[str, Tensor]()
    paths = [f"{layers_path(model)}.{layer}.self_attn" for layer in range(model.network.n_layers)]
    alike = _Alike.equal(shape) if method == "mean" else _Alike.drawn(shape, chance)
    for path in paths:
        equal |= _Attention(module, path, shape).alike(alike)
    twin = _changed(model, module, equal, {})
    for path in paths:
        matrices = _Attention(twin, path, shape)
        joined |= matrices.averaged() if method == "mean" else matrices.joined(*alike.moments())
    merged = _changed(model, twin, joined, {"num_key_value_heads": shape.new})
    weight = module.get_input_embeddings().weight
    tokens = torch.arange(PROBE, device=weight.device)[None] * 37 % weight.shape[0]
    with uninterrupted():
        wanted, found = (one(input_ids=tokens, use_cache=False).logits.float() for one in (twin, merged))
    moved = float((found - wanted).abs().max())
    if not moved <= tolerance(wanted - wanted.mean(), weight.dtype):
        raise SurgeryError(
            f"The heads of {model.name} can't be joined in its weights by {method}: where they hold the same, a logit "
            f"moves by {moved:.2g}, so keys or values are changed by more than rotations before the attention."
        )


def _changed(model: LanguageModel, module: Any, tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """A plain module with other tensors and another configuration, that shares the rest."""
    settings = changed_config(model, config)
    shapes = parameter_shapes(type(module), settings)
    return build(type(module), settings, complete(shapes, state_of(module), tensors)[0])


@dataclass(frozen=True)
class _Alike:
    """How the heads of each group follow from the group's first.

    Attributes:
        turns: of keys, `[new, joined, width / 2]` complex.
        mixes: of values, `[new, joined, width, width]`.
    """

    turns: Tensor
    mixes: Tensor

    @classmethod
    def equal(cls, s: _Shape) -> _Alike:
        """All heads are the first."""
        eye = torch.eye(s.width, dtype=torch.float64).expand(s.new, s.joined, s.width, s.width)
        return cls(torch.ones(s.new, s.joined, s.width // 2, dtype=torch.complex128), eye)

    @classmethod
    def drawn(cls, s: _Shape, chance: torch.Generator) -> _Alike:
        """Each head is the first one, turned and lengthened in each plane of its keys, with values rotated."""
        size = (s.new, s.joined, s.width // 2)
        lengths = 0.5 + torch.rand(size, generator=chance, dtype=torch.float64)
        angles = 6.3 * torch.rand(size, generator=chance, dtype=torch.float64)
        normal = torch.randn(s.new, s.joined, s.width, s.width, generator=chance, dtype=torch.float64)
        return cls(torch.polar(lengths, angles), torch.linalg.qr(normal).Q)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Second moments of keys and values, as `_covariances` finds them."""
        keys = torch.einsum("gip,gjp->gpij", self.turns, self.turns.conj())
        stacked = self.mixes.flatten(1, 2)
        return keys, stacked @ stacked.transpose(1, 2)


def _as_complex(x: Tensor) -> Tensor:
    """Vectors of a head `[..., width]` as complex numbers `[..., width / 2]`, one for each plane that positions rotate.

    Plane j has the coordinates j and j + width / 2.
    """
    real, imaginary = x.double().chunk(2, -1)
    return torch.complex(real, imaginary)


@torch.inference_mode()
def _covariances(
    model: LanguageModel,
    shape: _Shape,
    corpus: Corpus,
    *,
    tokens: int,
    seed: int,
    cancel: Callable[[], bool] | None,
) -> list[tuple[Tensor, Tensor]]:
    """Second moments of each layer's keys and values over a text.

    Returns:
        Keys `[new, width / 2, joined, joined]` complex, before rotation, which leaves them unchanged; values
        `[new, joined * width, joined * width]`.
    """
    names = [f"blocks.{layer}.attn.hook_{kind}" for layer in range(model.network.n_layers) for kind in "kv"]
    sums: dict[str, Tensor] = {}
    with uninterrupted():
        for batch in corpus.batches(model, 256, 4, tokens, seed):
            if cancel is not None and cancel():
                raise Cancelled("Joining of heads was stopped; nothing has changed.")
            for name, value in model.capture(batch.tokens, names).items():
                x = value[batch.content].view(-1, shape.new, shape.joined, shape.width)  # [tokens, new, joined, width]
                if name.endswith("k"):
                    z = _as_complex(x)
                    moment = torch.einsum("ngip,ngjp->gpij", z, z.conj())
                else:
                    flat = x.double().flatten(2)
                    moment = torch.einsum("nga,ngb->gab", flat, flat)
                sums[name] = sums[name] + moment if name in sums else moment
    return [(sums[f"blocks.{n}.attn.hook_k"], sums[f"blocks.{n}.attn.hook_v"]) for n in range(model.network.n_layers)]


class _Attention:
    """The matrices of one layer's attention, before and after.

    Args:
        module: the plain model that the layer belongs to.
        path: of the attention among its modules.
        shape: of the heads.
    """

    def __init__(self, module: Any, path: str, shape: _Shape):
        self.path, self.shape = path, shape
        attention = module.get_submodule(path)
        self.parts = {part: getattr(attention, f"{part}_proj") for part in "qkvo"}

    def _heads(self, part: str, name: str) -> Tensor | None:
        """Weights `[heads, width, d_model]` or biases `[heads, width, 1]` of queries, keys or values."""
        value = getattr(self.parts[part], name, None)
        if value is None:
            return None
        return value.detach().double().view(-1, self.shape.width, value[0].numel())

    def _stored(self, part: str, name: str, value: Tensor) -> dict[str, Tensor]:
        flat = value.reshape(-1, value.shape[-1]) if name == "weight" else value.flatten()
        return {f"{self.path}.{part}_proj.{name}": flat.float().contiguous()}

    def alike(self, how: _Alike) -> dict[str, Tensor]:
        """The keys' and values' weights, with the heads of each group made of the group's first."""
        s, tensors = self.shape, {}
        for name in ("weight", "bias"):
            if (k := self._heads("k", name)) is not None:
                first = _as_complex(k[:: s.joined].transpose(1, 2))  # [new, in, width / 2]
                turned = torch.einsum("gjp,gip->gjip", how.turns.to(first.device), first).flatten(0, 1)
                tensors |= self._stored("k", name, _as_real(turned))
            if (v := self._heads("v", name)) is not None:
                mixed = how.mixes.to(v.device) @ v[:: s.joined, None]  # [new, joined, width, in]
                tensors |= self._stored("v", name, mixed.flatten(0, 1))
        return tensors

    def averaged(self) -> dict[str, Tensor]:
        """The mean of the keys' and values' weights over each group."""
        tensors = {}
        for part in "kv":
            for name in ("weight", "bias"):
                heads = self._heads(part, name)
                if heads is not None:
                    grouped = heads.unflatten(0, (self.shape.new, self.shape.joined))
                    tensors |= self._stored(part, name, grouped.mean(1))
        return tensors

    def joined(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """All matrices, with keys and values projected on the directions of most variance.

        Args:
            keys: second moments, `[new, width / 2, joined, joined]` complex.
            values: second moments, `[new, joined * width, joined * width]`.
        """
        s = self.shape
        plane = torch.linalg.eigh(keys).eigenvectors[..., -1]  # [new, width / 2, joined]
        basis = torch.linalg.eigh(values).eigenvectors[..., -s.width :]  # [new, joined * width, width]
        per_query = s.queries // s.old
        tensors = {}
        for name in ("weight", "bias"):
            if (k := self._heads("k", name)) is not None:
                z = _as_complex(k.transpose(1, 2)).unflatten(0, (s.new, s.joined))  # [new, joined, in, width / 2]
                tensors |= self._stored("k", name, _as_real(torch.einsum("gpj,gjip->gip", plane.conj(), z)))
            if (q := self._heads("q", name)) is not None:
                z = _as_complex(q.transpose(1, 2)).unflatten(0, (s.new, s.joined, per_query))
                turned = torch.einsum("gpj,gjqip->gjqip", plane.conj(), z).flatten(0, 2)
                tensors |= self._stored("q", name, _as_real(turned))
            if (v := self._heads("v", name)) is not None:
                stacked = v.view(s.new, s.joined * s.width, -1)
                tensors |= self._stored("v", name, basis.transpose(1, 2) @ stacked)
        out = self.parts["o"].weight.detach().double()  # [d_model, queries * width]
        heads = out.view(-1, s.new, s.joined, per_query, s.width)
        parts = basis.view(s.new, s.joined, s.width, s.width)  # [new, joined, old width, new width]
        turned = torch.einsum("dgjqa,gjab->dgjqb", heads, parts)
        return tensors | self._stored("o", "weight", turned.reshape(out.shape))


def _as_real(z: Tensor) -> Tensor:
    """The inverse of `_as_complex`, for weights: `[heads, in, width / 2]` to `[heads, width, in]`."""
    return torch.cat([z.real, z.imag], -1).transpose(1, 2)


def _run(model: LanguageModel, *, corpus: str, heads: int, **how: Any) -> Child:
    return merge_kv_heads(model, heads, corpus=load_calibration(corpus), **how)


register(
    Operation(
        "merge_kv_heads",
        "Join key and value heads",
        "Groups of key and value heads become one, so that the cache of a text gets smaller.",
        (
            Argument("heads", "Heads that are left", 1, "whole", low=1),
            Argument("method", "By", "svd", "choice", choices=get_args(Method)),
            Argument("corpus", "Texts to calibrate on", "stories", "text"),
            Argument("tokens", "Tokens to calibrate on", 2048, "whole", low=1),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
    )
)
