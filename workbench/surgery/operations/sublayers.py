"""Skipping of layers and of sublayers, attention or MLP, and the search for those that are missed least.

Xia et al., "SWIFT" (2024), arXiv 2410.06916, skip sublayers, never those of the first and last layer; Sieberling et
al., "EvoPress" (2024), arXiv 2410.14649, search for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.interventions.weight_edits import PARTS, RemoveLayer, RemoveSublayer
from workbench.model.language_model import LanguageModel
from workbench.surgery.bake.bake import baked
from workbench.surgery.child import Child, SurgeryError
from workbench.surgery.inputs import as_model, load_calibration
from workbench.surgery.registry import Argument, Operation, register
from workbench.surgery.search.budgets import Candidate, SearchResult
from workbench.surgery.search.evopress import search
from workbench.surgery.search.fitness import DenseKL


class SublayerDropping:
    """Sublayers of a model that can be left out: see `SearchSpace`.

    Level 1 is left out, and costs are counts of sublayers.

    Args:
        model: it is not touched; a tree of modules of its own shares its weights.
        layers: that may be skipped; None for all.
        whole: skip attention and MLP of a layer together only.

    Raises:
        SurgeryError: an architecture whose sublayers have no module of their own, or an unknown layer.
    """

    def __init__(self, model: LanguageModel, *, layers: Sequence[int] | None = None, whole: bool = False):
        twin = LanguageModel(model.network.module, model.tokenizer, model.name, model.hash)
        self.module: Any = twin.network.module
        wanted = range(model.network.n_layers) if layers is None else sorted(set(layers))
        if not wanted or wanted[0] < 0 or wanted[-1] >= model.network.n_layers:
            raise SurgeryError(f"{model.name} has the layers 0 to {model.network.n_layers - 1}, not {list(wanted)}.")
        places = {(layer, part): _path(model, layer, part) for layer in wanted for part in PARTS}
        forms = _forms(self.module, list(places.values()))
        self.whole = whole
        groups = [[(layer, part) for part in PARTS] for layer in wanted] if whole else [[place] for place in places]
        self.sublayers = groups
        """Of each part: the sublayers `(layer, "attention" | "mlp")` that it leaves out."""
        self.parts: Sequence[str] = [f"layer {group[0][0]}" if whole else "{}.{}".format(*group[0]) for group in groups]
        self.costs: Sequence[Sequence[float]] = [[float(len(group)), 0.0] for group in groups]
        self._ways = [
            [(places[one], self.module.get_submodule(places[one]), _Nothing(forms[places[one]])) for one in group]
            for group in groups
        ]

    def set(self, levels: Candidate) -> None:
        """Leave out the sublayers at level 1."""
        for level, ways in zip(levels, self._ways, strict=True):
            for path, original, nothing in ways:
                self.module.set_submodule(path, nothing if level else original)

    @torch.inference_mode(False)
    def slopes(self, fitness: DenseKL, levels: Candidate, windows: Sequence[int]) -> tuple[float, Tensor]:
        """The KL and its gradient by a factor on each part's output, 0 at level 1; see `DifferentiableSpace`."""
        self.set((0,) * len(levels))
        gates = (1 - torch.tensor(levels, dtype=torch.float32)).requires_grad_()
        handles = [
            original.register_forward_hook(_scaling(gates, part))
            for part, ways in enumerate(self._ways)
            for _, original, _ in ways
        ]
        try:
            found = [fitness.gradient(self.module, window, gates) for window in windows]
        finally:
            for handle in handles:
                handle.remove()
        predictions = sum(count for _, _, count in found)
        rises = -torch.stack([gradient for _, gradient, _ in found]).sum(0)
        return sum(total for total, _, _ in found) / predictions, rises / predictions

    def edits(self, levels: Candidate) -> list[RemoveLayer | RemoveSublayer]:
        """What these levels leave out, as edits that `bake` writes into the weights."""
        out = [one for level, group in zip(levels, self.sublayers, strict=True) if level for one in group]
        gone = sorted({layer for layer, _ in out if all((layer, part) in out for part in PARTS)})
        return [*map(RemoveLayer, gone), *(RemoveSublayer(*one) for one in out if one[0] not in gone)]


def drop_sublayers(
    model: LanguageModel | Child,
    corpus: Corpus,
    share: float = 0.2,
    *,
    method: str = "evopress",
    whole: bool = False,
    passes: int = 100_000,
    tokens: int = 2048,
    context: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> tuple[Child, SearchResult]:
    """Find the sublayers that are missed least, and remove them.

    Args:
        model: left as it is.
        corpus: texts to calibrate on; of long ones its `passages`, or all tokens are of one or two.
        share: of the sublayers, or with `whole` of the layers, to be removed; rounded to a whole number.
        method: "evopress", "greedy", "ranked" or "uniform".
        whole: remove attention and MLP of a layer together only.
        passes: positions that may be run through candidates. EvoPress ends with the round in which they are used up,
            the other methods judge each candidate on as many windows as they allow, at least one; so a small number
            may be overrun. `found.token_forwards` says how many it took.
        tokens, context: of the calibration, as in `DenseKL`.
        seed: of the search.
        progress, cancel: as for every operation.

    Returns:
        A child without them, and what the search found.

    Raises:
        SurgeryError: a share that removes nothing or everything, an unknown method, passes that are not enough for a
            greedy search, or an architecture whose sublayers can't be removed.
        Cancelled: it was stopped.
    """
    _given, model = model, as_model(model)
    space = SublayerDropping(model, whole=whole)
    gone = round(share * len(space.parts)) if isinstance(share, int | float) and math.isfinite(share) else 0
    if not 0 < gone < len(space.parts):
        what = "layers" if whole else "sublayers"
        raise SurgeryError(
            f"share is a number between 0 and 1 by which some of the {len(space.parts)} {what} go and some stay, "
            f"not {share!r}."
        )
    budget = sum(most for most, _ in space.costs) * (1 - gone / len(space.parts))
    how: dict[str, Any] = {"passes": passes, "seed": seed, "progress": progress, "cancel": cancel}
    found = search(space, DenseKL(model, corpus, tokens, context=context), budget, method, **how)
    said = {"found_by": method, "calibrated_on": corpus.name, "corpus_hash": corpus.hash, "tokens": tokens}
    said |= {"context": context, "passes": found.token_forwards, "search_seed": seed, "kl_calibration": found.kl}
    return baked(model, space.edits(found.levels), said), found


class _Nothing(nn.Module):
    """Adds nothing to the stream, in the form of what it stands for.

    Args:
        form: width of the tensor, and how many values the module gives beside it; None where it gives it alone.
    """

    def __init__(self, form: tuple[int, int | None]):
        super().__init__()
        self.width, self.extra = form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        zero = x.new_zeros(*x.shape[:-1], self.width)
        return zero if self.extra is None else (zero, *(None,) * self.extra)


def _scaling(gates: Tensor, part: int) -> Any:
    """A hook that multiplies what a module writes by the number of its part."""

    def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Any:
        if isinstance(output, tuple):
            return (output[0] * gates[part], *output[1:])
        return output * gates[part]

    return hook


def _path(model: LanguageModel, layer: int, part: str) -> str:
    """Where a sublayer is among the plain modules."""
    point = model.hook_points[f"blocks.{layer}.{PARTS[part]}"]
    if not point.module or point.side != "out":
        raise SurgeryError(
            f"The {part} of layer {layer} is not a module of its own in {model.name}; it can't be skipped."
        )
    return point.module


def _forms(module: Any, paths: Sequence[str]) -> dict[str, tuple[int, int | None]]:
    """Width of each module's tensor, and how many values there are beside it; None where it gives the tensor alone."""
    forms: dict[str, tuple[int, int | None]] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            made = output[0] if isinstance(output, tuple) else output
            forms[path] = made.shape[-1], len(output) - 1 if isinstance(output, tuple) else None

        return hook

    handles = [module.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    with torch.inference_mode():
        module(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    for handle in handles:
        handle.remove()
    return forms


def _run(model: LanguageModel, *, corpus: str, tokens: int, **how: Any) -> Child:
    return drop_sublayers(model, load_calibration(corpus), tokens=tokens, **how)[0]


register(
    Operation(
        "drop_sublayers",
        "Skip sublayers",
        "Removes the attention and MLP sublayers that are missed least, found by a search.",
        (
            Argument("share", "Share of sublayers", 0.2, low=0.0, high=1.0),
            Argument("method", "Search", "evopress", "choice", choices=("evopress", "greedy", "ranked", "uniform")),
            Argument("whole", "Whole layers only", False, "yes"),
            Argument(
                "passes",
                "Positions to run candidates on",
                20_000,
                "whole",
                low=1,
                help="More find better sets, and take longer. A greedy search needs many: it says how many if these "
                "are not enough.",
            ),
            Argument("corpus", "Texts to calibrate on", "stories", "text"),
            Argument("tokens", "Tokens to calibrate on", 1024, "whole", low=1),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
    )
)
