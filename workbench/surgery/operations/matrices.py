"""The matrices of a model's layers: their paths, their inputs, and their levels in a search."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.precision import in_float64
from workbench.corpus import Corpus
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.modules import is_conv1d
from workbench.surgery.child_building import SurgeryError, layers_path
from workbench.surgery.operations.weights import Matrix, all_matrices
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
    """Length of each input of each linear module over tokens of a corpus, `[in]` by path: sqrt of the sum of squares.

    Special tokens and padding do not count.

    Raises:
        CorpusError: a setting that can't be used, or texts without a token to measure on.
        SurgeryError: a module that sees its inputs in another order than `[batch, pos, width]`, or only some of them.
    """
    corpus.check_tokens(model, context)
    twin: Any = own_tree(model)
    sums: dict[str, Tensor] = {}
    content = torch.zeros(0)

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: tuple) -> None:
            squares = in_float64(inputs_by_token(args[0], content.shape, path)[content]).square().sum(0)
            sums[path] = sums[path] + squares if path in sums else squares

        return hook

    paths = matrices(model)
    for path in paths:
        twin.get_submodule(path).register_forward_pre_hook(watch(path))
    with uninterrupted(), torch.inference_mode():
        for some in corpus.batches(model, context, batch, tokens, seed):
            content = some.content
            twin(input_ids=some.tokens, use_cache=False, logits_to_keep=1)
    unseen = [path for path in paths if path not in sums]
    if unseen:
        raise SurgeryError(f"{unseen[0]} is not called as a module, so its inputs can't be measured.")
    return {path: total.sqrt().float().to(model.device) for path, total in sums.items()}


def inputs_by_token(x: Tensor, shape: Sequence[int], path: str) -> Tensor:
    """A module's input as `[batch, pos, width]`, from that form, from `[batch * pos, width]`, or with axes of size 1.

    Args:
        x: the input.
        shape: batch and pos of the tokens.
        path: of the module, for the error.

    Raises:
        SurgeryError: an input of another form, such as that of a module that sees only some tokens.
    """
    rest = [size for size in x.shape[:-1] if size != 1]
    if rest not in ([size for size in shape if size != 1], [shape[0] * shape[1]]):
        raise SurgeryError(
            f"The input of {path} is {list(x.shape)} where the text is {list(shape)}, so it can't be measured by "
            'token; use score="magnitude".'
        )
    return x.reshape(*shape, x.shape[-1])


def own_tree(model: LanguageModel) -> Any:
    """A tree of plain modules that shares the model's weights and may be changed."""
    return LanguageModel(model.network.module, model.tokenizer, model.name, model.weights_hash).network.module


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
        known = all_matrices(model)
        self.matrices = known if within is None else {path: known[path] for path in within}
        self.parts: Sequence[str] = list(self.matrices)
        names = dict.fromkeys(one.name for one in self.matrices.values())
        self._dense = {name: self.module.get_parameter(name) for name in names}
        sizes = [one.of(self._dense).numel() for one in self.matrices.values()]
        self.costs: Sequence[Sequence[float]] = [[one * size for one in cost] for size in sizes]
        self._change, self._now = levels, [0] * len(self.parts)
        self._own: dict[str, Tensor] = {}

    def set(self, levels: Candidate) -> None:
        """Apply the levels; only matrices whose level changes are computed."""
        touched = set[str]()
        for place, (path, level) in enumerate(zip(self.parts, levels, strict=True)):
            if level != self._now[place]:
                one = self.matrices[path]
                dense = one.of(self._dense).detach()
                self._put(one, self._change[level - 1](path, dense) if level else dense)
                self._now[place] = level
                touched.add(one.name)
        changed = {one.name for one, level in zip(self.matrices.values(), self._now, strict=True) if level}
        for name in touched:
            owner, _, leaf = name.rpartition(".")
            value = nn.Parameter(self._own[name], requires_grad=False) if name in changed else self._dense[name]
            setattr(self.module.get_submodule(owner), leaf, value)

    def _put(self, one: Matrix, matrix: Tensor) -> None:
        """Write a matrix to where its last level was, since memory that is freed in pieces is not given back."""
        if one.name not in self._own:
            self._own[one.name] = self._dense[one.name].detach().clone()
        one.of(self._own).copy_(matrix)

    def tensors(self, levels: Candidate) -> dict[str, Tensor]:
        """The parameters that these levels change, by name, in memory of their own."""
        self.set(levels)
        self._own = {}
        changed = {self.matrices[path].name for path, level in zip(self.parts, levels, strict=True) if level}
        return {name: self.module.get_parameter(name).detach() for name in self._dense if name in changed}


def per_matrix(
    model: LanguageModel, known: Sequence[str], value: Any, others: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A setting of each matrix, by path: the one in `others`, else `value`.

    Raises:
        SurgeryError: a path that is no matrix of the model.
    """
    for path in others or {}:
        if path not in known:
            raise SurgeryError(f"{model.name} has no matrix {path!r}; there are {known[0]} … {known[-1]}.")
    return {path: (others or {}).get(path, value) for path in known}
