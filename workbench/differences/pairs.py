"""Two models that are compared: opened, checked, and with equal tensors held once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.corpus import Corpus
from workbench.differences.errors import DifferenceError
from workbench.interventions.opening import load_model
from workbench.model.language_model import LanguageModel
from workbench.model.sharded import group_of
from workbench.model.weights import state_of
from workbench.surgery.child import Child

Model = LanguageModel | Child | str | Path
"""A model, a child, or a name or folder of one."""
TRIED = 32
"""Texts on which tokenizers are compared."""


@dataclass(frozen=True)
class Pair:
    """Two models with one tokenizer."""

    a: LanguageModel
    b: LanguageModel
    beside: tuple[Sequence[Any], Sequence[Any]]
    """Interventions that belong to either of them."""
    alike: str
    """Why only their texts can be compared; empty where they are of one shape."""
    changed: dict[str, tuple[Tensor, Tensor]] = field(repr=False)
    """The tensors that both have in one shape and that differ, by name."""
    unpaired: tuple[str, ...]
    """Names of tensors that only one of them has, or that have other shapes."""
    equal: int
    """Number of those that do not."""


def open_pair(a: Model, b: Model, corpus: Corpus) -> Pair:
    """Open and check two models.

    Raises:
        DifferenceError: models without a tokenizer or with unlike ones, or sharded over processes.
    """
    models, besides = [], []
    for one in (a, b):
        model = one.model if isinstance(one, Child) else one
        models.append(model if isinstance(model, LanguageModel) else load_model(str(model)))
        besides.append(one.beside if isinstance(one, Child) else ())
    _check_tokenizers(models[0], models[1], corpus)
    if any(group_of(model.network.module) is not None for model in models):
        raise DifferenceError("A model is sharded over processes; open both in one process to compare them.")
    own = not isinstance(b, LanguageModel | Child)
    why = _unlike(*models)
    states = [state_of(model.network.module) for model in models]
    changed: dict[str, tuple[Tensor, Tensor]] = {}
    unpaired: list[str] = []
    if not why:
        shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
        unpaired = sorted(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        for name, tensor in states[0].items():
            if name in unpaired:
                continue
            if not same(tensor, states[1][name]):
                changed[name] = tensor, states[1][name]
            elif own and tensor.dtype == states[1][name].dtype and tensor.device == states[1][name].device:
                states[1][name].set_(tensor)  # type: ignore[call-overload] - held once; b was opened here
    equal = len(states[0]) - len(changed) - sum(name in states[0] for name in unpaired)
    return Pair(models[0], models[1], (besides[0], besides[1]), why, changed, tuple(unpaired), equal)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, in the coarser of their types."""
    if one.data_ptr() == other.data_ptr() and one.dtype == other.dtype:
        return True
    other = other.to(one.device)
    if one.dtype != other.dtype and one.is_floating_point() and other.is_floating_point():
        coarse = max(one.dtype, other.dtype, key=lambda kind: torch.finfo(kind).eps)
        return torch.equal(one.to(coarse), other.to(coarse))
    return torch.equal(one, other)


def _check_tokenizers(a: LanguageModel, b: LanguageModel, corpus: Corpus) -> None:
    if a.tokenizer is None or b.tokenizer is None:
        raise DifferenceError("Both models need a tokenizer to read texts; give those of their folders.")
    alike = a.tokenizer.get_vocab() == b.tokenizer.get_vocab()
    for text in list(corpus.texts[:TRIED]) if alike else []:
        alike = alike and a.tokenizer(text[:2000]).input_ids == b.tokenizer(text[:2000]).input_ids
    if not alike:
        raise DifferenceError(
            f"{a.name} and {b.name} have unlike tokenizers, so their predictions are of other tokens; compare models "
            "of one tokenizer."
        )
    sizes = {a.network.vocab_size, b.network.vocab_size}
    if len(sizes) > 1:
        raise DifferenceError(
            f"{a.name} and {b.name} predict {min(sizes):,} and {max(sizes):,} tokens; compare models of one vocabulary."
        )


def _unlike(a: LanguageModel, b: LanguageModel) -> str:
    """Why two models are not of one shape; empty where they are."""
    if a.splices or b.splices:
        return "a model runs through dictionaries"
    if type(a.network.module) is not type(b.network.module):
        return "their architectures differ"
    if a.network.n_layers != b.network.n_layers:
        return f"they have {a.network.n_layers} and {b.network.n_layers} layers"
    if a.network.d_model != b.network.d_model:
        return f"their streams are {a.network.d_model} and {b.network.d_model} wide"
    return ""
