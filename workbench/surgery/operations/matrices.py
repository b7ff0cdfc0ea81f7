"""The matrices of a model's layers: their paths, their inputs, and their levels in a search."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel, uninterrupted
from workbench.model.modules import is_conv1d
from workbench.surgery.child_building import SurgeryError, layers_path
from workbench.surgery.search.budgets import Candidate


def matrices(model: LanguageModel) -> list[str]:
    """Paths of all linear modules of the layers, in the order of the model, such as `model.layers.3.mlp.down_proj`.

    Raises:
        SurgeryError: an architecture without layers or without linear modules in them.
    """
    prefix = layers_path(model)
    paths = [
        path
        for path, module in model.network.module.named_modules()
        if path.startswith(f"{prefix}.") and (isinstance(module, nn.Linear) or is_conv1d(module))
    ]
    if not paths:
        raise SurgeryError(f"The layers of {model.name} hold no linear module.")
    return paths


def out_in(module: nn.Module) -> Tensor:
    """A module's weights as `[out, in]`; GPT-2 stores `[in, out]`."""
    weight: Tensor = module.weight.detach()  # type: ignore[assignment]
    return weight.T if is_conv1d(module) else weight


def as_stored(module: nn.Module, weight: Tensor) -> Tensor:
    """Weights `[out, in]` as the module stores them; the inverse of `out_in`."""
    return weight.T.contiguous() if is_conv1d(module) else weight.contiguous()


def input_norms(
    model: LanguageModel, corpus: Corpus, tokens: int = 4096, *, context: int = 256, batch: int = 4, seed: int = 0
) -> dict[str, Tensor]:
    """Length of each input of each matrix over tokens of a corpus, `[in]` by path: sqrt of the sum of squares.

    Special tokens and padding do not count.

    Raises:
        CorpusError: a setting that can't be used.
    """
    twin: Any = own_tree(model)
    sums: dict[str, Tensor] = {}
    content = torch.zeros(0)

    def watch(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple) -> None:
            squares = args[0][content].double().square().sum(0)
            sums[path] = sums[path] + squares if path in sums else squares

        return hook

    for path in matrices(model):
        twin.get_submodule(path).register_forward_pre_hook(watch(path))
    with uninterrupted(), torch.inference_mode():
        for some in corpus.batches(model, context, batch, tokens, seed):
            content = some.content
            twin(input_ids=some.tokens, use_cache=False, logits_to_keep=1)
    return {path: total.sqrt().float() for path, total in sums.items()}


def own_tree(model: LanguageModel) -> Any:
    """A tree of plain modules that shares the model's weights and may be changed."""
    return LanguageModel(model.network.module, model.tokenizer, model.name, model.hash).network.module


class MatrixLevels:
    """A `SearchSpace` of the matrices of a model.

    Only matrices above level 0 take memory of their own.

    Args:
        model: it stays as it is.
        levels: for each level above 0 a function of path and matrix `[out, in]` that returns the changed matrix.
        cost: of each weight at each level, level 0 first, falling.
        within: paths of the matrices; None for all.
    """

    def __init__(
        self,
        model: LanguageModel,
        levels: Sequence[Callable[[str, Tensor], Tensor]],
        cost: Sequence[float],
        within: Sequence[str] | None = None,
    ):
        if len(cost) != len(levels) + 1 or any(more <= less for more, less in itertools.pairwise(cost)):
            raise SurgeryError(f"The costs of the levels must fall from level to level; these are {list(cost)}.")
        self.module: Any = own_tree(model)
        self.parts: Sequence[str] = matrices(model) if within is None else list(within)
        self._dense = {path: self.module.get_submodule(path).weight for path in self.parts}
        self.costs: Sequence[Sequence[float]] = [
            [one * self._dense[path].numel() for one in cost] for path in self.parts
        ]
        self._change, self._now = levels, [0] * len(self.parts)
        self._own: dict[str, Tensor] = {}

    def set(self, levels: Candidate) -> None:
        """Apply the levels; only matrices whose level changes are computed."""
        for place, (path, level) in enumerate(zip(self.parts, levels, strict=True)):
            if level != self._now[place]:
                module = self.module.get_submodule(path)
                module.weight = self._dense[path]
                if level:
                    changed = as_stored(module, self._change[level - 1](path, out_in(module)))
                    # written to where the last level was, since memory that is freed in pieces is not given back
                    own = self._own.setdefault(path, torch.empty_like(changed)).copy_(changed)
                    module.weight = nn.Parameter(own, requires_grad=False)
                self._now[place] = level

    def tensors(self, levels: Candidate) -> dict[str, Tensor]:
        """The matrices that these levels change, by the name of the parameter, in memory of their own."""
        self.set(levels)
        self._own = {}
        return {
            f"{path}.weight": self.module.get_submodule(path).weight.detach()
            for path, level in zip(self.parts, levels, strict=True)
            if level
        }


def per_matrix(model: LanguageModel, value: Any, others: Mapping[str, Any] | None) -> dict[str, Any]:
    """A setting of each matrix, by path: the one in `others`, else `value`.

    Raises:
        SurgeryError: a path that is no matrix of the model.
    """
    known = matrices(model)
    for path in others or {}:
        if path not in known:
            raise SurgeryError(f"{model.name} has no matrix {path!r}; there are {known[0]} … {known[-1]}.")
    return {path: (others or {}).get(path, value) for path in known}
