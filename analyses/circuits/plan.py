"""Settings of the study of circuits, and the paper's figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.circuits import greater_than_model, induction_model

PUBLISHED: dict[str, dict[str, float | None]] = {
    "indirect object": {"discrete SAE": 0.853, "ten trials": 0.868, "ACDC": 0.635, "HISP": 0.699, "SP": 0.681},
    "greater-than": {"discrete SAE": 0.832, "ten trials": 0.855, "ACDC": 0.832, "HISP": 0.637, "SP": 0.574},
    "docstring": {"discrete SAE": 0.915, "ten trials": 0.869, "ACDC": 0.888, "HISP": 0.885, "SP": 0.672},
}
"""Node ROC AUC in the paper, on GPT-2 small and, for docstrings, on a model of four layers of attention."""
L1 = {"docstring": 0.05}
"""The authors' weight of the sparsity penalty, where it is not 0.02."""
HANDMADE: dict[str, Callable[..., Any]] = {"induction": induction_model, "greater-than": greater_than_model}


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    truth: int = 10
    """Pairs of prompts on which every head is patched."""
    ablated: int = 5
    """Pairs for the other ablations of every head."""
    counts: tuple[int, ...] = (5, 10, 50)
    """Numbers of pairs that the methods receive."""
    seeds: int = 5
    """Seeds of the models set by hand, of their prompts and of the methods."""
    trials: int = 3
    """Trials of the methods on the default model, each with its own prompts and seed; the truth uses others."""
    share: float = 0.1
    """Share of heads, and of measured edges, that form the circuit."""
    edges: int = 320
    """Pairs of heads whose edge is patched: half of them within the circuit, half drawn from all."""
    edge_prompts: int = 4
    """Pairs of prompts on which edges are patched."""
    paper: int = 250
    """Pairs of prompts of the paper's protocol: codes are counted on all, ten prompts are trained on. 0 omits it."""
    evaluated: int = 50
    """Pairs of prompts on which the model's own performance at the task is measured."""
    seed: int = 0


SMALLEST = Plan(
    truth=2, ablated=2, counts=(10,), seeds=1, trials=1, edges=4, edge_prompts=1, paper=0, evaluated=4
)  # fmt: skip
"""Checks that the study runs; `judged_methods` needs the trials with 10 pairs."""
