"""Fewer key and value heads: each group of heads becomes one, by singular vectors of keys and values, or by the mean.

Yu et al., "Effectively Compress KV Heads for LLM" (2024), arXiv 2406.07056, take keys and values of a calibration text
and keep, for each group, the directions with most variance; the rest of the change goes into the matrices around them.
Ainslie et al., "GQA" (2023), arXiv 2305.13245, take the mean of the heads' weights.

With rotary positions a key is rotated after its projection, plane by plane, and a checkpoint rotates one key for the
whole group. So the map of the keys must commute with the rotation: in each plane the group's keys are complex numbers,
and their best combination is the first eigenvector of their covariance. Queries take its conjugate, which makes the
replacement exact where the group's keys are multiples of one another. Passes with such keys, once as large and once as
small as their type allows, show whether an architecture keeps to this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.precision import in_float64
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.weights import state_of
from workbench.model.widened import is_exact, widen
from workbench.surgery.child import Child, make_child
from workbench.surgery.child_building import (
    PROBE,
    SurgeryError,
    build,
    changed_config,
    complete,
    layers_path,
    parameter_shapes,
    tolerance,
)
from workbench.surgery.inputs import as_model, calibration, load_calibration
from workbench.surgery.operations.head_weights import Alike, AttentionWeights, HeadShape, as_complex
from workbench.surgery.registry import Argument, Cancelled, Operation, register

Method = Literal["svd", "mean"]
FAR = 1e4
"""Times the usual size of keys, values or queries, at most: what has a limit reaches it there."""


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
        matrices = AttentionWeights(model.network.module, attention, shape)
        tensors |= matrices.averaged() if spread is None else matrices.joined(*spread[layer])
    step = {"operation": "merge_kv_heads", "heads": heads, "method": method}
    if spread is not None:
        step |= {"calibrated_on": corpus.name, "corpus_hash": corpus.hash, "tokens": tokens}
    return make_child(model, tensors, step, config={"num_key_value_heads": heads}, seed=seed)


def _shape(model: LanguageModel, heads: int) -> HeadShape:
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
    return HeadShape(number, old, heads, width)


def _check_exact(model: LanguageModel, shape: HeadShape, method: Method) -> None:
    """Refuse an attention in which joining moves logits where it must not.

    Raises:
        SurgeryError: a logit moves.
    """
    moved = _moved(model, shape, method)
    if moved:
        hint = "; take the mean" if method == "svd" and not _moved(model, shape, "mean") else ""
        raise SurgeryError(
            f"The heads of {model.name} can't be joined in its weights by {method}: where they hold the same, a logit "
            f"moves by {moved:.2g}, so keys or values are changed otherwise than expected before the attention{hint}."
        )


@torch.no_grad()
def _moved(model: LanguageModel, shape: HeadShape, method: Method) -> float:
    """How far joining moves a logit where a group's heads hold the same; 0 within rounding.

    A twin of the model has such heads: under "mean" equal ones; under "svd" keys that are multiples of one another in
    each plane, and values that are one another under a matrix. Norms of queries and keys and rotations of other planes
    than those of `as_complex` show. Clipping shows too, whatever its limit: the twin has its keys and values multiplied
    with a large number and its queries and output matrix divided by it, then the other way round, which changes no
    attention that is made of products alone.
    """
    if method == "mean":  # equal heads stay equal where they are clipped
        return _moved_at(model, shape, method, 1.0)
    return max(_moved_at(model, shape, method, scale) for scale in (FAR, 1 / FAR))


def _moved_at(model: LanguageModel, shape: HeadShape, method: Method, scale: float) -> float:
    """The same with a twin of one scale, in float32; see `AttentionWeights.alike`."""
    module: Any = model.network.module
    chance = torch.Generator().manual_seed(0)
    equal, joined = dict[str, Tensor](), dict[str, Tensor]()
    paths = [f"{layers_path(model)}.{layer}.self_attn" for layer in range(model.network.n_layers)]
    alike = Alike.equal(shape) if method == "mean" else Alike.drawn(shape, chance)
    for path in paths:
        equal |= AttentionWeights(module, path, shape).alike(alike, scale)
    twin = _changed(model, module, equal, {})
    for path in paths:
        matrices = AttentionWeights(twin, path, shape)
        joined |= matrices.averaged() if method == "mean" else matrices.joined(*alike.moments())
    merged = _changed(model, twin, joined, {"num_key_value_heads": shape.new})
    weight = module.get_input_embeddings().weight
    tokens = torch.arange(PROBE, device=weight.device)[None] * 37 % weight.shape[0]
    with uninterrupted():
        wanted, found = (one(input_ids=tokens, use_cache=False).logits for one in (twin, merged))
    moved = float((found - wanted).abs().nan_to_num(nan=torch.inf).max())
    return 0.0 if moved <= tolerance(wanted - wanted.mean(), wanted.dtype) else moved


def _changed(model: LanguageModel, module: Any, tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """A plain module with other tensors and another configuration, that shares the rest and computes in float32."""
    settings, kind = changed_config(model, config), type(module)
    shapes, old = parameter_shapes(kind, settings), state_of(module)
    if is_exact(model):
        return build(kind, settings, complete(shapes, old, tensors)[0])
    narrow = {name: one.dtype for name, one in state_of(model.network.module).items() if one.dtype != torch.float32}
    exact = {name: one for name, one in (old | tensors).items() if one.dtype == torch.float32 and name in narrow}
    places = {name: torch.zeros_like(one, dtype=narrow[name]) for name, one in exact.items()}
    changed = build(kind, settings, complete(shapes, old | places, {})[0])
    widen(changed)
    for name, tensor in exact.items():  # rounded to 16 bits, equal heads would no longer be equal
        owner, _, leaf = name.rpartition(".")
        setattr(changed.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    return changed


@torch.inference_mode()
def _covariances(
    model: LanguageModel,
    shape: HeadShape,
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
    corpus.check_tokens(model)
    names = [f"blocks.{layer}.attn.hook_{kind}" for layer in range(model.network.n_layers) for kind in "kv"]
    sums: dict[str, Tensor] = {}
    with uninterrupted():
        for batch in corpus.batches(model, 256, 4, tokens, seed):
            if cancel is not None and cancel():
                raise Cancelled("Joining of heads was stopped; nothing has changed.")
            for name, value in model.capture(batch.tokens, names).items():
                x = value[batch.content].view(-1, shape.new, shape.joined, shape.width)  # [tokens, new, joined, width]
                if name.endswith("k"):
                    z = as_complex(x)
                    moment = torch.einsum("ngip,ngjp->gpij", z, z.conj())
                else:
                    flat = in_float64(x).flatten(2)
                    moment = torch.einsum("nga,ngb->gab", flat, flat)
                sums[name] = sums[name] + moment if name in sums else moment
    return [(sums[f"blocks.{n}.attn.hook_k"], sums[f"blocks.{n}.attn.hook_v"]) for n in range(model.network.n_layers)]


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
        neutral="heads have to get fewer",
    )
)
