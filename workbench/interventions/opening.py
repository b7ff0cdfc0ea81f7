"""Opening of models, and saving of models that always run through dictionaries, such as codebook models.

model/            an ordinary Hugging Face folder of the model without its dictionaries; left out for the default model
dictionaries/0/   one folder for each dictionary
spliced.json      the hook point and hash of each dictionary, and the hashes of the whole
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from torch import nn
from typing_extensions import TypedDict

from workbench.core.checks import checked
from workbench.core.failures import explained
from workbench.core.files import is_empty, replacing
from workbench.core.forms import read_json
from workbench.core.paths import check_links, is_plain_name
from workbench.core.progress import Progress
from workbench.core.shipped import shipped
from workbench.core.steady import read_steadily
from workbench.core.type_words import shown
from workbench.dictionaries.folder import CONFIG, WEIGHTS
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.protocol import Dictionary
from workbench.model.adapters import is_adapter, read_adapted
from workbench.model.default_model import DEFAULT_MODEL, default_hash, read_default
from workbench.model.grad_mode import lasting
from workbench.model.identity import spliced_identity
from workbench.model.language_model import LanguageModel
from workbench.model.weights import CHECKPOINT_FILES, ModelError, check_kind, identity, read_huggingface, write_module

FORMAT = 2
"""Format 1 has no hashes of the dictionaries, and hashes of models that leave out settings and tokenizer."""
NOTE = "spliced.json"


class Note(TypedDict):
    """The content of `spliced.json`."""

    format: int
    hook_points: dict[str, str]
    """By hook point, the name of the dictionary's folder in `dictionaries/`."""
    name: str
    hash: str
    """Of the model with its dictionaries."""
    plain_hash: str
    """Of the model without them."""
    former_hash: NotRequired[str]
    dictionaries: NotRequired[dict[str, str]]
    """Hashes by the name of the folder."""
    about: NotRequired[dict[str, Any] | None]


def bundled_models() -> list[str]:
    """The names of the codebook models that come with Workbench."""
    return list(_shipped())


def _shipped() -> dict[str, Path]:
    return shipped("models", f"*/{NOTE}")


@checked(ModelError)
@lasting
def load_model(
    source: str | Path | nn.Module | None = None,
    *,
    tokenizer: Any = None,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> LanguageModel:
    """A language model.

    Opening a folder runs no code of it, unpickles nothing, fetches nothing and reads nothing outside of it.

    Args:
        source: None for SmolLM2-135M-Instruct; a Hugging Face name; a folder; the folder of a model that runs through
            dictionaries, or the name of one that comes with Workbench; the folder of a LoRA adapter of PEFT, which is
            merged into the base model that it names (`about["adapter"]` says so; `save_model` saves the merged model);
            or a loaded Hugging Face model, which is left as it is and shares its weights.
        tokenizer: of a loaded model.
        base: of an adapter, the name or folder of its base model; without it the base that the adapter names is opened
            if it is on this machine: by name, or inside the folder of the adapter or that of the process.
        trust_remote_code: run the code that a model brings, as transformers means it.
        progress: called with the share done and a word on what is being done while the default model is fetched and
            converted.

    Raises:
        ModelError: there is no such model, no network to fetch it, or no adapter in TransformerLens; it brings code
            without which it can't be opened, weights other than safetensors, or links out of its folder.
        DictionaryError: a damaged dictionary of a model that runs through some.
    """
    if isinstance(source, str) and not os.path.exists(source) and (folder := _shipped().get(source)):
        return _open(folder, source)
    if isinstance(source, str | Path) and os.path.exists(os.path.join(source, NOTE)):  # False where there is no access
        folder = Path(source)
        return read_steadily(lambda: _open(folder, str(source)), (folder, folder / NOTE), ModelError)
    if source is None or source == DEFAULT_MODEL:
        module, tokenizer, hash = read_default(progress)
        return LanguageModel(module, tokenizer, DEFAULT_MODEL, hash)
    if isinstance(source, nn.Module):
        if not hasattr(source, "config") or not hasattr(source, "get_output_embeddings"):
            raise ModelError(
                "This module is not a Hugging Face causal language model; load one with transformers first."
            )
        name = getattr(source.config, "_name_or_path", "") or type(source).__name__
        check_kind(name, source.config)
        return LanguageModel(source, tokenizer, name, identity(source))
    about: dict[str, Any] = {}
    if base is not None and not is_adapter(source):
        raise ModelError(f"{source} is no folder of an adapter, so it has no base; leave base out.")
    if is_adapter(source):
        module, tokenizer, hash, about["adapter"] = read_adapted(Path(source), base)
    else:
        module, tokenizer, hash = read_huggingface(str(source), trust_remote_code=trust_remote_code)
    model = LanguageModel(module, tokenizer, str(source), hash)
    model.about = about
    return model


@checked(ModelError)
def save_model(model: LanguageModel, path: str | Path, *, half: bool = False) -> None:
    """Write a model with the dictionaries that it runs through to a folder, whole or not at all.

    Args:
        model: with or without dictionaries.
        path: a new or an empty folder; an older one of this kind is replaced.
        half: keep 16 bits of each weight of the dictionaries.

    Raises:
        ModelError: the folder holds something else, or can't be written.
    """
    path = Path(path)
    with explained(path, ModelError):
        other = path.exists() and not (path / NOTE).exists() and not is_empty(path)
    if other:
        raise ModelError(f"{path} is there already and is no model that was saved with save_model; choose another.")
    if not all(isinstance(one, Dictionary) for one in model.splices.values()):
        raise ModelError(f"{model.name} leaves out neurons; save the model without that, and its thresholds beside it.")
    with replacing(path, ModelError, own=(*CHECKPOINT_FILES, CONFIG, WEIGHTS), note=NOTE) as temporary:
        temporary.mkdir()
        if not _is_default(model):
            write_module(model.network.module, temporary / "model", ModelError)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(temporary / "model")
        hook_points: dict[str, str] = {}
        hashes: dict[str, str] = {}
        for number, (name, dictionary) in enumerate(model.splices.items()):
            assert isinstance(dictionary, Dictionary)
            place = temporary / "dictionaries" / str(number)
            dictionary.write(place, half=half)
            hook_points[name] = str(number)
            hashes[name] = (load_dictionary(place) if half else dictionary).hash  # 16 bits make it another
        note: Note = {
            "format": FORMAT,
            "hook_points": hook_points,
            "name": model.name,
            "hash": spliced_identity(model.plain_hash, hashes),
            "about": model.about,
            "plain_hash": model.plain_hash,
            "former_hash": model.former_hash,
            "dictionaries": {hook_points[name]: hash for name, hash in hashes.items()},
        }
        (temporary / NOTE).write_text(json.dumps(note, indent=2))


def _open(folder: Path, name: str) -> LanguageModel:
    """The model in a folder that `save_model` wrote."""
    for place in (folder, folder / "dictionaries"):
        check_links(place, ModelError)
    note = read_json(folder / NOTE, Note, ModelError, "the note of a model that runs through dictionaries")
    if note["format"] not in (1, FORMAT):
        raise ModelError(f"{folder} is in format {note['format']}, and this version reads formats 1 to {FORMAT}.")
    for inside in note["hook_points"].values():
        if not is_plain_name(inside):
            raise ModelError(
                f"{folder / NOTE} names a dictionary outside its own folder, {shown(inside)}; copy it again."
            )
    own = folder / "model" if (folder / "model").exists() else None
    if own is None and not default_hash() and folder not in _shipped().values():
        raise ModelError(
            f"{folder} runs on {DEFAULT_MODEL}, which is not on this machine, and nothing is fetched because a folder "
            "needs it; open that model once with wb.load_model()."
        )
    model = load_model(own)
    if not model.is_named(note["plain_hash"]):
        raise ModelError(
            f"{folder} was made for a model of the hash {note['plain_hash'][:12]}, not {model.hash[:12]}; copy it "
            "again."
        )
    model.name, model.about = name, note.get("about") or {}
    dictionaries = {
        point: load_dictionary(folder / "dictionaries" / inside) for point, inside in note["hook_points"].items()
    }
    model.splices = dictionaries
    _check_hashes(folder, note, model, dictionaries)
    model.bind([])  # raises here
    return model


def _check_hashes(folder: Path, note: Note, model: LanguageModel, dictionaries: Mapping[str, Dictionary]) -> None:
    """Refuse a model whose dictionaries are not those on record; the hash of an old record becomes its former one."""
    if note["format"] == 1:
        model.former_hash = note["hash"]
        return
    recorded = note.get("dictionaries", {})
    for point, inside in note["hook_points"].items():
        if dictionaries[point].hash != recorded.get(inside):
            raise ModelError(
                f"{folder / 'dictionaries' / inside} is not the dictionary that was saved with the model; copy the "
                "whole folder again."
            )
    if model.hash != note["hash"]:
        raise ModelError(f"{folder} is not the model that was saved there: its parts are others; copy it again.")
    model.former_hash = note.get("former_hash", "")


def _is_default(model: LanguageModel) -> bool:
    """Whether opening the default model gives this one, without its dictionaries."""
    return model.weights_hash == default_hash() and model.plain_hash == load_model().plain_hash
