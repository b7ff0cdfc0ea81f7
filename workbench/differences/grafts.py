"""Grafts: what a part of one model does in the other, by a run that computes with its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.core.precision import in_float64
from workbench.differences.pairs import Pair
from workbench.differences.results import Graft
from workbench.differences.texts import Windows
from workbench.evaluation.losses import kl_divergence, predictions
from workbench.evaluation.runs import windows_at_once
from workbench.model.in_force import uninterrupted
from workbench.model.modules import sharing_copy

LEAST = 1e-7
"""A KL below so many nats is rounding, and nothing is closed."""


def parts_of(pair: Pair) -> dict[str, tuple[int | None, list[str]]]:
    """The parts of b that differ, each with its layer and the names of its changed tensors."""
    parts: dict[str, tuple[int | None, list[str]]] = {}

    def put(part: str, layer: int | None, name: str) -> None:
        parts.setdefault(part, (layer, []))[1].append(name)

    paths = _layer_paths(pair)
    for name in pair.changed:
        layer = next((n for n, (path, _) in enumerate(paths) if name.startswith(path + ".")), None)
        if layer is None:
            put("embeddings and head", None, name)
            continue
        put(f"layer {layer}", layer, name)
        for word, path in paths[layer][1].items():
            if name.startswith(path + "."):
                put(f"{word} of layer {layer}", layer, name)
    return parts


def _layer_paths(pair: Pair) -> list[tuple[str, dict[str, str]]]:
    """The path of each layer's module, and those of its attention and its MLP, where modules carry them."""
    points, found = pair.a.hook_points, []
    for layer in range(pair.a.network.n_layers):
        entry = points[f"blocks.{layer}.hook_resid_pre"].module
        if entry is None:
            return []
        inside = {}
        for word, names in (
            ("attention", ("attn.hook_z", "hook_attn_out")),
            ("mlp", ("mlp.hook_post", "hook_mlp_out")),
        ):
            for name in names:
                point = points.get(f"blocks.{layer}.{name}")
                if point is not None and point.module and point.module.startswith(entry + "."):
                    inside[word] = f"{entry}.{point.module.removeprefix(entry + '.').split('.')[0]}"
                    break
        if len(set(inside.values())) < len(inside):  # one module of both, as in OPT's layers of single matrices
            inside = {}
        found.append((entry, inside))
    return found


def measure_grafts(
    pair: Pair, windows: Windows, tell: Callable[[float, str], None], stops: Callable[[], bool]
) -> list[Graft]:
    """The share of KL(b ‖ a) that each changed part closes where a computes with b's weights of it, the most first."""
    parts = parts_of(pair)
    twin: Any = sharing_copy(pair.a.network.module)
    kls = torch.zeros(1 + len(parts), dtype=torch.float64)
    batch = windows_at_once(pair.a, windows.context, windows.batch)
    with uninterrupted(), torch.inference_mode():
        for some in windows.corpus.batches(pair.a, windows.context, batch, windows.tokens, windows.seed):
            pairs = predictions(some.content)
            wanted = pair.b.run(some.tokens, pair.b.bind(list(pair.beside[1])))
            for number, (_, names) in enumerate([(None, []), *parts.values()]):
                weights = {name: pair.changed[name][1].to(pair.changed[name][0]) for name in names}
                how = {"input_ids": some.tokens, "use_cache": False}
                logits: Tensor = torch.func.functional_call(twin, weights, (), how).logits
                kl = kl_divergence(wanted[:, :-1].to(logits.device), logits[:, :-1], pairs)
                kls[number] += float(in_float64(kl).sum()) / windows.tokens
                tell((number + 1) / (1 + len(parts)), f"grafts: {number + 1} of {1 + len(parts)}")
                if stops():
                    return []
    plain = float(kls[0])
    if plain < LEAST:
        return []
    grafts = [
        Graft(part, layer, 1 - float(kl) / plain) for (part, (layer, _)), kl in zip(parts.items(), kls[1:], strict=True)
    ]
    return sorted(grafts, key=lambda one: -one.closed)
