"""The effect of one head on a task through another, by brute force.

Path patching of the direct edge (Goldowsky-Dill et al. 2023, arXiv 2304.05969): the later head's queries, keys and
values see the earlier head's output on the corrupted prompt and everything else unchanged; for the rest of the model
only the later head's output changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.circuits.errors import TaskError
from workbench.circuits.patching import head_variant
from workbench.circuits.patching_runs import (
    Variant,
    attention_input_points,
    capture_all,
    head_matrices,
    head_path,
    head_point,
    last_logits,
    run_variants,
)
from workbench.circuits.tasks import Task, encode_task, log_odds
from workbench.core.checks import Integer, checked
from workbench.core.precision import in_float64
from workbench.core.progress import Progress
from workbench.model.language_model import LanguageModel

Edge = tuple[Integer, Integer, Integer, Integer]
"""Layer and head that write, layer and head that read."""


@checked(TaskError)
def patch_edges(
    model: LanguageModel,
    task: Task,
    edges: Sequence[Edge],
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Tensor:
    """The loss of `log P(right) - log P(wrong)`, in nats, where an edge is patched: `[edges]`, mean over the prompts.

    Interventions and splices in force around the call are set aside.

    Args:
        model: the model.
        task: the prompts.
        edges: `(layer, head, later layer, head)`.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: called after each layer; once it returns True, the work stops with a `TaskError`.

    Raises:
        TaskError: an edge that does not lead to a later layer, a task that does not fit the model, or work that was
            cancelled.
    """
    network = model.network
    for source, head, target, reader in edges:
        inside = 0 <= source < target < network.n_layers and min(head, reader) >= 0
        if not inside or max(head, reader) >= network.n_heads:
            raise TaskError(f"An edge goes from a head to one of a later layer, not {(source, head, target, reader)}.")
    encoded = encode_task(model, task)
    plain = log_odds(last_logits(model, encoded.tokens), encoded)
    points = [head_point(model, layer) for layer in range(network.n_layers)]
    clean, corrupted = (capture_all(model, tokens, points) for tokens in (encoded.tokens, encoded.corrupted))
    inputs = attention_input_points(model)
    lost = torch.zeros(len(edges), dtype=torch.float64)
    done = 0
    for target in sorted({edge[2] for edge in edges}):
        mine = [number for number, edge in enumerate(edges) if edge[2] == target]
        sources = sorted({edges[number][:2] for number in mine})
        moved = []
        for source, head in sources:
            z = clean[points[source]], corrupted[points[source]]  # [n, pos, head, d_head]
            moved.append(_added(inputs[target], _change(model, source, head, *z)))
        outputs = torch.empty(
            len(sources), *clean[points[target]].shape, device=model.device
        )  # [sources, n, pos, head, d_head]
        for chosen, rows, z in run_variants(model, encoded.tokens, moved, points[target]):
            outputs[chosen, rows] = z
        place = {source: number for number, source in enumerate(sources)}
        variants = [
            head_variant(points[target], edges[number][3], outputs[place[edges[number][:2]]]) for number in mine
        ]
        for chosen, rows, logits in run_variants(model, encoded.tokens, variants):
            changed = torch.stack([log_odds(one, encoded.rows(rows)) for one in logits])
            lost[torch.tensor(mine)[chosen]] += in_float64(plain[rows] - changed).sum(1).cpu()
        done += len(mine)
        if progress:
            progress(done / len(edges), f"edges: {done:,} of {len(edges):,}")
        if cancel is not None and cancel():
            raise TaskError("The work was cancelled before every edge was patched.")
    return (lost / len(task)).float()


def _change(model: LanguageModel, layer: int, head: int, clean: Tensor, corrupted: Tensor) -> Tensor:
    """The change of the residual stream, `[n, pos, d_model]`, where one head's output is the corrupted prompt's."""
    path = head_path(model, layer)
    change = (corrupted - clean)[:, :, head].float() @ head_matrices(model, layer)[head]
    return path.changed(clean.flatten(2), change)


def _added(point: str, change: Tensor) -> Variant:
    """A variant that adds `change` `[n, pos, d_model]` at a hook point."""
    return Variant(point, lambda rows: lambda x: x + change[rows].to(x))
