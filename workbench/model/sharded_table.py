"""The hook points of a model that is sharded over processes: found on whole first layers, and how each is shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from workbench.core.type_words import reason_of
from workbench.model.bridge import Bridged
from workbench.model.hookpoint_table import compared, probe_tokens, tensors_at
from workbench.model.hookpoints import HookPoint, HookPoints
from workbench.model.prefix import Prefix, first_layers, float32_prefix
from workbench.model.sharded import WHOLE, Group, Pieces, shared_as
from workbench.model.weights import ModelError


def open_sharded_table(
    module: Any, group: Group, bridged_over: Callable[[Any], Bridged]
) -> tuple[HookPoints, dict[str, Pieces]]:
    """The hook points of a sharded model, and how the processes share those that can be read and edited, by key.

    A table on disk is neither read nor written: the processes would have to agree on what each of them found there.

    Args:
        module: the plain model.
        group: the processes.
        bridged_over: the bridge over a plain model that is whole.

    Raises:
        ModelError: its first layers do not tell its hook points, or it computes values that are not finite.
    """
    try:
        with torch.inference_mode(False):
            prefix = float32_prefix(module)
            points = compared(prefix.module, bridged_over(prefix.module))
            shared = _shared(module, group, prefix, points)
            everywhere = prefix.expanded(points)
    except ModelError:
        raise
    except Exception as error:  # code of an architecture may fail on a part of its model in any way
        raise ModelError(
            f"The hook points of this sharded model can't be found ({reason_of(error)}); {WHOLE}."
        ) from error
    _check_logits(module)
    ways = {point.key: shared.get(prefix.in_copy(point.key)) for point in everywhere}
    return HookPoints(everywhere), {key: pieces for key, pieces in ways.items() if pieces is not None}


def _shared(module: Any, group: Group, prefix: Prefix, points: list[HookPoint]) -> dict[str, Pieces]:
    """How the processes share the tensors of hook points, by the keys of those where they do in a known way."""
    some = {point.key: point for point in points if point.module is not None and point.positional}
    paths = sorted({point.module or "" for point in some.values()})
    probe = probe_tokens(prefix.module)
    wanted, _ = tensors_at(prefix.module, paths, probe)
    found, _ = tensors_at(first_layers(module, prefix.layers, max(prefix.like) + 1), paths, probe)
    ways: dict[str, Pieces] = {}
    for key, point in some.items():
        place = point.module or "", point.side
        whole = wanted[place].reshape(*probe.shape, -1)
        # what a head over all tokens computes for the copy's few
        own = found.get(place)
        if own is not None and point.shape == (prefix.tokens,):
            own = own[..., : prefix.tokens]
        pieces = shared_as(group, own, whole)
        if pieces is not None:
            ways[key] = pieces
    return ways


@torch.no_grad()
def _check_logits(module: Any) -> None:
    logits = module(input_ids=probe_tokens(module), use_cache=False).logits
    if logits.shape[-1] != module.get_output_embeddings().weight.shape[0]:
        raise ModelError(f"Each process of this sharded model computes a part of the logits; {WHOLE}.")
    if not bool(logits.isfinite().all()):
        raise ModelError("This model computes values that are not finite, though its weights are; open it in float32.")
