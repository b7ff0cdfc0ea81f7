"""The table of a model's hook points: built by running a short probe through both trees of modules, kept on disk.

A hook point belongs to a plain module only if the plain tree and the bridge compute the same tensor there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from workbench.core.cache import cache_folder, in_use, optional
from workbench.core.checks import Positive
from workbench.core.files import replacing
from workbench.core.forms import read_json
from workbench.core.hashing import HALVES, hash_of
from workbench.model.bridge import Bridged, BridgeTensor
from workbench.model.hookpoints import HookPoint, HookPoints
from workbench.model.hooks import input_of
from workbench.model.identity import settings_of
from workbench.model.prefix import float32_prefix
from workbench.model.uneditable import uneditable
from workbench.model.weights import ModelError, state_of

TABLE = 4
"""Version of the tables of hook points on disk."""
TABLE_16_BITS = 5
"""The same of models in 16 bits; up to version 4 they were found by comparing rounded numbers."""


class SavedPoint(TypedDict):
    """A hook point in a table on disk."""

    name: str
    shape: list[Positive]
    module: str | None
    side: Literal["in", "out"]
    key: str
    positional: bool
    refusal: str


class SavedTable(TypedDict):
    """A table on disk, with the SHA-256 of its rows."""

    sha256: str
    points: list[SavedPoint]


def open_table(
    module: Any,
    versions: Mapping[str, str],
    bridged_over: Callable[[Any], Bridged],
) -> HookPoints:
    """The hook points of a model: from the table on disk, or built and written there.

    Args:
        module: the plain model.
        versions: libraries that decide which hook points there are; each version has a table of its own.
        bridged_over: the bridge over a plain model.

    Raises:
        ModelError: the model computes values that are not finite.
    """
    file = _table_file(module, versions)
    points = _read(file)
    if points is None:
        points = HookPoints(_build(module, bridged_over))
        with optional(file), replacing(file, owned=True) as temporary:
            rows = json.loads(json.dumps([asdict(point) for point in points.values()]))
            temporary.write_text(json.dumps({"sha256": _sha256(rows), "points": rows}))
    return points


def _build(module: Any, bridged_over: Callable[[Any], Bridged]) -> list[HookPoint]:
    """All hook points: in 16 bits those of a copy in float32 with few layers, where there can be one."""
    if module.dtype not in HALVES:
        return compared(module, bridged_over(module))
    try:
        with torch.inference_mode(False):
            prefix = float32_prefix(module)
            points = prefix.expanded(compared(prefix.module, bridged_over(prefix.module)))
    except Exception:  # noqa: BLE001 - code of an architecture may fail on a part of its model in any way
        return compared(module, bridged_over(module))
    with torch.no_grad():
        finite = bool(module(input_ids=probe_tokens(module)).logits.isfinite().all())
    return points if finite else compared(module, bridged_over(module))


def compared(module: Any, bridged: Bridged) -> list[HookPoint]:
    """All hook points, from two short sequences that run through both trees.

    Raises:
        ModelError: the model computes values that are not finite.
    """
    probe = probe_tokens(module)
    observed, plain, logits = _both(module, probe, bridged)
    if not bool(logits.isfinite().all()):
        raise ModelError(_not_finite(module, observed))
    points = []
    for tensor in observed:
        path = tensor.path
        if path is not None and not _same(plain.get((path, tensor.side)), tensor.value):
            path = None
        positional = tuple(tensor.value.shape[:2]) == tuple(probe.shape)
        shape = tuple(tensor.value.shape[2:])
        points.append(HookPoint(tensor.name, shape, path, tensor.side or "out", tensor.key, positional))
    reasons = uneditable(module, bridged, points, probe)
    return [replace(point, refusal=reasons.get(point.key, "")) for point in points]


def _not_finite(module: Any, observed: list[BridgeTensor]) -> str:
    """Where values that are not finite come from, and what to do, in a sentence."""
    for name, tensor in state_of(module).items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return f"{name} of this model holds values that are not finite: its weights are damaged; load it again."
    first = next((one.name for one in observed if bool((one.value.isnan() | (one.value == torch.inf)).any())), "logits")
    kind = str(module.dtype).removeprefix("torch.")
    advice = "open it in float32" if module.dtype != torch.float32 else "its weights are too large for this computation"
    largest = torch.finfo(module.dtype).max
    return (
        f"This model computes values that are not finite, first at {first}, though its weights are finite: the largest "
        f"number of {kind} is {largest:.3g}; {advice}."
    )


def how_far_apart(module: Any, bridged: Bridged, name: str) -> float | None:
    """The largest difference between the plain module's tensor at a hook point and the bridge's, as a share of the
    largest value there; None where no plain module stands for the bridge's."""
    observed, plain, _ = _both(module, probe_tokens(module), bridged)
    for tensor in observed:
        if tensor.name == name and tensor.path is not None:
            twin = plain.get((tensor.path, tensor.side))
            if twin is not None and twin.numel() == tensor.value.numel():
                apart = (twin.reshape(tensor.value.shape).float() - tensor.value.float()).abs().max()
                return float(apart / tensor.value.float().abs().max())
    return None


def _both(
    module: Any, probe: Tensor, bridged: Bridged
) -> tuple[list[BridgeTensor], dict[tuple[str, str], Tensor], Tensor]:
    """The tensors of the bridge for token ids, those of the plain modules by path and side, and the logits."""
    with torch.no_grad():
        observed = bridged.observe(probe)
        plain, logits = tensors_at(module, {tensor.path for tensor in observed if tensor.path is not None}, probe)
    return observed, plain, logits


@torch.no_grad()
def tensors_at(module: Any, paths: Iterable[str], probe: Tensor) -> tuple[dict[tuple[str, str], Tensor], Tensor]:
    """The inputs and outputs of plain modules for token ids, by path and side, and the logits."""
    seen: dict[tuple[str, str], Tensor] = {}
    handles = [module.get_submodule(path).register_forward_hook(_keep(seen, path), with_kwargs=True) for path in paths]
    try:
        return seen, module(input_ids=probe, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def probe_tokens(module: Any) -> Tensor:
    """Token ids `[2, length]`; the length differs from every number of heads, so that no head axis is mistaken for
    the position axis."""
    sizes = module.config.get_text_config()
    heads = {sizes.num_attention_heads, getattr(sizes, "num_key_value_heads", None)}
    length = next(length for length in (3, 5, 7) if length not in heads)
    device = module.get_input_embeddings().weight.device
    return torch.arange(2 * length, device=device).view(2, length) % sizes.vocab_size


def _keep(into: dict[tuple[str, str], Tensor], path: str) -> Callable:
    """A hook that stores a module's input and output under its path."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        incoming = input_of(args, kwargs)
        outgoing = output[0] if isinstance(output, tuple) else output
        if incoming is not None and incoming.is_floating_point():
            into[path, "in"] = incoming
        if isinstance(outgoing, Tensor):
            into[path, "out"] = outgoing

    return hook


def _same(plain: Tensor | None, bridged: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, which in 16 bits is coarse."""
    if plain is None or plain.numel() != bridged.numel():
        return False
    coarse = 4 * torch.finfo(bridged.dtype).eps
    near, far = max(1e-4, coarse), max(1e-3, coarse)
    plain = plain.reshape(bridged.shape).to(bridged.dtype)
    return torch.allclose(plain, bridged, rtol=far, atol=near * float(bridged.abs().max()))


def _table_file(module: Any, versions: Mapping[str, str]) -> Path:
    """The file of the table for this configuration and dtype under these versions of the libraries.

    The dtype counts because which tensors are equal but for rounding differs from one to another.
    """
    table = TABLE_16_BITS if module.dtype in HALVES else TABLE
    key = hash_of([settings_of(module.config), {"type": str(module.dtype), "table": table, **versions}])
    return cache_folder() / "hook_points" / f"{key}.json"


def _read(file: Path) -> HookPoints | None:
    """The hook points in a table; None if there is no table, or it is damaged, altered or empty."""
    with contextlib.suppress(ModelError):
        saved = read_json(file, SavedTable, ModelError, "a table of hook points")
        if saved["points"] and saved["sha256"] == _sha256(saved["points"]):
            in_use(file)
            return HookPoints(HookPoint(**{**row, "shape": tuple(row["shape"])}) for row in saved["points"])
    return None


def _sha256(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
