"""Children from the folders that `save_pretrained` wrote."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from workbench.core.checks import checked
from workbench.core.hashing import first_difference, values_fingerprint
from workbench.core.steady import read_steadily
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.saved import load_interventions
from workbench.model.grad_mode import lasting
from workbench.model.language_model import LanguageModel
from workbench.model.reading import read_huggingface
from workbench.model.weights import ModelError, buffers_of, state_of
from workbench.surgery.certificate.record import JSON, read_certificate
from workbench.surgery.child import BESIDE, Child, files_of
from workbench.surgery.child_building import SurgeryError, among, build
from workbench.surgery.notes import NOTE, Note, read_note

_log = logging.getLogger("workbench")


@checked(SurgeryError)
@lasting
def open_child(folder: str | Path, parent: LanguageModel | Child, dictionaries: Sequence[Dictionary] = ()) -> Child:
    """A child from the folder that `save_pretrained` wrote; it shares with its parent the tensors that are equal.

    Without the parent, `wb.load_model(folder)` opens the same model, except for interventions beside it.

    Args:
        folder: of the checkpoint.
        parent: the model at the start or after any later step; a child stands for its model.
        dictionaries: those whose features are named in the interventions beside the checkpoint.

    A folder of an older version, whose note has no hashes of its configuration and tokenizer, is opened, and a warning
    says so.

    Raises:
        SurgeryError: the folder is no such folder, is damaged or altered (weights, configuration, generation settings,
            tokenizer, edits beside it, certificate), or was made from another parent.
        DictionaryError, EditError: the interventions beside it can't be read.
    """
    place, above = Path(folder), parent.model if isinstance(parent, Child) else parent
    return read_steadily(lambda: _open(place, above, dictionaries), (place, place / NOTE), SurgeryError)


def _open(folder: Path, parent: LanguageModel, dictionaries: Sequence[Dictionary]) -> Child:
    note = read_note(folder)
    ancestors = [step["parent"] for step in note["history"]]
    if not any(parent.is_named(one["hash"]) for one in ancestors):
        raise SurgeryError(
            f"{folder} was made from {ancestors[0]['name']} ({ancestors[0]['hash'][:12]}), not from {parent.name} "
            f"({parent.hash[:12]}); open that model first."
        )
    _check_files(folder, note)
    try:
        opened = read_huggingface(str(folder), parent.device, parent.dtype)
    except ModelError as error:
        raise SurgeryError(str(error)) from error
    module, tokenizer, hash = opened.module, opened.tokenizer, opened.weights_hash
    if hash != note.get("weights_hash", note["hash"]):
        raise SurgeryError(f"The weights in {folder} are not those that were saved there; copy the folder again.")
    buffers = buffers_of(module)
    found = values_fingerprint(buffers)
    if not opened.rounded_hash and found != note["history"][-1].get("buffers", found):
        raise SurgeryError(f"The buffers in {folder} are not those that were saved there; copy the folder again.")
    old = state_of(parent.network.module)
    tensors = {place: among(old, place, tensor) for place, tensor in state_of(module).items()}
    own = tuple(place for place, (_, shared) in tensors.items() if not shared)
    shared = build(type(module), module.config, {place: tensor for place, (tensor, _) in tensors.items()})
    shared.generation_config = module.generation_config
    model = LanguageModel(shared, tokenizer, note["name"], note.get("rounded_from", hash))
    model.rounded_hash = opened.rounded_hash or (hash if "rounded_from" in note else "")
    if "files" in note and model.hash != note["hash"]:
        _log.warning(
            "The files in %s are those that were saved, but transformers makes another configuration or tokenizer of "
            "them than the child had.",
            folder,
        )
        model.plain_hash = note["hash"]  # the files are the saved ones, and records of the child name this hash
    history = [dict(step) for step in note["history"]]
    model.about = parent.about | {"surgery": history}
    beside = load_interventions(folder / BESIDE, model, dictionaries) if (folder / BESIDE).exists() else ()
    return Child(model, parent, own, history, (), tuple(beside), read_certificate(folder / JSON))


def _check_files(folder: Path, note: Note) -> None:
    """Refuse a folder whose files beside the weights are not those on record; say where there is no record."""
    if "files" not in note:
        _log.warning(
            "%s was saved by an older version, whose note has no hashes of its configuration and tokenizer: whether "
            "these are as they were saved is not known.",
            folder,
        )
    elif wrong := first_difference(note["files"], files_of(folder)):
        raise SurgeryError(
            f"{folder} is not what was saved there ({wrong}), so its certificate does not hold; copy the folder again, "
            "or open it as an ordinary model with load_model."
        )
