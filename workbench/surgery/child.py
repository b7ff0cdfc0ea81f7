"""Children: what a model is whose weights were changed.

A child has tensors of its own only where they differ from its parent's; all others are the parent's very tensors. It
is what plain transformers builds from its configuration, and nothing of ours is in it: `save_pretrained` writes an
ordinary checkpoint. The parent is never touched, so to undo is to go back to it.

Every operation ends in `make_child`:

    tensors = {"model.layers.3.mlp.down_proj.weight": new}
    child = make_child(parent, tensors, {"operation": "prune", "sparsity": 0.5})

and where layers go or the configuration changes, `keep_layers` and `config=` say so.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from workbench.core.files import replacing
from workbench.core.hashing import fingerprint
from workbench.core.provenance import command_line
from workbench.corpus import Corpus
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.saved import load_interventions, save_interventions
from workbench.model.language_model import LanguageModel
from workbench.model.weights import ModelError, building, parameters_of, read_huggingface
from workbench.surgery.certificate.certificate import JSON, MARKDOWN, Certificate, certify
from workbench.surgery.child_building import (
    SurgeryError,
    among,
    build,
    changed_config,
    complete,
    layers_path,
    parameter_shapes,
)

FORMAT = 1
NOTE = "surgery.json"
"""What the folder of a child says of where it comes from, beside the ordinary files of a checkpoint."""

BESIDE = "interventions.json"
"""Edits that weights can't hold, to be run with the model."""

CUSTOM = "custom"
"""In `model.about`: why plain transformers can't hold a model whose modules are not what its configuration says."""


@dataclass(eq=False)
class Child:
    """A changed model.

    Attributes:
        model: opened and ready to run.
        parent: what it was made from, as it was.
        own: names of the tensors that are not the parent's.
        history: what was done, step by step from the first parent on, as plain data; the last step made this child.
        reference: interventions under which the parent computes the same as the child; empty where there are none.
        beside: interventions that are part of the change and that weights can't hold; to be given with the model.
        certificate: what was measured of it; None until it was.
    """

    model: LanguageModel
    parent: LanguageModel
    own: tuple[str, ...]
    history: list[dict[str, Any]] = field(repr=False)
    reference: tuple[Any, ...] = ()
    beside: tuple[Any, ...] = ()
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        self.model.made_by = weakref.ref(self)  # strong, models would wait for the collector
        self._before = self.parent.made_by()

    @property
    def before(self) -> Child | None:
        """The child whose model was changed, if it was still held then."""
        return self._before

    def certify(self, corpus: Corpus | None = None, tokens: int = 2048, **how: Any) -> Certificate:
        """Measure what the change does and costs, on held-out text; see `certificate.certify` for the settings."""
        self.certificate = certify(self, corpus, tokens, **how)
        return self.certificate

    def undo(self) -> LanguageModel:
        """The parent, with exactly the weights that the child was made from.

        Raises:
            SurgeryError: somebody changed the parent's weights meanwhile.
        """
        if fingerprint(parameters_of(self.parent.network.module)) != self.parent.plain_hash:
            raise SurgeryError(
                f"The weights of {self.parent.name} were changed since this child was made, so it can't be undone; "
                "load the parent again."
            )
        return self.parent

    def save_pretrained(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face checkpoint, whole or not at all.

        Beside its files are what was done (`surgery.json`), the certificate as `certificate.md` and `.json`, and
        `interventions.json` where there are edits that weights can't hold. Without a certificate one is made first, as
        `certify` makes it without settings.

        Args:
            folder: one that is there is replaced if it holds such a checkpoint.

        Raises:
            SurgeryError: the folder holds something else, or can't be written.
        """
        if not isinstance(folder, str | Path) or not str(folder):
            raise SurgeryError(f"Name a folder to save to, not {folder!r}.")
        folder = Path(folder)
        try:
            if folder.exists() and not (folder / NOTE).exists():
                raise SurgeryError(f"{folder} is there already and holds no checkpoint of this kind; choose another.")
            if self.certificate is None:
                self.certify()
            with replacing(folder) as temporary:
                temporary.mkdir()
                self._write(temporary)
        except (OSError, SafetensorError) as error:
            raise SurgeryError(f"{folder} can't be written: {error}.") from error

    def _write(self, folder: Path) -> None:
        with building():
            self.model.network.module.save_pretrained(folder)
        if self.model.tokenizer is not None:
            self.model.tokenizer.save_pretrained(folder)
        note = {"format": FORMAT, "name": self.model.name, "hash": self.model.hash, "history": self.history}
        (folder / NOTE).write_text(json.dumps(note, indent=2))
        if self.beside:
            save_interventions(folder / BESIDE, self.model, self.beside)
        if self.certificate is not None:
            (folder / JSON).write_text(json.dumps(self.certificate.to_dict(), indent=2))
            (folder / MARKDOWN).write_text(self.certificate.to_markdown())


def make_child(
    parent: LanguageModel,
    tensors: Mapping[str, Tensor],
    step: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    name: str | None = None,
    seed: int | None = None,
) -> Child:
    """A model with other tensors in the places named.

    Args:
        parent: left as it is.
        tensors: by the name that the parameter has in the child's module (`parameters_of(child.model.network.module)`).
            A tensor that equals the parent's of this name costs nothing: the parent's is taken. One of the parent's own
            tensors may stand under another name; it is shared.
        step: what was done, as plain data (JSON); `step["operation"]` is its name.
        config: values of the configuration that change; what the child's module is follows from them.
        name: of the child; without it, that of the model at the start with all operations in brackets.
        seed: recorded with the step.

    Raises:
        SurgeryError: a parent with dictionaries of its own; a tensor that the child has no place for, of another shape,
            with values that are not finite; one that is missing.
    """
    if parent.splices:
        raise SurgeryError(
            f"{parent.name} runs through dictionaries, which an ordinary checkpoint can't hold; operate on the model "
            "without them."
        )
    if CUSTOM in parent.about:
        raise SurgeryError(f"{parent.about[CUSTOM].rstrip('.')}; this operation would lose it, so do it first.")
    old = parameters_of(parent.network.module)
    kind, settings = type(parent.network.module), changed_config(parent, config or {})
    new, own = complete(parameter_shapes(kind, settings), old, tensors)
    module = build(kind, settings, new)
    module.generation_config = copy.deepcopy(getattr(parent.network.module, "generation_config", None))
    earlier = list(parent.about.get("surgery", []))
    start = earlier[0]["parent"]["name"] if earlier else parent.name
    title = name or f"{start} ({', '.join(str(one['operation']) for one in [*earlier, step])})"
    model = LanguageModel(module, parent.tokenizer, title, fingerprint(parameters_of(module)))
    done = {
        **step,
        "edit_hash": edit_hash(step),
        "parent": {"name": parent.name, "hash": parent.hash},
        "hash": model.hash,
        "own_tensors": len(own),
        "config": dict(config or {}),
        "seed": seed,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("workbench-lm", "torch", "transformers")},
        "command": command_line(),
    }
    history = [*earlier, json.loads(json.dumps(done))]
    model.about = parent.about | {"surgery": history}
    return Child(model, parent, own, history)


def open_child(folder: str | Path, parent: LanguageModel | Child, dictionaries: Sequence[Dictionary] = ()) -> Child:
    """A child from the folder that `save_pretrained` wrote, sharing with its parent what is equal.

    Without the parent `wb.load_model(folder)` opens the same model, but for interventions beside it.

    Args:
        folder: of the checkpoint.
        parent: what it was made from, at the start or at any later step; a child stands for its model.
        dictionaries: those whose features are named in the interventions beside the checkpoint.

    Raises:
        SurgeryError: it is no such folder, it is damaged, or it was made from another parent.
        DictionaryError, EditError: interventions beside it that can't be read.
    """
    folder = Path(folder)
    parent = parent.model if isinstance(parent, Child) else parent
    if not isinstance(parent, LanguageModel):
        raise SurgeryError(f"Give the model that {folder} was made from, not {parent!r:.60}.")
    try:
        note = json.loads((folder / NOTE).read_text())
        history, said, format = list(note["history"]), str(note["hash"]), note["format"]
        name, ancestors = str(note["name"]), [step["parent"] for step in history]
        first, wanted = str(ancestors[0]["name"]), [str(one["hash"]) for one in ancestors]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise SurgeryError(f"{folder} holds no model that was saved by surgery ({error}).") from error
    if format != FORMAT:
        raise SurgeryError(f"{folder} is in format {format}, and this version reads format {FORMAT}.")
    if parent.hash not in wanted:
        raise SurgeryError(
            f"{folder} was made from {first} ({wanted[0][:12]}), not from {parent.name} ({parent.hash[:12]}); open "
            "that model first."
        )
    try:
        module, tokenizer, hash = read_huggingface(str(folder))
    except ModelError as error:
        raise SurgeryError(str(error)) from error
    if hash != said:
        raise SurgeryError(f"The weights in {folder} are not those that were saved there; copy the folder again.")
    old = parameters_of(parent.network.module)
    found = {place: among(old, place, tensor) for place, tensor in parameters_of(module).items()}
    own = [place for place, (_, shared) in found.items() if not shared]
    shared = build(type(module), module.config, {place: tensor for place, (tensor, _) in found.items()})
    shared.generation_config = module.generation_config
    model = LanguageModel(shared, tokenizer, name, hash)
    model.about = parent.about | {"surgery": history}
    child = Child(model, parent, tuple(own), history)
    if (folder / BESIDE).exists():
        child.beside = tuple(load_interventions(folder / BESIDE, model, dictionaries))
    try:
        child.certificate = Certificate.from_dict(json.loads((folder / JSON).read_text()))
    except (OSError, ValueError) as error:
        raise SurgeryError(f"The certificate in {folder} can't be read ({error}); copy the folder again.") from error
    return child


def keep_layers(
    model: LanguageModel, layers: Sequence[int], changed: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration, for `make_child`, of a model that has only these layers left, in this order.

    Args:
        model: what they are of.
        layers: by their numbers, each once.
        changed: other tensors to take in place of the model's, by the names that they have before layers go.

    Raises:
        SurgeryError: no layer is left, one that does not exist, or an architecture whose layers depend on their number.
    """
    number = model.network.n_layers
    wrong = [layer for layer in layers if isinstance(layer, bool) or not isinstance(layer, int)]
    wrong += [layer for layer in layers if layer not in wrong and not 0 <= layer < number]
    if wrong:
        raise SurgeryError(f"There is no layer {wrong[0]!r}: {model.name} has {number} layers, 0 to {number - 1}.")
    if not layers:
        raise SurgeryError("No layer would be left; keep at least one.")
    if len(set(layers)) < len(layers):
        raise SurgeryError(f"A layer is there twice in {list(layers)}; name each once.")
    sizes = model.network.config.get_text_config()
    if getattr(sizes, "scale_attn_by_inverse_layer_idx", False):
        raise SurgeryError(
            f"The layers of {model.name} scale attention by their number and can't move up; remove their attention "
            "and MLP instead."
        )
    prefix = layers_path(model)
    inside = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.+)")
    tensors = {}
    for place, tensor in (parameters_of(model.network.module) | dict(changed or {})).items():
        match = inside.fullmatch(place)
        if match is None:
            tensors[place] = tensor
        elif int(match[1]) in layers:
            tensors[f"{prefix}.{list(layers).index(int(match[1]))}.{match[2]}"] = tensor
    config: dict[str, Any] = {"num_hidden_layers": len(layers)}
    for key, value in sizes.to_dict().items():  # such as layer_types
        if isinstance(value, list | tuple) and len(value) == number and hasattr(sizes, key):
            config[key] = [value[layer] for layer in layers]
    return tensors, config


def edit_hash(step: Mapping[str, Any]) -> str:
    """SHA-256 of what was done, in hex."""
    try:
        return hashlib.sha256(json.dumps(step, sort_keys=True, allow_nan=False).encode()).hexdigest()
    except (TypeError, ValueError) as error:
        raise SurgeryError(f"What was done has to be plain data that JSON can hold ({error}).") from error
