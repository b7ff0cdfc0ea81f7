"""Fewer key and value heads: each group of heads becomes one, by singular vectors of keys and values, or by the mean.

Yu et al., "Effectively Compress KV Heads for LLM" (2024), arXiv 2406.07056, take keys and values of a calibration text
and keep, for each group, the directions with most variance; the rest of the change goes into the matrices around them.
Ainslie et al., "GQA" (2023), arXiv 2305.13245, take the mean of the heads' weights.

With rotary positions a key is rotated after its projection, plane by plane, and a checkpoint rotates one key for the
whole group. So the map of the keys must commute with the rotation: in each plane the group's keys are complex numbers,
and their best combination is the first eigenvector of their covariance. Queries take its conjugate, which makes the
replacement exact where the group's keys are multiples of one another.
"""

from __future__ import annotations

import sys
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
from workbench.surgery.child_building import SurgeryError, layers_path
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
        SurgeryError: a number of heads that does not divide the old one, or an architecture whose heads can't merge.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    shape = _shape(model, heads)
    if method == "svd" and not _turns_halves(model):
        raise SurgeryError(f"{model.name} turns other planes of a head by position than Llama does; take the mean.")
    corpus = calibration(corpus)
    spread = _covariances(model, shape, corpus, tokens=tokens, seed=seed, cancel=cancel) if method == "svd" else None
    tensors: dict[str, Tensor] = {}
    for layer in range(model.network.n_layers):
        if progress:
            progress(layer / model.network.n_layers, f"layer {layer}")
        if cancel is not None and cancel():
            raise Cancelled("Joining of heads was stopped; nothing has changed.")
        attention = f"{layers_path(model)}.{layer}.self_attn"
        matrices = _Attention(model, attention, shape)
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
    if any(hasattr(attention, norm) for norm in ("q_norm", "k_norm")):
        raise SurgeryError(f"{model.name} normalises its queries and keys, so heads can't be joined in its weights.")
    if not 0 < heads < old or old % heads:
        fitting = [number for number in range(1, old) if old % number == 0]
        choices = f"it can have {', '.join(map(str, fitting))}" if fitting else "it can't have fewer"
        raise SurgeryError(f"{model.name} has {old} key and value heads per layer; {choices}, not {heads}.")
    width = getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads
    if getattr(sizes, "partial_rotary_factor", None) not in (None, 1, 1.0):
        raise SurgeryError(f"{model.name} turns only a part of each head by its position; its heads can't be joined.")
    return _Shape(sizes.num_attention_heads, old, heads, width)


def _turns_halves(model: LanguageModel) -> bool:
    """Whether positions rotate the planes of `_as_complex`, as in Llama; Cohere's planes are of neighbours."""
    attention: Any = model.network.module.get_submodule(f"{layers_path(model)}.0").self_attn
    homes = [sys.modules[kind.__module__] for kind in type(attention).__mro__]
    rotate = next((getattr(home, "rotate_half", None) for home in homes if hasattr(home, "rotate_half")), None)
    return rotate is not None and rotate(torch.arange(1.0, 5.0)).tolist() == [-3.0, -4.0, 1.0, 2.0]


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
        model: the model that the layer belongs to.
        path: of the attention among the plain modules.
        shape: of the heads.
    """

    def __init__(self, model: LanguageModel, path: str, shape: _Shape):
        self.path, self.shape = path, shape
        module: Any = model.network.module.get_submodule(path)
        self.parts = {part: getattr(module, f"{part}_proj") for part in "qkvo"}

    def _heads(self, part: str, name: str) -> Tensor | None:
        """Weights `[heads, width, d_model]` or biases `[heads, width, 1]` of queries, keys or values."""
        value = getattr(self.parts[part], name, None)
        if value is None:
            return None
        return value.detach().double().view(-1, self.shape.width, value[0].numel())

    def _stored(self, part: str, name: str, value: Tensor) -> dict[str, Tensor]:
        flat = value.reshape(-1, value.shape[-1]) if name == "weight" else value.flatten()
        return {f"{self.path}.{part}_proj.{name}": flat.float().contiguous()}

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
