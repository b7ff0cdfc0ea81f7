"""Runs of one prompt under many changes at single layers and positions, which share what comes before their change.

A change at a layer and a position leaves all earlier layers and all earlier positions as they are. The earlier
positions' keys and values come from one run without changes. The layers share one pass: the prompt runs as one row, and
each change joins the batch as a further row in front of its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from workbench.model.edits import BoundEdit, Edit, Group, Run, current_run
from workbench.model.grad_mode import taking_gradients
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel

TOKENS = 2048
"""Tokens in a batch, at most."""
WITNESSES = 3
"""Changes of a prompt whose shared runs are compared with whole passes."""
BaseEdits = Callable[[int], Sequence[Edit]]
"""From the first position that a pass computes to the edits under which the unchanged prompt runs."""


@dataclass(frozen=True)
class Put:
    """What becomes of a tensor at some positions."""

    hook_point: str
    positions: tuple[int, ...]
    """In rising order."""
    values: Tensor
    """`[positions, *shape]`, or `[positions, d_head]` of one head."""
    head: int | None = None
    adds: bool = False
    """Whether the values are added, and not put in place."""

    def write(self, row: Tensor, start: int) -> None:
        """Write into the tensor of one row, `[pos, *shape]`, whose first position is `start`."""
        at = [position - start for position in self.positions]
        part = row if self.head is None else row[:, self.head]
        values = self.values.to(row)
        part[at] = part[at] + values if self.adds else values


@dataclass(frozen=True)
class Cell:
    """One change: it acts at a layer and behind it, at a position and behind it."""

    layer: int
    puts: tuple[Put, ...]

    @property
    def start(self) -> int:
        """The first position that changes."""
        return min(put.positions[0] for put in self.puts)


@dataclass(frozen=True)
class BaseRun:
    """A prompt's run without changes."""

    tokens: Tensor
    """`[pos]`."""
    edits: BaseEdits
    logits: Tensor
    """At the last position, `[vocab]` in float32."""
    activations: dict[str, Tensor]
    """By hook point, `[pos, *shape]`."""
    past: DynamicCache | None = None
    """Keys and values of all positions; None where the model has no plain ones, and in a run for gradients."""
    slopes: dict[str, Tensor] = field(default_factory=dict)
    """Gradients of a metric by the activations, `[pos, *shape]` in float32; empty unless they were taken."""


def no_edits(start: int) -> Sequence[Edit]:
    """No edits."""
    return ()


def stream_point(layer: int) -> str:
    """The hook point of the stream that enters a layer."""
    return f"blocks.{layer}.hook_resid_pre"


def run_base(model: LanguageModel, tokens: Tensor, names: Sequence[str] = (), edits: BaseEdits = no_edits) -> BaseRun:
    """The run of a prompt `[pos]`, with activations at hook points and its keys and values."""
    seen: dict[str, Tensor] = {}
    keys = {name: model.hook_points[name].key for name in names}
    watch: Mapping[str, Callable[[Tensor], None]] = {
        key: lambda value, key=key: seen.__setitem__(key, value[0]) for key in keys.values()
    }
    with uninterrupted(), torch.inference_mode():
        run = Run([Group([*model.bind([]), *model.network.prepare(edits(0))])], watch=watch)
        past = _new_past(model)
        logits = model.network.run(tokens[None], run, cache=past, last=1)[0, -1].float()
    plain = past is not None and all(
        type(layer) is DynamicLayer and layer.is_initialized and layer.keys.shape[-2] == len(tokens)  # type: ignore[union-attr]
        for layer in past.layers
    )
    # copies outside of inference mode, which gradients can be taken with
    activations = {name: seen[key].clone() for name, key in keys.items()}
    return BaseRun(tokens, edits, logits.clone(), activations, past if plain else None)


def run_with_slopes(
    model: LanguageModel,
    tokens: Tensor,
    names: Sequence[str],
    edits: BaseEdits,
    score: Callable[[Tensor], Callable[[Tensor], Tensor]],
) -> BaseRun:
    """The run of a prompt `[pos]` with activations at hook points, and the gradients of a metric by them.

    Args:
        score: from the run's logits `[vocab]` to the metric, which maps logits `[n, vocab]` to `[n]`.
    """
    activations: dict[str, Tensor] = {}
    with uninterrupted(), taking_gradients():
        shapes = {name: (1, len(tokens), *model.hook_points[name].shape) for name in names}
        leaves = {name: torch.zeros(shape, device=model.device, requires_grad=True) for name, shape in shapes.items()}

        def add(name: str) -> Callable[[Tensor], Tensor]:
            def change(x: Tensor) -> Tensor:
                activations[name] = x[0].detach().to(model.device)
                return x + leaves[name].to(x.device, x.dtype)

            return change

        changes = [*model.bind([]), *edits(0), *(Edit(name, add(name)) for name in names)]
        logits = model.run(tokens[None].clone(), changes, last=1)[0, -1].float()
        metric = score(logits.detach())(logits[None]).sum()
        found = torch.autograd.grad(metric, [leaves[name] for name in names])
    slopes = {name: one[0].detach() for name, one in zip(names, found, strict=True)}
    return BaseRun(tokens, edits, logits.detach(), activations, slopes=slopes)


def _new_past(model: LanguageModel) -> DynamicCache | None:
    """An empty cache that keeps all positions of all layers; None for a model that has other states than keys."""
    kept = DynamicCache(config=model.network.config).layers
    if any(not isinstance(layer, DynamicLayer) for layer in kept) or not model.network.causal:
        return None
    return DynamicCache()


def run_cells(model: LanguageModel, base: BaseRun, cells: Sequence[Cell], *, shared: bool) -> Tensor:
    """Logits at the last position under each change alone: `[cells, vocab]` in float32, on the device of the model.

    Args:
        model: the model; interventions and splices in force around the call are set aside.
        base: the run that the cells change.
        cells: the changes.
        shared: whether runs share layers and positions, see `can_share`; else each is a row of a whole pass.
    """
    if not shared:
        return _whole_passes(model, base, cells)
    order = sorted(range(len(cells)), key=lambda n: (cells[n].start, cells[n].layer))
    found: dict[int, Tensor] = {}
    first = 0
    while first < len(order):
        start = cells[order[first]].start
        at_once = max(1, TOKENS // (len(base.tokens) - start) - 1)
        chosen = [n for n in order[first : first + at_once] if cells[n].start == start]
        logits = _growing_pass(model, base, [cells[n] for n in chosen], start)
        found |= dict(zip(chosen, logits[1:], strict=True))
        first += len(chosen)
    return torch.stack([found[n] for n in range(len(cells))])


def can_share(model: LanguageModel, base: BaseRun, cells: Sequence[Cell]) -> bool:
    """Whether shared runs of a few of the cells give what whole passes give."""
    if base.past is None or not cells:
        return False
    order = sorted(range(len(cells)), key=lambda n: (cells[n].layer, cells[n].start))
    few = [cells[order[n]] for n in sorted({0, len(order) // 2, len(order) - 1})][:WITNESSES]
    try:
        shared = run_cells(model, base, few, shared=True)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):  # of modules made for one size of batch
        return False
    whole = _whole_passes(model, base, few)
    exact = model.dtype == torch.float32
    allowed = 1e-5 if exact else 16 * torch.finfo(model.dtype).eps
    off = (shared.log_softmax(-1) - whole.log_softmax(-1)).abs().max()
    return bool(off <= allowed * max(1.0, float(whole.abs().max())))


def _whole_passes(model: LanguageModel, base: BaseRun, cells: Sequence[Cell]) -> Tensor:
    """Logits of whole passes, a row for each cell."""
    at_once = max(1, TOKENS // len(base.tokens))
    parts = []
    for first in range(0, len(cells), at_once):
        some = cells[first : first + at_once]
        with uninterrupted(), torch.inference_mode():
            edits = [*base.edits(0), *_puts(model, some, 0, first_row=0)]
            run = Run([Group([*model.bind([]), *model.network.prepare(edits)])])
            rows = base.tokens[None].expand(len(some), -1)
            parts.append(model.network.run(rows, run, last=1)[:, -1].float())
    return torch.cat(parts)


def _growing_pass(model: LanguageModel, base: BaseRun, cells: Sequence[Cell], start: int) -> Tensor:
    """Logits of one pass over the positions from `start` on, which cells of rising layers join: the base's row first.

    Returns:
        `[1 + cells, vocab]`.
    """
    assert base.past is not None
    counts: dict[int, int] = {}
    for cell in cells:
        counts[cell.layer] = counts.get(cell.layer, 0) + 1
    joins = [Edit(stream_point(layer), _join(count)) for layer, count in counts.items()]
    with uninterrupted(), torch.inference_mode():
        edits = [*base.edits(start), *joins, *_puts(model, cells, start, first_row=1)]
        run = Run([Group([*model.bind([]), *model.network.prepare(edits)])])
        past = _shared_past(base.past, start) if start else None
        return model.network.run(base.tokens[None, start:], run, cache=past, last=1)[:, -1].float()


def _join(count: int) -> Callable[[Tensor], Tensor]:
    def grow(x: Tensor) -> Tensor:
        run = current_run()
        assert run is not None
        run.enter(run.positions[:1].expand(len(x) + count, -1))
        return torch.cat([x, x[:1].expand(count, *x.shape[1:])])

    return grow


def _puts(model: LanguageModel, cells: Sequence[Cell], start: int, first_row: int) -> list[BoundEdit]:
    """An edit for each hook point, which writes what every cell puts there into the cell's row."""
    at: dict[str, list[tuple[int, Put]]] = {}
    for row, cell in enumerate(cells, first_row):
        for put in cell.puts:
            at.setdefault(put.hook_point, []).append((row, put))

    def write(puts: Sequence[tuple[int, Put]]) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            new = x.clone()
            for row, put in puts:
                put.write(new[row], start)
            return new

        return change

    return [Edit(name, write(puts)) for name, puts in at.items()]


class _PastLayer(DynamicLayer):
    """Keys and values of one row, which every row of a batch has in front of its own."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **how: object) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        rows = len(key_states)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], 2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], 2),
        )


def _shared_past(past: DynamicCache, length: int) -> DynamicCache:
    """The first positions of a cache of one row, for batches of any size."""
    cache = DynamicCache()
    cache.layers = [_PastLayer(one.keys[:, :, :length], one.values[:, :, :length]) for one in past.layers]  # type: ignore[index]
    return cache
