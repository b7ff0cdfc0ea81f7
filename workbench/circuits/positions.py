"""Activation patching by layer and position, and its estimate from one backward pass.

A component's output at one place of a prompt becomes what it is in the other prompt (Wang et al. 2022, arXiv
2211.00593), a mean, zero, or what it is in another pair; causal tracing (Meng et al. 2022, arXiv 2202.05262) corrupts a
prompt by noise on the embeddings of a span.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.circuits.alignment import Alignment
from workbench.circuits.errors import TaskError
from workbench.circuits.patching import Method
from workbench.circuits.position_grid import Component, EmbeddingNoise, Grid, GridSettings, Side
from workbench.circuits.position_result import PositionPatching
from workbench.circuits.position_runs import BaseRun, Cell, can_share, run_cells
from workbench.circuits.position_scores import Metric
from workbench.core.checks import Integer, Natural, checked
from workbench.core.progress import Progress
from workbench.model.grad_mode import lasting
from workbench.model.language_model import LanguageModel


@checked(TaskError)
def patch_positions(
    model: LanguageModel,
    alignment: Alignment,
    component: Component = "stream",
    *,
    into: Side = "corrupted",
    method: Method = "patch",
    metric: Metric = "logit_difference",
    layers: Sequence[Integer] | None = None,
    features: Sequence[Natural] | None = None,
    noise: EmbeddingNoise | None = None,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> PositionPatching:
    """The effect of every component at every place of pairs of prompts, each changed alone.

    Runs of one prompt share the layers and the positions in front of what they change, where a model gives the same
    that way as in whole passes; a few of the cells are run both ways. Interventions and splices in force around the
    call are set aside.

    Args:
        model: the model.
        alignment: from `align_prompts` or `align_task`.
        component: what is changed, or a dictionary whose features are.
        into: the prompt that runs; what is put into it comes from the other one.
        method: see `METHODS`; "mean" is over the prompts that values come from and over a place's positions,
            "resample" takes the same place of another pair's prompt of the kind that runs.
        metric: what is measured at the last position.
        layers: of the rows; all by default.
        features: of the dictionary; by default the 20 that change most, times the length of what they write.
        noise: in place of the corrupted prompts, which are then not read.
        seed: of "resample".
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: called after each place of each pair; once it returns True, the work stops with a `TaskError`.

    Raises:
        TaskError: layers or features that do not fit, "resample" of a single pair, pairs without a difference of
            answers, a place that noise does not find, or work that was cancelled.
        DictionaryError: a dictionary that does not fit the model, or one of several hook points.
    """
    began = time.perf_counter()
    settings = GridSettings(component, into, method, metric, layers, features, noise, seed)
    grid = Grid(model, alignment, settings)
    values, answers = torch.zeros(len(alignment), len(grid.rows), len(alignment.places)), []
    for number in range(len(alignment)):
        for runs, score, cells in grid.samples(number):
            shared = can_share(model, runs.base, [one for column in cells for one in column])
            for place, column in enumerate(cells):
                logits = run_cells(model, runs.base, column, shared=shared)
                values[number, :, place] += score(logits).float().cpu() / grid.draws
                if not number and len(answers) < len(cells):
                    answers.append(model.token_labels(logits.argmax(-1)))
                if progress:
                    share = (number + (place + 1) / len(cells)) / len(alignment)
                    progress(share, f"pair {number + 1} of {len(alignment)}, place {place + 1} of {len(cells)}")
                if cancel is not None and cancel():
                    raise TaskError("The work was cancelled before every place was patched.")
    named = [list(row) for row in zip(*answers, strict=True)]
    return grid.result(values, method, named, time.perf_counter() - began)


@checked(TaskError)
@lasting
def attribute_positions(
    model: LanguageModel,
    alignment: Alignment,
    component: Component = "stream",
    *,
    into: Side = "corrupted",
    method: Method = "patch",
    metric: Metric = "logit_difference",
    layers: Sequence[Integer] | None = None,
    features: Sequence[Natural] | None = None,
    noise: EmbeddingNoise | None = None,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> PositionPatching:
    """`patch_positions` to first order, from one forward and one backward pass of each pair; arguments as there.

    `patch_positions(...).correlation(...)` says how near it comes.
    """
    began = time.perf_counter()
    settings = GridSettings(component, into, method, metric, layers, features, noise, seed)
    grid = Grid(model, alignment, settings, slopes=True)
    values = torch.zeros(len(alignment), len(grid.rows), len(alignment.places))
    for number in range(len(alignment)):
        for runs, score, cells in grid.samples(number):
            for place, column in enumerate(cells):
                moved = torch.stack([_estimate(runs.base, cell) for cell in column])
                values[number, :, place] += (moved + score(runs.base.logits[None])).float().cpu() / grid.draws
        if progress:
            progress((number + 1) / len(alignment), f"gradients: {number + 1} of {len(alignment)} pairs")
        if cancel is not None and cancel():
            raise TaskError("The work was cancelled before all gradients were taken.")
    return grid.result(values, "attribution", [], time.perf_counter() - began)


def _estimate(base: BaseRun, cell: Cell) -> Tensor:
    """The effect of a cell to first order."""
    total = torch.zeros((), device=base.logits.device)
    for put in cell.puts:
        at, slope = list(put.positions), base.slopes[put.hook_point]
        old = base.activations[put.hook_point][at]
        slope = slope[at] if put.head is None else slope[at, put.head]
        old = old if put.head is None else old[:, put.head]
        change = put.values.to(slope) - (0 if put.adds else old.to(slope))
        total = total + (change * slope).sum().to(total.device)
    return total
