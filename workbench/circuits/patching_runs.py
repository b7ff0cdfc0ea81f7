"""Batched runs of the same prompts under many changes, and the hook points of heads and MLPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.circuits.errors import TaskError
from workbench.interventions.parts import PARTS, check_writers
from workbench.model.edits import BoundEdit, Edit, Group, Run
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.stream import StreamPath

TOKENS = 2048
"""Tokens in a batch: enough for the full speed of matrix products, few enough for the memory."""


def head_point(model: LanguageModel, layer: int) -> str:
    """The hook point of a layer's head outputs, in front of the output projection: `[batch, pos, head, d_head]`.

    Raises:
        TaskError: the model's heads can't be read one by one.
    """
    name = f"blocks.{layer}.attn.hook_z"
    point = model.hook_points[name]
    if len(point.shape) != 2 or point.shape[0] != model.network.n_heads or point.module is None:
        raise TaskError(f"The heads of {model.name} can't be changed one by one: {name} does not have them apart.")
    return name


def mlp_points(model: LanguageModel) -> list[str]:
    """The hook points of all MLPs' outputs, which are added to the residual stream: `[batch, pos, d_model]` each.

    Raises:
        EditError: outputs that are not what is added, see `check_writers`.
    """
    check_writers(model, range(model.network.n_layers))
    return [f"blocks.{layer}.{PARTS['mlp']}" for layer in range(model.network.n_layers)]


def attention_input_points(model: LanguageModel) -> list[str]:
    """The hook points of attention's input in front of its norm, where it has one: `[batch, pos, d_model]` each.

    The tensor there is the residual stream, and an edit there does not change the stream that passes the layer.

    Raises:
        TaskError: a layer without such a hook point.
    """
    layers = range(model.network.n_layers)
    names = [[f"blocks.{layer}.{name}" for name in ("ln1.hook_in", "attn.hook_in")] for layer in layers]
    plain = {name for name, point in model.hook_points.items() if point.module is not None}
    known = [[name for name in some if name in plain] for some in names]
    streams = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    tokens = torch.arange(1, 6, device=model.device)[None] % model.network.vocab_size
    seen = capture_all(model, tokens, [*streams, *(name for some in known for name in some)])
    found = []
    for stream, some in zip(streams, known, strict=True):
        fits = [name for name in some if torch.equal(seen[name], seen[stream])]
        if not fits or model.hook_points[fits[0]].key == model.hook_points[stream].key:
            raise TaskError(
                f"No hook point of {model.name} shows what the attention at {stream} reads before its norm."
            )
        found.append(fits[0])
    return found


def head_path(model: LanguageModel, layer: int) -> StreamPath:
    """The way of a layer's heads into the residual stream.

    Raises:
        TaskError: as `head_point`.
        ModelError: as `Network.into_stream`.
    """
    return model.network.into_stream(model.hook_points[head_point(model, layer)])


def head_matrices(model: LanguageModel, layer: int) -> Tensor:
    """Each head's output matrix, `[head, d_head, d_model]`, in front of what lies between it and the stream."""
    shape = model.hook_points[head_point(model, layer)].shape
    return head_path(model, layer).matrix().to(model.device).reshape(*shape, -1)


def capture_all(model: LanguageModel, tokens: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Activations of all prompts by hook point, `[n, pos, *shape]` each, computed in batches.

    Interventions and splices in force around the call are set aside.
    """
    parts: list[dict[str, Tensor]] = []
    with uninterrupted(), torch.inference_mode():
        for some in tokens.split(max(1, TOKENS // tokens.shape[1])):
            parts.append(model.capture(some, names))
    return {name: torch.cat([part[name] for part in parts]).clone() for name in names}


def last_logits(model: LanguageModel, tokens: Tensor, edits: Sequence[BoundEdit] = ()) -> Tensor:
    """Logits at the last position of each prompt, `[n, vocab]`, under edits that don't depend on the row."""
    parts = []
    with uninterrupted(), torch.inference_mode():
        groups = [Group([*model.bind([]), *model.network.prepare(edits)])]
        for some in tokens.split(max(1, TOKENS // tokens.shape[1])):
            parts.append(model.network.run(some, Run(groups), last=1)[:, -1].float())
    return torch.cat(parts).clone()


@dataclass(frozen=True)
class Variant:
    """A change of the model: at a hook point the tensor of the prompts `rows` becomes `change(rows)(tensor)`."""

    hook_point: str
    change: Callable[[slice], Callable[[Tensor], Tensor]]


def run_variants(
    model: LanguageModel, tokens: Tensor, variants: Sequence[Variant], watch: str | None = None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Run every prompt under every variant, many of both in one batch.

    Args:
        model: the model; interventions and splices in force around the call are set aside.
        tokens: `[n, pos]`.
        variants: the changes, one in each run.
        watch: a hook point to read instead of the logits; the runs stop there.

    Yields:
        A slice of the variants, a slice of the prompts, and their logits `[variants, prompts, vocab]`, or the tensor at
        `watch`, `[variants, prompts, pos, *shape]`.
    """
    length = tokens.shape[1]
    prompts = min(len(tokens), max(1, TOKENS // length))
    at_once = max(1, TOKENS // (length * prompts))
    for start in range(0, len(tokens), prompts):
        rows = slice(start, min(start + prompts, len(tokens)))
        count = rows.stop - rows.start
        for first in range(0, len(variants), at_once):
            chosen = slice(first, min(first + at_once, len(variants)))
            some = variants[chosen]
            with uninterrupted(), torch.inference_mode():
                groups = [Group(model.bind([]))]
                for place, one in enumerate(some):
                    edit = model.network.prepare([Edit(one.hook_point, one.change(rows))])
                    groups.append(Group(edit, slice(place * count, (place + 1) * count)))
                values = _run(model, tokens[rows].repeat(len(some), 1), groups, watch)
            yield chosen, rows, values.unflatten(0, (len(some), count)).clone()


def _run(model: LanguageModel, tokens: Tensor, groups: list[Group], watch: str | None) -> Tensor:
    if watch is None:
        return model.network.run(tokens, Run(groups), last=1)[:, -1].float()
    seen: dict[str, Tensor] = {}
    key = model.hook_points[watch].key
    watching: Mapping[str, Callable[[Tensor], None]] = {key: lambda value: seen.__setitem__(key, value)}
    model.network.capture(tokens, [watch], Run(groups, watch=watching))
    return seen[key]
