"""Folders of dictionary_learning: `ae.pt` and `config.json`, training runs of these, and files `ae.pt`, `ae_N.pt`.

`config.json` says the class; without one the names and shapes of the tensors do, where they can. `checkpoints/ae_N.pt`
has its configuration one folder up. The files are read as tensors and plain data, and never unpickled.

Of each class: what its own loader makes of the file. `AutoEncoder` gets decoder rows of norm 1, as there, unless they
have it. `BatchTopKSAE` and its matryoshka form are active above the threshold that they learned.

Source: https://github.com/saprmarks/dictionary_learning, `dictionary_learning/dictionary.py`, `utils.py`, `trainers/`
(0.1.0).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.forms import parse_json, read_text
from workbench.core.torch_files import read_torch
from workbench.core.type_words import shown
from workbench.dictionaries.dictionary_learning_classes import CLASSES, class_of, read_class
from workbench.dictionaries.dictionary_learning_writing import write_class
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.foreign import check_beside
from workbench.dictionaries.protocol import Dictionary

TITLE = "dictionary_learning"
WEIGHTS = "ae.pt"
CONFIG = "config.json"
FILES = (CONFIG, WEIGHTS)
CHECKPOINTS = "checkpoints"
_WEIGHTS = re.compile(r"ae(_[0-9]{1,12})?\.pt")
_PLACE = re.compile(r"(resid_post_layer_|resid_out_layer|mlp_out_layer|attn_out_layer)([0-9]{1,6})")
_HOOKS = {
    "resid_post_layer_": "hook_resid_post",
    "resid_out_layer": "hook_resid_post",
    "mlp_out_layer": "mlp.hook_out",
    "attn_out_layer": "attn.hook_out",
}
"""Names of places in the project's own scripts, each the output of a module of a layer, and our hook points."""


@with_config(ConfigDict(extra="allow"))
class Trainer(TypedDict):
    """What the trainer says; trainers differ in the rest, which decides nothing of what the dictionary computes."""

    dict_class: str
    k: NotRequired[Any]
    layer: NotRequired[Any]
    lm_name: NotRequired[Any]
    submodule_name: NotRequired[Any]


@with_config(ConfigDict(extra="allow"))
class Place(TypedDict):
    """Our own part: the hook points of a dictionary that was written here."""

    reads: str
    writes: str


@with_config(ConfigDict(extra="allow"))
class Config(TypedDict):
    """The content of `config.json`."""

    trainer: Trainer
    buffer: NotRequired[dict[str, Any] | None]
    workbench: NotRequired[Place]


def matches(path: Path) -> bool:
    """Whether it is a file of the name, or a folder with one or with folders with one."""
    if path.is_dir():
        return (path / WEIGHTS).is_file() or bool(parts(path))
    return bool(_WEIGHTS.fullmatch(path.name))


def parts(path: Path) -> list[Path]:
    """The folders of a run, `trainer_0` and so on; empty for a single dictionary."""
    if not path.is_dir() or (path / WEIGHTS).is_file():
        return []
    inner = [one for one in path.iterdir() if (one / WEIGHTS).is_file()]
    if path.name == CHECKPOINTS or not inner:
        inner = [one for one in path.iterdir() if one.is_file() and _WEIGHTS.fullmatch(one.name)]
    return sorted(inner, key=lambda one: [int(part) if part.isdigit() else -1 for part in re.split(r"(\d+)", one.name)])


def read(path: Path) -> Dictionary:
    """The dictionary in a folder or file.

    Raises:
        DictionaryError: a file is damaged or holds anything but tensors and plain data, the class is not known or does
            not fit the tensors, or what it computes depends on the batch. The message does not name the folder.
    """
    file = path / WEIGHTS if path.is_dir() else path
    tensors = _tensors(file)
    config = _config(file)
    stated = config["trainer"]["dict_class"] if config else None
    word = class_of(tensors) if stated is None else stated.rpartition(".")[2].strip("'<>")
    if word not in CLASSES:
        raise DictionaryError(f"its class is {shown(word)}, and these are known: {', '.join(sorted(CLASSES))}")
    if config is None:
        return read_class(word, tensors, file.name, k=None, across=False)
    across = (config.get("buffer") or {}).get("io") == "in_and_out"
    if "workbench" in config:
        across = config["workbench"]["reads"] != config["workbench"]["writes"]
    dictionary = read_class(word, tensors, file.name, k=config["trainer"].get("k"), across=across)
    _place(dictionary, config, across=across)
    return dictionary


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary as its trainers save one of the class that computes the same.

    Raises:
        DictionaryError: no class computes the same, or the folder can't be written.
    """
    write_class(dictionary, folder, FILES)


def _tensors(file: Path) -> dict[str, Tensor]:
    """The state of the dictionary."""
    content = read_torch(file, DictionaryError, f"its {file.name}")
    if isinstance(content, dict) and {"ae", "optimizer"} <= content.keys():
        raise DictionaryError(
            f"its {file.name} is the state of a training that has not ended, in other units than the dictionary; let "
            "it end, or take a file of its checkpoints"
        )
    if not isinstance(content, dict) or not all(isinstance(one, Tensor) for one in content.values()) or not content:
        raise DictionaryError(f"its {file.name} is no state of a dictionary: tensors by their names")
    return {str(name): tensor.detach() for name, tensor in content.items()}


def _config(file: Path) -> Config | None:
    """The configuration that belongs to a file of weights; None where there is none."""
    folder = file.parent.parent if file.parent.name == CHECKPOINTS else file.parent
    check_beside(folder / CONFIG)
    if not (folder / CONFIG).is_file():
        return None
    text = read_text(folder / CONFIG, DictionaryError, "a configuration")
    return parse_json(text, Config, DictionaryError, f"its {CONFIG} is not dictionary_learning's")


def _place(dictionary: Dictionary, config: Config, *, across: bool) -> None:
    """Set hook points and record as the configuration states them; what it does not say stays empty."""
    trainer = config["trainer"]
    dictionary.provenance = {"dictionary_learning": {name: trainer.get(name) for name in ("layer", "submodule_name")}}
    if isinstance(model := trainer.get("lm_name"), str) and model:
        dictionary.provenance["model_name"] = model
    if "workbench" in config:
        dictionary.reads, dictionary.writes = config["workbench"]["reads"], config["workbench"]["writes"]
        return
    found = _PLACE.fullmatch(str(trainer.get("submodule_name") or ""))
    io = (config.get("buffer") or {}).get("io", "out")
    if found and io == "out" and not across and str(trainer.get("layer", found[2])) == found[2]:
        dictionary.reads = dictionary.writes = f"blocks.{int(found[2])}.{_HOOKS[found[1]]}"
