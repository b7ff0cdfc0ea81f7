"""Dropping of layers and of sublayers, attention or MLP, and the search for those whose loss costs least.

Xia et al., "SWIFT" (2024), arXiv 2410.06916, skip sublayers, except those of the first and last layer; Sieberling
et al., "EvoPress" (2024), arXiv 2410.14649, search for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from workbench.core.checks import Integer, Natural, Number, Positive, checked
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.interventions.kinds import RemoveLayer, RemoveSublayer
from workbench.interventions.parts import PARTS, check_writers
from workbench.model.language_model import LanguageModel
from workbench.surgery.bake.bake import baked
from workbench.surgery.child import Child
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.inputs import as_model, load_calibration
from workbench.surgery.registry import Argument, Operation, register
from workbench.surgery.search.budgets import Candidate, Fitness, SearchResult
from workbench.surgery.search.evopress import Method, search
from workbench.surgery.search.fitness import DenseKL


class SublayerDropping:
    """A `DifferentiableSpace` of the sublayers of a model.

    Level 1 drops a part; costs are counts of sublayers.

    Args:
        model: it stays as it is; the space has a tree of modules of its own that shares its weights.
        layers: the layers whose sublayers may be dropped; None for all.
        whole: drop attention and MLP of a layer together only.

    Raises:
        SurgeryError: an architecture whose sublayers have no module of their own, or an unknown layer.
    """

    def __init__(self, model: LanguageModel, *, layers: Sequence[int] | None = None, whole: bool = False):
        twin = LanguageModel(model.network.module, model.tokenizer, model.name, model.weights_hash)
        self.module: Any = twin.network.module
        wanted = range(model.network.n_layers) if layers is None else sorted(set(layers))
        if not wanted or wanted[0] < 0 or wanted[-1] >= model.network.n_layers:
            raise SurgeryError(f"{model.name} has the layers 0 to {model.network.n_layers - 1}, not {list(wanted)}.")
        places = {(layer, part): _path(model, layer, part) for layer in wanted for part in PARTS}
        forms = _forms(self.module, list(places.values()))
        self.whole = whole
        groups = [[(layer, part) for part in PARTS] for layer in wanted] if whole else [[place] for place in places]
        self.sublayers = groups
        """Of each part: its sublayers `(layer, "attention" | "mlp")`."""
        self.parts: Sequence[str] = [f"layer {group[0][0]}" if whole else "{}.{}".format(*group[0]) for group in groups]
        self.costs: Sequence[Sequence[float]] = [[float(len(group)), 0.0] for group in groups]
        self._ways = [
            [(places[one], self.module.get_submodule(places[one]), _Nothing(forms[places[one]])) for one in group]
            for group in groups
        ]

    def set(self, levels: Candidate) -> None:
        """Drop the parts at level 1, and restore the others."""
        for level, ways in zip(levels, self._ways, strict=True):
            for path, original, nothing in ways:
                self.module.set_submodule(path, nothing if level else original)

    @torch.inference_mode(False)
    def slopes(self, fitness: Fitness, levels: Candidate, windows: Sequence[int]) -> tuple[float, Tensor]:
        """The KL and its gradient by a factor on each part's output, 0 at level 1; see `DifferentiableSpace`."""
        self.set((0,) * len(levels))
        gates = (1 - torch.tensor(levels, dtype=torch.float32)).requires_grad_()
        handles = [
            original.register_forward_hook(_scaling(gates, part))
            for part, ways in enumerate(self._ways)
            for _, original, _ in ways
        ]
        try:
            runs = [fitness.gradient(self.module, window, gates) for window in windows]
        finally:
            for handle in handles:
                handle.remove()
        predictions = sum(count for _, _, count in runs)
        rises = -torch.stack([gradient for _, gradient, _ in runs]).sum(0)
        return sum(total for total, _, _ in runs) / predictions, rises / predictions

    def edits(self, levels: Candidate) -> list[RemoveLayer | RemoveSublayer]:
        """The edits by which `bake` drops the parts at level 1."""
        out = [one for level, group in zip(levels, self.sublayers, strict=True) if level for one in group]
        gone = sorted({layer for layer, _ in out if all((layer, part) in out for part in PARTS)})
        return [*map(RemoveLayer, gone), *(RemoveSublayer(*one) for one in out if one[0] not in gone)]


@checked(SurgeryError)
def drop_sublayers(
    model: LanguageModel | Child,
    corpus: Corpus,
    share: Number = 0.2,
    *,
    method: Method = "evopress",
    whole: bool = False,
    passes: Positive = 100_000,
    tokens: Positive = 2048,
    context: Integer = 64,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> tuple[Child, SearchResult]:
    """A child without the sublayers whose loss costs least, and the result of the search for them.

    Args:
        model: a model or a child; it stays as it is.
        corpus: texts to calibrate on; take the `passages` of long texts, or all tokens come from one or two.
        share: of the sublayers, or with `whole` of the layers, that are dropped; rounded to a whole number.
        method: "evopress", "greedy", "ranked" or "uniform".
        whole: drop attention and MLP of a layer together only.
        passes: positions that may be run through candidates. EvoPress ends with the round that uses them up; the other
            methods run each candidate on as many windows as they allow, at least one, and may exceed a small number.
            `SearchResult.token_forwards` is the number used.
        tokens, context: of the calibration, as in `DenseKL`.
        seed: of the search.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: a share that drops nothing or everything, another argument out of range, passes that are not
            enough for a greedy search, or an architecture whose sublayers can't be dropped.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    space = SublayerDropping(model, whole=whole)
    gone = round(share * len(space.parts))
    if not 0 < gone < len(space.parts):
        what = "layers" if whole else "sublayers"
        raise SurgeryError(
            f"share is a number between 0 and 1 by which some of the {len(space.parts)} {what} go and some stay, "
            f"not {share!r}."
        )
    budget = sum(most for most, _ in space.costs) * (1 - gone / len(space.parts))
    how: dict[str, Any] = {"passes": passes, "seed": seed, "progress": progress, "cancel": cancel}
    result = search(space, DenseKL(model, corpus, tokens, context=context), budget, method, **how)
    record = {"found_by": method, "calibrated_on": corpus.name, "corpus_hash": corpus.hash, "tokens": tokens}
    record |= {"context": context, "passes": result.token_forwards, "search_seed": seed, "kl_calibration": result.kl}
    return baked(model, space.edits(result.levels), record), result


class _Nothing(nn.Module):
    """Writes zeros to the stream, in the form of the module that it replaces.

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
    """A hook that multiplies the output of a module by the factor of its part."""

    def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Any:
        if isinstance(output, tuple):
            return (output[0] * gates[part], *output[1:])
        return output * gates[part]

    return hook


def _path(model: LanguageModel, layer: int, part: str) -> str:
    """The path of a sublayer among the plain modules."""
    check_writers(model, [layer])  # a module that gives back the stream itself must not become zeros
    point = model.hook_points[f"blocks.{layer}.{PARTS[part]}"]
    if not point.module or point.side != "out":
        raise SurgeryError(
            f"The {part} of layer {layer} is not a module of its own in {model.name}; it can't be dropped."
        )
    return point.module


def _forms(module: Any, paths: Sequence[str]) -> dict[str, tuple[int, int | None]]:
    """The width of each module's output, and the number of values beside it; None where the output is a tensor."""
    forms: dict[str, tuple[int, int | None]] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            forms[path] = tensor.shape[-1], len(output) - 1 if isinstance(output, tuple) else None

        return hook

    handles = [module.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    with torch.inference_mode():
        module(input_ids=torch.zeros(1, 2, dtype=torch.long, device=module.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return forms


def _run(model: LanguageModel, *, corpus: str, tokens: int, **how: Any) -> Child:
    return drop_sublayers(model, load_calibration(corpus), tokens=tokens, **how)[0]


register(
    Operation(
        "drop_sublayers",
        "Drop sublayers",
        "Removes the attention and MLP sublayers whose loss costs least; a search chooses them.",
        (
            Argument("share", "Share of sublayers", 0.2, low=0.0, high=1.0),
            Argument("method", "Search", "evopress", "choice", choices=get_args(Method)),
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
        neutral="a sublayer has to go",
    )
)
