"""Which tensors of which models make each tensor of a merged one, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.surgery.child_building import SurgeryError
from workbench.surgery.merging.checkpoints import Checkpoint, Layout
from workbench.surgery.merging.methods import Draws, Part
from workbench.surgery.merging.recipe import Input, Recipe, Slice
from workbench.surgery.merging.settings import At, resolve


@dataclass(frozen=True)
class Target:
    """One tensor of the merged model.

    Attributes:
        name: in the merged model.
        sources: the input and its name for the tensor, in the order of the recipe.
        slice: whose settings count.
        depth: of its layer among those of the slice, from 0 to 1; 0 outside of the layers.
    """

    name: str
    sources: tuple[tuple[Input, str], ...]
    slice: Slice
    depth: float


@dataclass(frozen=True)
class Opened:
    """A recipe with its models."""

    recipe: Recipe
    models: Mapping[str, Checkpoint]
    layout: Layout


def plan(opened: Opened) -> list[Target]:
    """The tensors of the merged model, in the order in which mergekit draws their random numbers: by the last of the
    names that the files of its inputs have for it.

    Raises:
        SurgeryError: layers that a model does not have, or whole models with different numbers of layers.
    """
    recipe, models, layout = opened.recipe, opened.models, opened.layout
    first, last = recipe.slices[0], recipe.slices[-1]
    targets = [_everywhere(name, first) for name in layout.before]
    number = 0
    for part in recipe.slices:
        spans = [_span(one, models[one.model]) for one in part.inputs]
        count = len(spans[0])
        if any(len(span) != count for span in spans):
            words = ", ".join(f"{one.model} {len(span)}" for one, span in zip(part.inputs, spans, strict=True))
            raise SurgeryError(f"The models have different numbers of layers ({words}); use slices.")
        for offset in range(count):
            depth = offset / (count - 1) if count > 1 else 1.0
            layers = [span[offset] for span in spans]
            targets += _layer(opened, part, layers, Place(number, depth))
            number += 1
    targets += [_everywhere(name, last) for name in layout.after]
    return sorted(targets, key=lambda target: _label(target, models))


@dataclass(frozen=True)
class Place:
    """Where a layer of the merged model stands: its number, and its depth in its slice."""

    number: int
    depth: float


def _everywhere(name: str, part: Slice) -> Target:
    return Target(name, tuple((one, name) for one in part.inputs), part, 0.0)


def _span(one: Input, model: Checkpoint) -> range:
    if one.layers and one.layers[1] > model.layers:
        raise SurgeryError(f"layer_range {list(one.layers)} is past the {model.layers} layers of {one.model}.")
    return range(*one.layers) if one.layers else range(model.layers)


def _layer(opened: Opened, part: Slice, layers: list[int], at: Place) -> list[Target]:
    """The tensors of one layer of the merged model."""
    models, prefix = opened.models, opened.layout.prefix
    start = f"{prefix}.{layers[0]}."
    inside = [name.removeprefix(start) for name in models[part.inputs[0].model].places if name.startswith(start)]
    targets = []
    for name in inside:
        places = tuple(f"{prefix}.{layer}.{name}" for layer in layers)
        sources = tuple(zip(part.inputs, places, strict=True))
        targets.append(Target(f"{prefix}.{at.number}.{name}", sources, part, at.depth))
    for one, layer in zip(part.inputs, layers, strict=True):
        start = f"{prefix}.{layer}."
        own = {place.removeprefix(start) for place in models[one.model].places if place.startswith(start)}
        if wrong := {*inside} ^ own:
            raise SurgeryError(
                f"Layer {layer} of {one.model} and layer {layers[0]} of {part.inputs[0].model} are not alike: only one "
                f"of them has a tensor {min(wrong)}."
            )
    return targets


def _label(target: Target, models: Mapping[str, Checkpoint]) -> str:
    return max(models[one.model].places[place] for one, place in target.sources)


def layers_of(opened: Opened) -> list[int]:
    """The layer of the first input that each layer of the merged model comes from."""
    firsts = [part.inputs[0] for part in opened.recipe.slices]
    return [layer for one in firsts for layer in _span(one, opened.models[one.model])]


def merged(target: Target, opened: Opened, draws: Draws, rows: int | None = None) -> Tensor:
    """One tensor of the merged model.

    Args:
        target: the tensor.
        opened: how it is merged, and from which models.
        draws: random numbers of the merge.
        rows: how many of the first rows are read; None for all.

    Raises:
        SurgeryError: tensors of different shapes, or a setting that is missing.
    """
    recipe, part = opened.recipe, target.slice
    tensors = _read(target, opened, rows)
    if not all(one.is_floating_point() for one in tensors):
        if not all(torch.equal(one, tensors[0]) for one in tensors):
            raise SurgeryError(f"{target.name} holds whole numbers that differ between the models.")
        return tensors[0]
    kind = tensors[0].dtype
    for tensor in tensors:
        kind = torch.promote_types(kind, tensor.dtype)
    parts = []
    for (one, place), tensor in zip(target.sources, tensors, strict=True):
        is_base = one.model == part.base
        where = At(place, target.depth, (one.parameters, part.parameters, recipe.parameters))
        own = {
            name: resolve(name, known, where)
            for name, known in recipe.method.parameters.items()
            if known.per == "model" or (known.per == "other" and not is_base)
        }
        parts.append(Part(tensor.to(kind), is_base, own))
    del tensors
    where = At(target.name, target.depth, (part.parameters, recipe.parameters))
    known = recipe.method.parameters.items()
    shared = {name: resolve(name, one, where) for name, one in known if one.per == "merge"}
    made = recipe.method.merge(parts, shared, draws)
    return made if recipe.out_dtype is None else made.to(recipe.out_dtype)


def _read(target: Target, opened: Opened, rows: int | None) -> list[Tensor]:
    """The tensors that are merged, in the type of the recipe.

    Raises:
        SurgeryError: they have different shapes.
    """
    tensors = [opened.models[one.model].tensor(place, opened.recipe.dtype) for one, place in target.sources]
    tensors = tensors if rows is None else [one[:rows] for one in tensors]
    first = target.sources[0][0].model
    for (one, _), tensor in zip(target.sources, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            padded = target.name in opened.layout.rows and rows is None
            hint = "; give tokenizer_source: base if only their vocabularies are padded" if padded else ""
            raise SurgeryError(
                f"{target.name} is {list(tensors[0].shape)} in {first} and {list(tensor.shape)} in {one.model}; only "
                f"tensors of equal shapes are merged{hint}."
            )
    return tensors
