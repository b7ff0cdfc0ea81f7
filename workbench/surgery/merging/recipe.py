"""Recipes of merges: mergekit's YAML, checked. Whatever is not read is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from workbench.core.checks import as_integer
from workbench.core.forms import read_text
from workbench.core.paths import path_fault
from workbench.core.type_words import shown
from workbench.core.yaml_text import parse_yaml
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.merging.methods import METHODS, Method
from workbench.surgery.merging.settings import check_settings

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
"""What `dtype` may be; `torch.` may stand before it."""
TOP = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype")
TOP += ("tokenizer_source", "tokenizer", "chat_template")
NOT_READ = {
    "modules": "only models that are one stack of layers are merged; write `models` or `slices`",
    "residual_weight": "mergekit reads it and does nothing with it; leave it out",
    "tokens": "tokens get no values of their own; leave it out",
    "pad_to_multiple_of": "the vocabulary is not padded; leave it out",
}
"""Fields of mergekit that are refused, with the reason."""


@dataclass(frozen=True)
class Input:
    """Layers of one model, as one of several that are merged.

    Attributes:
        model: folder or name, as the recipe has it.
        layers: the first layer and the one after the last; None for all.
        parameters: its own settings.
    """

    model: str
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Layers of the merged model that follow each other, with the inputs that they are merged from."""

    inputs: tuple[Input, ...]
    base: str | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A merge.

    Attributes:
        method: how tensors are merged.
        slices: from the first layers to the last.
        base: the model whose configuration and tokenizer the merged one has: the base model, or the first.
        parameters: settings for all slices and models.
        dtype: the type that tensors are read in; None for that of the files.
        out_dtype: the type that merged tensors are rounded to; None to leave them.
        tokenizer: "base", "union" or the model whose tokenizer is the child's; None to leave vocabularies as they are.
        chat_template: "auto", a template, or None.
        content: the recipe as plain data.
    """

    method: Method
    slices: tuple[Slice, ...]
    base: str
    parameters: Mapping[str, Any]
    dtype: torch.dtype | None
    out_dtype: torch.dtype | None
    tokenizer: str | None
    chat_template: str | None
    content: dict[str, Any]

    @property
    def models(self) -> list[str]:
        """Each model once, the base first."""
        inputs = [one.model for part in self.slices for one in part.inputs]
        return list(dict.fromkeys([self.base, *(part.base for part in self.slices if part.base), *inputs]))


def read_recipe(recipe: str | Path | Mapping[str, Any]) -> Recipe:
    """The recipe in a YAML file, a YAML text or a mapping.

    Args:
        recipe: a text with a line break or a colon before a space is YAML, unless a file has that name; another text is
            the path of a file.

    Raises:
        SurgeryError: no such file, no YAML, tags or anchors in it, or a field that is not read.
    """
    if isinstance(recipe, Mapping):
        return check_recipe(_plain(recipe))
    if isinstance(recipe, str) and ("\n" in recipe or ": " in recipe) and not _is_file(recipe):
        return check_recipe(parse_yaml(recipe, SurgeryError, "This is not a recipe"))
    if isinstance(recipe, str) and not recipe.strip():
        raise SurgeryError("The recipe is empty; give YAML, its file or a mapping.")
    text = read_text(recipe, SurgeryError, "a recipe")
    return check_recipe(parse_yaml(text, SurgeryError, f"{recipe} is not a recipe"))


def _is_file(text: str) -> bool:
    return not path_fault(text) and "\n" not in text and Path(text).is_file()


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as plain data of its own."""
    try:
        return json.loads(json.dumps(dict(recipe), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as wrong:
        raise SurgeryError(f"A recipe is plain data, as YAML holds it ({shown(str(wrong))[1:-1]}).") from wrong


def check_recipe(content: Any) -> Recipe:
    """A recipe of plain data.

    Raises:
        SurgeryError: a field that is missing, of another form, or not read; inputs that the method does not take.
    """
    if not isinstance(content, dict):
        raise SurgeryError(f"A recipe is a mapping with merge_method and models or slices, not {shown(content)}.")
    _known(content, TOP, "")
    name = content.get("merge_method")
    if not isinstance(name, str) or name not in METHODS:
        raise SurgeryError(f"merge_method {shown(name)} is not read; there are {', '.join(METHODS)}.")
    if (content.get("models") is None) == (content.get("slices") is None):
        raise SurgeryError("A recipe has either models or slices.")
    method, base = METHODS[name], _model(content.get("base_model"), "base_model", optional=True)
    slices = (
        _of_models(content["models"], method, base)
        if content.get("models") is not None
        else _of_slices(content["slices"], method, base)
    )
    parameters = check_settings(content.get("parameters"), method.parameters, name, "")
    dtype, out_dtype = (_type(content.get(key), key) for key in ("dtype", "out_dtype"))
    if torch.float64 in ((out_dtype,) if out_dtype else (dtype,)):
        raise SurgeryError("A child is not held in float64; add out_dtype: float32 to the recipe.")
    return Recipe(
        method,
        slices,
        base or slices[0].inputs[0].model,
        parameters,
        dtype,
        out_dtype,
        _tokenizer(content),
        _text(content.get("chat_template"), "chat_template"),
        content,
    )


def _known(content: Mapping[Any, Any], names: Sequence[str], where: str) -> None:
    """Refuse fields of a mapping that are not read."""
    for key in content:
        if key not in names:
            place = f"{where}.{key}" if where else str(key)
            why = NOT_READ.get(str(key), f"there are {', '.join(names)}")
            raise SurgeryError(f"{shown(place)[1:-1]} of a recipe is not read: {why}.")


def _of_models(models: Any, method: Method, base: str | None) -> tuple[Slice, ...]:
    """The one slice of whole models; a base that is not among them is added as the last."""
    if not isinstance(models, list) or not models:
        raise SurgeryError(f"models is a list with at least one model, not {shown(models)}.")
    inputs = []
    for number, one in enumerate(models):
        where = f"models[{number}]"
        content = _mapping(one, ("model", "parameters"), where)
        settings = check_settings(content.get("parameters"), method.parameters, method.name, where)
        inputs.append(Input(_model(content.get("model"), f"{where}.model") or "", None, settings))
    if base and base not in [one.model for one in inputs]:
        inputs.append(Input(base))
    method.check_inputs([one.model for one in inputs], base, "models")
    return (Slice(tuple(inputs), base),)


def _of_slices(slices: Any, method: Method, base: str | None) -> tuple[Slice, ...]:
    if not isinstance(slices, list) or not slices:
        raise SurgeryError(f"slices is a list with at least one slice, not {shown(slices)}.")
    made = []
    for number, one in enumerate(slices):
        where = f"slices[{number}]"
        content = _mapping(one, ("sources", "base_model", "parameters"), where)
        sources = content.get("sources")
        if not isinstance(sources, list) or not sources:
            raise SurgeryError(f"{where}.sources is a list with at least one model, not {shown(sources)}.")
        inputs = tuple(_source(source, method, f"{where}.sources[{at}]") for at, source in enumerate(sources))
        own = _model(content.get("base_model"), f"{where}.base_model", optional=True) or base
        method.check_inputs([each.model for each in inputs], own, where)
        if len({each.layers[1] - each.layers[0] for each in inputs if each.layers}) > 1:
            raise SurgeryError(f"The inputs of {where} have different numbers of layers.")
        settings = check_settings(content.get("parameters"), method.parameters, method.name, where)
        made.append(Slice(inputs, own, settings))
    return tuple(made)


def _source(content: Any, method: Method, where: str) -> Input:
    content = _mapping(content, ("model", "layer_range", "parameters"), where)
    span = content.get("layer_range")
    ends = [as_integer(one) for one in span] if isinstance(span, list) else []
    if len(ends) != 2 or None in ends or not 0 <= ends[0] < ends[1] <= 2**20:  # type: ignore[operator]
        raise SurgeryError(
            f"{where}.layer_range is the first layer and the one after the last, such as [0, 12], not {shown(span)}."
        )
    settings = check_settings(content.get("parameters"), method.parameters, method.name, where)
    return Input(_model(content.get("model"), f"{where}.model") or "", (ends[0], ends[1]), settings)  # type: ignore[arg-type]


def _mapping(content: Any, names: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise SurgeryError(f"{where} of a recipe is a mapping with {' and '.join(names)}, not {shown(content)}.")
    _known(content, names, where)
    return content


def _model(name: Any, where: str, *, optional: bool = False) -> str | None:
    """A folder or name; with `optional`, None where there is none."""
    if name is None and optional:
        return None
    if not isinstance(name, str) or path_fault(name):
        fault = path_fault(name) if isinstance(name, str) else "as a text"
        raise SurgeryError(f"{where} is the folder or name of a model {fault}, not {shown(name)}.")
    if not Path(name).exists():
        for mark, what in (("+", "an adapter"), ("@", "a revision")):
            if mark in name:
                raise SurgeryError(
                    f"{where} names {what} behind {mark!r}, {shown(name)}, which is not read: save that model to a "
                    "folder and name the folder."
                )
    return name


def _type(name: Any, where: str) -> torch.dtype | None:
    if name is None:
        return None
    word = name.removeprefix("torch.") if isinstance(name, str) else ""
    if word not in TYPES:
        raise SurgeryError(f"{where} is one of {', '.join(TYPES)}, not {shown(name)}.")
    return TYPES[word]


def _tokenizer(content: Mapping[str, Any]) -> str | None:
    """The source of the tokenizer, of `tokenizer_source` or of `tokenizer`."""
    own = content.get("tokenizer")
    if own is None:
        return _model(content.get("tokenizer_source"), "tokenizer_source", optional=True)
    if content.get("tokenizer_source") is not None:
        raise SurgeryError("A recipe has tokenizer_source or tokenizer, not both.")
    _mapping(own, ("source",), "tokenizer")
    return _model(own.get("source", "union"), "tokenizer.source")


def _text(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise SurgeryError(f"{where} is a text, not {shown(value)}.")
    return value or None
