"""Opening of models, and saving of models that always run through dictionaries, such as codebook models.

model/            an ordinary Hugging Face folder of the model without its dictionaries; left out for the default model
dictionaries/0/   one folder for each dictionary
spliced.json      the hook point and hash of each dictionary, and the hashes of the whole
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired

import torch
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
from workbench.model.gguf_files import is_gguf, read_gguf
from workbench.model.grad_mode import lasting
from workbench.model.identity import spliced_identity
from workbench.model.language_model import LanguageModel
from workbench.model.placing import AUTO, chosen_device, chosen_dtype, parted, placed
from workbench.model.reading import Opened, check_kind, read_huggingface
from workbench.model.weights import CHECKPOINT_FILES, ModelError, identity, write_module

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
    weights_hash: NotRequired[str]
    """Of the values that those in `model/` were rounded from; only where they were rounded."""
    rounded_hash: NotRequired[str]
    """Of the values in `model/`; only where they were rounded."""
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
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
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
            a GGUF file, or the first one of several (docs/gguf.md says which are read); or a loaded Hugging Face
            model, which is left as it is and shares its weights.
        device: where the model computes, as torch writes it ("cuda:1"); "auto" is CUDA, else MPS, else the processor.
        dtype: the type of its weights and activations, such as "bfloat16"; "auto" is the checkpoint's own type on an
            accelerator, and float32 on the processor. A loaded model keeps its device and its type unless others are
            named. `model.hash` is that of the checkpoint's values on every device and in every type.
        tokenizer: of a loaded model, or in place of that of a name, folder or file; not for the default model and for
            models that run through dictionaries.
        base: of an adapter, the name or folder of its base model; without it the base that the adapter names is opened
            if it is on this machine: by name, or inside the folder of the adapter or that of the process.
        trust_remote_code: run the code that a model brings, as transformers means it.
        progress: called with the share done and a word on what is being done while the default model is fetched and
            converted, or a GGUF file converted.

    Raises:
        ModelError: there is no such model, no network to fetch it, or no adapter in TransformerLens; it brings code
            without which it can't be opened, weights other than safetensors, or links out of its folder; the device is
            not there, can't compute in the type, or has too little memory for it.
        DictionaryError: a damaged dictionary of a model that runs through some.
    """
    if base is not None and (not isinstance(source, str | Path) or not is_adapter(source)):
        raise ModelError(f"{_called(source)} is no folder of an adapter, so it has no base; leave base out.")
    if isinstance(source, nn.Module):
        return _of_module(source, tokenizer, device, dtype)
    place = chosen_device(device, ModelError)
    if isinstance(source, str) and not os.path.exists(source) and (folder := _shipped().get(source)):
        _check_own(source, tokenizer)
        return _open(folder, source, place, dtype)
    if isinstance(source, str | Path) and os.path.exists(os.path.join(source, NOTE)):  # False where there is no access
        _check_own(source, tokenizer)
        folder = Path(source)
        return read_steadily(lambda: _open(folder, str(source), place, dtype), (folder, folder / NOTE), ModelError)
    if source is None or source == DEFAULT_MODEL:
        _check_own(DEFAULT_MODEL, tokenizer)
        return _model(read_default(place, dtype, progress), DEFAULT_MODEL)
    if is_adapter(source):
        opened, merged = read_adapted(Path(source), place, dtype, base)
        return _model(_with(opened, tokenizer), str(source), {"adapter": merged})
    if is_gguf(source):
        opened = read_gguf(Path(source), place, dtype, tokenizer, progress)
    else:
        opened = read_huggingface(str(source), place, dtype, trust_remote_code=trust_remote_code)
    return _model(_with(opened, tokenizer), str(source))


def _called(source: str | Path | nn.Module | None) -> str:
    return type(source).__name__ if isinstance(source, nn.Module) else str(source or DEFAULT_MODEL)


def _check_own(source: str | Path, tokenizer: Any) -> None:
    """Refuse another tokenizer for a model whose hash says that it has its own."""
    if tokenizer is not None:
        raise ModelError(f"{source} has a tokenizer of its own, which is part of the model; leave tokenizer out.")


def _with(opened: Opened, tokenizer: Any) -> Opened:
    """What was opened, with another tokenizer where one is given."""
    return opened if tokenizer is None else replace(opened, tokenizer=tokenizer)


def _model(opened: Opened, name: str, about: dict[str, Any] | None = None) -> LanguageModel:
    """A language model of what was opened."""
    model = LanguageModel(opened.module, opened.tokenizer, name, opened.weights_hash)
    model.rounded_hash, model.about = opened.rounded_hash, about or {}
    return model


def _of_module(source: Any, tokenizer: Any, device: str | torch.device, dtype: str | torch.dtype) -> LanguageModel:
    """A language model of a loaded module."""
    if not hasattr(source, "config") or not hasattr(source, "get_output_embeddings"):
        raise ModelError("This module is not a Hugging Face causal language model; load one with transformers first.")
    name = getattr(source.config, "_name_or_path", "") or type(source).__name__
    check_kind(name, source.config)
    place = None if device == AUTO else chosen_device(device, ModelError)
    kind = None if dtype == AUTO else chosen_dtype(dtype, place or source.device, source.dtype, ModelError)
    module, hash = placed(source, place, kind, ModelError), identity(source)
    rounded = "" if module is source or module.dtype == source.dtype else identity(module)
    return _model(Opened(module, tokenizer, hash, "" if rounded == hash else rounded), name)


@checked(ModelError)
def save_model(model: LanguageModel, path: str | Path, *, half: bool = False) -> None:
    """Write a model with the dictionaries that it runs through to a folder, whole or not at all.

    Args:
        model: with or without dictionaries.
        path: a new or an empty folder; an older one of this kind is replaced.
        half: keep 16 bits of each weight of the dictionaries.

    Raises:
        ModelError: the folder holds something else, or can't be written; the model is sharded over processes.
    """
    path = Path(path)
    if model.network.processes is not None:
        raise ModelError(f"{model.name} {parted(model.network.module)}; save it with its own save_pretrained.")
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
        if model.rounded_hash and (temporary / "model").exists():
            note["weights_hash"], note["rounded_hash"] = model.weights_hash, model.rounded_hash
        (temporary / NOTE).write_text(json.dumps(note, indent=2))


def _open(folder: Path, name: str, device: torch.device, dtype: str | torch.dtype) -> LanguageModel:
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
    model = load_model(own, device=device, dtype=dtype)
    if rounded := note.get("rounded_hash"):
        _restore_hash(folder, note, model, rounded)
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


def _restore_hash(folder: Path, note: Note, model: LanguageModel, rounded: str) -> None:
    """Give a model whose folder holds its values rounded the hash of those that it was rounded from."""
    if model.weights_hash != rounded:
        raise ModelError(f"The weights in {folder} are not those that were saved there; copy the whole folder again.")
    model.rounded_hash, model.weights_hash = model.rounded_hash or rounded, note.get("weights_hash", rounded)
    model.former_hash = model.weights_hash


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
