"""The models of a merge: their tensors by the names that the base has for them, read one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.hashing import values_digest
from workbench.interventions.opening import NOTE as SPLICED
from workbench.model.checkpoint_files import CONSTANT, MASK
from workbench.model.default_model import DEFAULT_MODEL, fetch_default
from workbench.model.language_model import LanguageModel
from workbench.model.reading import TOKENIZER_FILES, checkpoint_folder, read_config, read_tokenizer
from workbench.model.weights import ModelError, state_of
from workbench.surgery.child import BESIDE
from workbench.surgery.child_building import SurgeryError, layers_path
from workbench.surgery.operations.dare import UNIMPORTANT
from workbench.surgery.operations.tuned_folder import FolderTensors

MAY_DIFFER = re.compile(r"^(max_position_embeddings|num_hidden_layers|n_layer|num_layers|layer_types|vocab_size)$")
"""Values of a configuration that may differ between models that are merged; shapes are compared by themselves."""
POSITIONS = re.compile("rope|sliding_window|max_window_layers|original_max_position")
"""Values that may differ too, and that the certificate names: the child has the base's."""


@dataclass(frozen=True)
class Layout:
    """The names of the base's tensors.

    Attributes:
        prefix: the path of the layers.
        before, after: tensors that stand before and after the layers.
        inside: names inside a layer, of all layers.
        tied: names that stand for another tensor, with that one's name.
        roots: what may stand before a name in a file, or lack there.
        rows: tensors that have a row for each token.
    """

    prefix: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    inside: frozenset[str]
    tied: dict[str, str]
    roots: tuple[str, ...]
    rows: frozenset[str]

    def layer_of(self, name: str) -> tuple[int, str] | None:
        """The layer that a tensor is in and its name there; None for one outside of the layers."""
        match = re.fullmatch(rf"{re.escape(self.prefix)}\.(\d+)\.(.+)", name)
        return (int(match[1]), match[2]) if match else None


def layout_of(model: LanguageModel) -> Layout:
    """The names of a model's tensors.

    Raises:
        SurgeryError: it is unclear where its layers are.
    """
    module: Any = model.network.module
    prefix = layers_path(model)
    state, every = state_of(module), module.state_dict()
    inner = [name.startswith(f"{prefix}.") for name in state]
    first = inner.index(True)
    names = list(state)
    at = {tensor.data_ptr(): name for name, tensor in state.items()}
    others = {name: tensor.data_ptr() for name, tensor in every.items() if name not in state}
    tied = {name: at[place] for name, place in others.items() if place in at}
    ends = [module.get_input_embeddings(), module.get_output_embeddings()]
    rows = {id(one) for end in ends if end is not None for one in end.parameters()}
    return Layout(
        prefix,
        tuple(name for name, inside in zip(names[:first], inner[:first], strict=True) if not inside),
        tuple(name for name, inside in zip(names[first:], inner[first:], strict=True) if not inside),
        frozenset(name.removeprefix(f"{prefix}.").partition(".")[2] for name in names if name.startswith(f"{prefix}.")),
        tied,
        (f"{module.base_model_prefix}.",),
        frozenset(name for name, one in module.named_parameters(remove_duplicate=False) if id(one) in rows),
    )


@dataclass
class Checkpoint:
    """A model of a merge.

    Attributes:
        name: as the recipe has it.
        config: its Hugging Face configuration.
        tensors: by the names of its files.
        places: the name in its files of each tensor, by the base's name for it.
        tokenizer: its Hugging Face tokenizer, or None.
        weights_hash: of its values; that of `load_model`.
        unlike: values of its configuration that are not the base's.
    """

    name: str
    config: Any
    tensors: FolderTensors | dict[str, Tensor]
    places: dict[str, str]
    tokenizer: Any
    weights_hash: str = ""
    unlike: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """The number of its layers."""
        return self.config.get_text_config().num_hidden_layers

    def tensor(self, place: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor on the processor, in a type or in its own."""
        held = self.tensors[self.places[place]].detach().cpu()
        return held if dtype is None else held.to(dtype)

    def digests(self) -> Iterator[tuple[str, bytes]]:
        """What each tensor adds to the hash of the weights, by the base's name for it."""
        for place, name in self.places.items():
            yield place, values_digest(place, self.tensors[name])


def folder_of(model: str) -> Path:
    """The folder of a model of a recipe.

    Raises:
        SurgeryError: there is no such model, or it has edits or dictionaries beside its weights.
    """
    if model == DEFAULT_MODEL and not Path(model).exists():
        return fetch_default()
    if Path(model).is_dir():
        for file, what in ((SPLICED, "runs through dictionaries"), (BESIDE, "has edits beside its weights")):
            if (Path(model) / file).exists():
                raise SurgeryError(f"{model} {what}, which a merge would lose; merge plain checkpoints.")
    try:
        return checkpoint_folder(model)
    except ModelError as error:
        raise SurgeryError(str(error)) from error


def in_memory(model: LanguageModel) -> Checkpoint:
    """A model that is open, as one of a merge."""
    tensors = state_of(model.network.module)
    places = {name: name for name in tensors}
    return Checkpoint(model.name, model.network.config, tensors, places, model.tokenizer, model.held_hash)


def in_folder(name: str, base: LanguageModel, layout: Layout) -> Checkpoint:
    """A model of a recipe in its folder.

    Raises:
        SurgeryError: another architecture than the base's, tensors that are missing, or such that the base has no place
            for.
    """
    folder = folder_of(name)
    config = read_config(folder, local_files_only=True)
    unlike = compared(name, config, base)
    tensors = FolderTensors(folder)
    has_tokenizer = any(True for pattern in TOKENIZER_FILES for _ in folder.glob(pattern))
    tokenizer = read_tokenizer(folder, local_files_only=True) if has_tokenizer else None
    found = Checkpoint(name, config, tensors, {}, tokenizer, unlike=unlike)
    _place(found, layout, tensors.shapes())
    return found


def compared(name: str, config: Any, base: LanguageModel) -> dict[str, list[Any]]:
    """What of a configuration differs from the base's and may: `[the base's, its own]` by name.

    Raises:
        SurgeryError: another architecture, or a value under which the same weights compute something else.
    """
    own, other = base.network.config.to_dict(), config.to_dict()
    if type(config) is not type(base.network.config):
        raise SurgeryError(
            f"{name} is a {config.model_type} and {base.name} a {base.network.config.model_type}; only models of one "
            "architecture are merged."
        )
    unlike = {}
    for key in sorted({*own} & {*other}):
        if own[key] == other[key] or key.startswith("_") or UNIMPORTANT.search(key):
            continue
        if POSITIONS.search(key) or key == "max_position_embeddings" or _kinds_differ(key, own[key], other[key]):
            unlike[key] = [own[key], other[key]]
        elif not MAY_DIFFER.search(key) and not (key == "tie_word_embeddings" and other[key]):
            raise SurgeryError(f"{name} and {base.name} don't compute alike: {key} is {other[key]!r} and {own[key]!r}.")
    return unlike


def _kinds_differ(key: str, own: Any, other: Any) -> bool:
    """Whether layers of one number are of another kind; lists of other lengths belong to other numbers of layers."""
    return key == "layer_types" and bool(own) and bool(other) and len(own) == len(other)


def _place(model: Checkpoint, layout: Layout, shapes: dict[str, tuple[int, ...]]) -> None:
    """Find each tensor of the base's layout in a model's files.

    Raises:
        SurgeryError: one is missing, or the files hold one that the layout has no place for.
    """
    outside = {*layout.before, *layout.after}
    for name in shapes:
        for place in _readings(name, layout):
            inside = layout.layer_of(place)
            if place in outside or (inside and inside[0] < model.layers and inside[1] in layout.inside):
                model.places[place] = name
    for name, shape in shapes.items():
        if name in model.places.values() or name.endswith(CONSTANT) or MASK.search(name):
            continue
        twin = next((model.places.get(layout.tied[one]) for one in _readings(name, layout) if one in layout.tied), None)
        if twin is None or shapes[twin] != shape or not torch.equal(model.tensors[name], model.tensors[twin]):
            raise SurgeryError(f"{model.name} holds a tensor {name}, which the base has no place for.")
    if model.config.get_text_config().tie_word_embeddings:  # the base may have its LM head untied
        head = next((name for name in layout.after if name in layout.rows and name not in model.places), None)
        embedding = next((name for name in layout.before if name in layout.rows and name in model.places), None)
        if head and embedding:
            model.places[head] = model.places[embedding]
    layers = {inside[0] for inside in map(layout.layer_of, model.places) if inside}
    missing = [name for name in (*layout.before, *layout.after) if name not in model.places]
    missing += [f"{layout.prefix}.{layer}" for layer in range(model.layers) if layer not in layers]
    if missing:
        raise SurgeryError(
            f"{model.name} has no tensor {missing[0]}: it lacks, or its files name it otherwise than the model does, "
            "and a merge reads only files that name tensors as the model does."
        )


def _readings(name: str, layout: Layout) -> Iterator[str]:
    """The names that a file's tensor may have in the model."""
    yield name
    for root in layout.roots:
        yield name.removeprefix(root) if name.startswith(root) else f"{root}{name}"
