"""Children: models whose weights were changed.

A child has tensors of its own only where they differ from its parent's, and shares all others with it. Its modules are
those that plain transformers builds from its configuration, so `save_pretrained` writes an ordinary checkpoint. The
parent is never changed; to undo is to return to it.

Every operation ends in `make_child`:

    tensors = {"model.layers.3.mlp.down_proj.weight": new}
    child = make_child(parent, tensors, {"operation": "prune", "sparsity": 0.5})

Where layers are removed or the configuration changes, `keep_layers` and `config=` state it.
"""

from __future__ import annotations

import copy
import json
import platform
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.core.checks import checked
from workbench.core.display import Shown
from workbench.core.failures import explained
from workbench.core.files import is_empty, replacing
from workbench.core.hashing import file_hashes, values_fingerprint
from workbench.core.provenance import command_line
from workbench.corpus import Corpus
from workbench.interventions.saved import save_interventions
from workbench.model.grad_mode import lasting
from workbench.model.language_model import LanguageModel
from workbench.model.weights import CHECKPOINT_FILES, buffers_of, identity, state_of, write_module
from workbench.surgery.certificate.certificate import certify
from workbench.surgery.certificate.record import JSON, MARKDOWN, Certificate
from workbench.surgery.child_building import (
    SurgeryError,
    build,
    changed_config,
    check_checkpoint,
    complete,
    keep_rounded,
    parameter_shapes,
)
from workbench.surgery.notes import FORMAT, NOTE, edit_hash, sealed, with_current_names

BESIDE = "interventions.json"
"""File of the edits that weights can't hold and that run with the model."""
PATTERNS = (*CHECKPOINT_FILES, BESIDE, JSON, MARKDOWN)
"""Names of the files of a saved child, besides its note."""

CUSTOM = "custom"
"""Key of `model.about`: why plain transformers can't hold a model whose modules differ from its configuration."""


@dataclass(eq=False)
class Child(Shown):
    """A changed model.

    A child's `model` keeps its parent in memory, and so the model of every earlier step with that step's own tensors
    (equal tensors are shared), even where the child itself is no longer held.

    Attributes:
        model: the changed model, ready to run.
        parent: the model before the last step, unchanged.
        own: names of the tensors that are not the parent's.
        history: the steps from the first parent on, as plain data; the last step made this child.
        reference: interventions under which the parent computes the same as the child; empty where there are none.
        beside: interventions that are part of the change and that weights can't hold; they run with the model.
        certificate: the last measurement of the child; None before the first.
        before: the child whose model is the parent; None if the parent is no child's model.
    """

    model: LanguageModel
    parent: LanguageModel
    own: tuple[str, ...] = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    reference: tuple[Any, ...] = ()
    beside: tuple[Any, ...] = ()
    certificate: Certificate | None = None
    before: Child | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.before = child_of(self.parent)
        rest = {one.name: getattr(self, one.name) for one in fields(self) if one.init and one.name != "model"}
        _ORIGINS[self.model] = _Origin(weakref.ref(self), type(self), rest)

    def certify(self, corpus: Corpus | None = None, tokens: int = 2048, **how: Any) -> Certificate:
        """Measure exactness and costs on held-out text; see `certificate.certify` for the settings."""
        self.certificate = certify(self, corpus, tokens, **how)
        return self.certificate

    def undo(self) -> LanguageModel:
        """The parent, with exactly the weights that the child was made from.

        Raises:
            SurgeryError: the parent's weights were changed since.
        """
        if identity(self.parent.network.module) != self.parent.held_hash:
            raise SurgeryError(
                f"The weights of {self.parent.name} were changed since this child was made, so it can't be undone; "
                "load the parent again."
            )
        return self.parent

    @checked(SurgeryError)
    def save_pretrained(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face checkpoint, whole or not at all.

        Plain transformers opens the checkpoint before it takes its place. Of weights below 1 GiB it holds a copy
        meanwhile; larger ones are read from the files one by one, compared, and shared.
        Beside its files stand the steps (`surgery.json`), the certificate as `certificate.md` and `.json`, and
        `interventions.json` where there are edits that weights can't hold. A missing certificate is made first, with
        the settings that `certify` has by default.

        Args:
            folder: a new or an empty folder, or one that holds such a checkpoint, which is replaced.

        Raises:
            SurgeryError: the folder holds something else, or can't be written; plain transformers opens the checkpoint
                with other logits than the child's. What was in the folder stays as it was.
        """
        if not str(folder):
            raise SurgeryError("Name a folder to save to.")
        folder = Path(folder)
        with explained(folder, SurgeryError):
            if folder.exists() and not (folder / NOTE).exists() and not is_empty(folder):
                raise SurgeryError(f"{folder} is there already and holds no checkpoint of this kind; choose another.")
            if self.certificate is None:
                self.certify()
            with replacing(folder, SurgeryError, own=PATTERNS, note=NOTE) as temporary:
                temporary.mkdir()
                self._write(temporary)

    def _write(self, folder: Path) -> None:
        write_module(self.model.network.module, folder, SurgeryError)
        check_checkpoint(self.model, folder)
        if self.model.tokenizer is not None:
            self.model.tokenizer.save_pretrained(folder)
        if self.beside:
            save_interventions(folder / BESIDE, self.model, self.beside)
        if self.certificate is not None:
            (folder / JSON).write_text(json.dumps(self.certificate.to_dict(), indent=2))
            (folder / MARKDOWN).write_text(self.certificate.to_markdown())
        model = self.model
        note = {"format": FORMAT, "name": model.name, "hash": model.hash, "weights_hash": model.held_hash}
        note |= {"rounded_from": model.weights_hash} if model.rounded_hash else {}
        note |= {"files": files_of(folder), "history": self.history}
        (folder / NOTE).write_text(json.dumps(sealed(note), indent=2))

    def _facts(self) -> Mapping[str, object]:
        return {
            "model": self.model.name,
            "parent": self.parent.name,
            "steps": [step["operation"] for step in self.history],
            "own tensors": len(self.own),
            "beside": len(self.beside),
            "certificate": "not measured" if self.certificate is None else self.certificate.exactness(),
        }


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a saved child that decide what it is beside its weights, by name.

    Tensors are compared as they are read, whatever file they come from.
    """
    return file_hashes(folder, PATTERNS, ("*.safetensors", "*.safetensors.index.json", MARKDOWN))


@dataclass(frozen=True)
class _Origin:
    """A child without its model: what remains of it while only the model is held."""

    child: weakref.ref[Child]
    kind: type[Child]
    rest: Mapping[str, Any]


_ORIGINS: weakref.WeakKeyDictionary[LanguageModel, _Origin] = weakref.WeakKeyDictionary()
"""Of each child's model; an entry ends with its model, so neither holds the other."""


def child_of(model: LanguageModel) -> Child | None:
    """The child that a model belongs to: the same object while it is held, and after that a copy as it was made."""
    origin = _ORIGINS.get(model)
    if origin is None:
        return None
    return origin.child() or origin.kind(model, **origin.rest)


@lasting
def make_child(
    parent: LanguageModel | Child,
    tensors: Mapping[str, Tensor],
    step: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    name: str | None = None,
    seed: int | None = None,
    reference: tuple[Any, ...] = (),
    beside: tuple[Any, ...] = (),
) -> Child:
    """A model with other tensors in the named places.

    Args:
        parent: the model to change, or a child; it stays as it is.
        tensors: by the name of the parameter in the child's module (`parameters_of(child.model.network.module)`). A
            tensor that equals the parent's of this name is replaced by the parent's. One of the parent's own tensors
            may stand under another name; it is shared.
        step: the change as plain data (JSON); `step["operation"]` is the operation's name.
        config: values of the configuration that change; they decide the child's module.
        tokenizer: the child's Hugging Face tokenizer; the parent's without it.
        name: of the child; by default the name of the model at the start with all operations in brackets.
        seed: recorded with the step.
        reference, beside: see `Child`.

    Raises:
        SurgeryError: a parent with dictionaries of its own or with modules that its configuration does not state; a
            tensor without a place in the child, of another shape, or with values that are not finite; a missing one.
    """
    parent = parent.model if isinstance(parent, Child) else parent
    if parent.splices:
        raise SurgeryError(
            f"{parent.name} runs through dictionaries, which an ordinary checkpoint can't hold; operate on the model "
            "without them."
        )
    if CUSTOM in parent.about:
        raise SurgeryError(f"{parent.about[CUSTOM].rstrip('.')}; this operation would lose it, so do it first.")
    old = state_of(parent.network.module)
    kind, settings = type(parent.network.module), changed_config(parent, config or {})
    new, own = complete(parameter_shapes(kind, settings), old, tensors)
    module = build(kind, settings, new)
    keep_rounded(module, parent.network.module)
    module.generation_config = copy.deepcopy(getattr(parent.network.module, "generation_config", None))
    earlier = with_current_names(parent.about.get("surgery", []))
    start = earlier[0]["parent"]["name"] if earlier else parent.name
    title = name or f"{start} ({', '.join(str(one['operation']) for one in [*earlier, step])})"
    held = identity(module)
    model = LanguageModel(module, parent.tokenizer if tokenizer is None else tokenizer, title, held)
    model.take_hash(held, parent)
    record = {
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
    if buffers := buffers_of(module):
        record["buffers"] = values_fingerprint(buffers)
    history = [*earlier, json.loads(json.dumps(record))]
    model.about = parent.about | {"surgery": history}
    return Child(model, parent, own, history, reference, beside)
