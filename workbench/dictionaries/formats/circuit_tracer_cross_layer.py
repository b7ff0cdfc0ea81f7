"""Cross-layer transcoders of circuit-tracer: `config.yaml`, and files `W_enc_N` and `W_dec_N` for each layer.

Encoders and decoders stay in their files and in the type that they have there: encoders are looked at once, a few MiB
at a time, and decoder rows where they are used. Names of hook points are those of TransformerLens inside a block.

Source: https://github.com/safety-research/circuit-tracer, `circuit_tracer/utils/hf_utils.py`,
`circuit_tracer/transcoder/cross_layer_transcoder.py` (0.5.0).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.files import replacing
from workbench.core.forms import as_form, read_text
from workbench.core.type_words import shown
from workbench.core.yaml_text import parse_yaml
from workbench.dictionaries.cross_layer_files import assembled, look_at, mapped
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.protocol import JOIN, Dictionary

TITLE = "circuit-tracer (cross-layer)"
CONFIG = "config.yaml"
FILES = (CONFIG, "W_enc_*.safetensors", "W_dec_*.safetensors")
KIND = "cross_layer_transcoder"
_ENCODER = re.compile(r"W_enc_(0|[1-9][0-9]{0,5})\.safetensors")
_HOOK = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_BLOCK = re.compile(r"blocks\.(\d{1,6})\.(.+)")
RENAMED = {"hook_mlp_in": "ln2.hook_in"}
"""Names that TransformerLens computes only on demand, and those under which it always computes the same tensor."""


@with_config(ConfigDict(extra="allow"))
class Config(TypedDict):
    """The fields of `config.yaml` that decide."""

    model_kind: str
    feature_input_hook: str
    feature_output_hook: str
    model_name: NotRequired[str | None]


def matches(path: Path) -> bool:
    """Whether a folder holds an encoder of a layer."""
    return path.is_dir() and bool(_layers(path))


def read(path: Path) -> Dictionary:
    """The transcoder of all layers.

    Raises:
        DictionaryError: a layer is missing, a file is damaged, or a tensor does not fit. The message does not name the
            folder.
    """
    config, there = _config(path), _layers(path)
    for number in range(len(there)):
        if number not in there:
            raise DictionaryError(f"W_enc_{number}.safetensors is missing: a transcoder has every layer from 0 on")
    made = assembled([_layer(path, number) for number in range(len(there))])
    made.reads, made.writes = (
        JOIN.join(_place(hook, layer) for layer in there)
        for hook in (config["feature_input_hook"], config["feature_output_hook"])
    )
    if model := config.get("model_name"):
        made.provenance["model_name"] = model
    return made


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a cross-layer transcoder into a folder, whole.

    Raises:
        DictionaryError: another kind, one with a skip path, or one of other hook points than one of each layer from 0
            on; or the folder can't be written.
    """
    clt: Any = dictionary
    if dictionary.kind != KIND:
        raise DictionaryError(
            f"{dictionary.name} is of the kind {dictionary.kind}, and this format is for cross-layer transcoders; save "
            "it in another."
        )
    if clt.skip:
        raise DictionaryError(f"{dictionary.name} has a skip path, which files of circuit-tracer don't hold.")
    about = {"model_name": str(dictionary.provenance.get("model_name") or ""), "model_kind": KIND}
    about |= {"feature_input_hook": _hook(dictionary, dictionary.read_points)}
    about |= {"feature_output_hook": _hook(dictionary, dictionary.write_points), "scan": dictionary.name}
    thresholds: list[Any] = [part.threshold for part in clt.activations]
    jumps = any(bool(one.any()) for one in thresholds)
    with replacing(folder, DictionaryError) as new:
        new.mkdir()
        (new / CONFIG).write_text(
            "".join(f"{name}: {json.dumps(value)}\n" for name, value in about.items()), encoding="utf-8"
        )
        for layer in range(clt.layers):
            own = {
                "W_enc": clt.W_enc_T[layer],
                "b_enc": clt.b_enc[layer],
                "b_dec": clt.b_dec[layer],
            }
            own |= {"threshold": thresholds[layer]} if jumps else {}
            save_file(_named(own, layer), new / f"W_enc_{layer}.safetensors")
            save_file(_named({"W_dec": clt.W_dec[layer]}, layer), new / f"W_dec_{layer}.safetensors")


def _named(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    """The tensors of a layer by their names in its file."""
    return {f"{name}_{layer}": one.detach().cpu().contiguous() for name, one in tensors.items()}


def _hook(dictionary: Dictionary, points: tuple[str, ...]) -> str:
    """What the names of hook points have behind their block, the same for every layer from 0 on."""
    found = [_BLOCK.fullmatch(point) for point in points]
    names = {one[2] for one in found if one is not None}
    if len(names) != 1 or [one and int(one[1]) for one in found] != list(range(len(points))):
        raise DictionaryError(
            f"{dictionary.name} is at {' + '.join(points) or 'no hook points'}, and circuit-tracer has one hook point "
            "of each layer from 0 on."
        )
    return names.pop()


def _layers(folder: Path) -> list[int]:
    """The layers of which there is an encoder, in order."""
    found = (_ENCODER.fullmatch(one.name) for one in folder.iterdir() if one.is_file())
    return sorted(int(one[1]) for one in found if one)


def _config(folder: Path) -> Config:
    """The configuration, in which everything that decides is stated."""
    complaint = f"its {CONFIG} is not circuit-tracer's"
    if not (folder / CONFIG).is_file():
        raise DictionaryError(f"it has no {CONFIG}, which says where it reads and writes; copy that file too")
    text = read_text(folder / CONFIG, DictionaryError, "a configuration")
    config = as_form(parse_yaml(text, DictionaryError, complaint), Config, DictionaryError, complaint)
    if config["model_kind"] != KIND:
        raise DictionaryError(
            f"its {CONFIG} says that it is a {shown(config['model_kind'])}, and its files are of a {KIND}"
        )
    return config


def _layer(folder: Path, layer: int) -> dict[str, Tensor]:
    """The tensors of a layer by their names without it; every value of the encoder is looked at once."""
    encoder, decoder = (folder / f"W_{side}_{layer}.safetensors" for side in ("enc", "dec"))
    needed = {f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")}
    tensors = mapped(encoder, needed, {f"threshold_{layer}"})
    look_at(encoder, tensors)
    tensors |= mapped(decoder, {f"W_dec_{layer}"})
    return {name.removesuffix(f"_{layer}"): one for name, one in tensors.items()}


def _place(hook: str, layer: int) -> str:
    """The hook point of a layer."""
    if not _HOOK.fullmatch(hook):
        raise DictionaryError(f"its {CONFIG} names the hook point {shown(hook)}, which is no name inside a block")
    return f"blocks.{layer}.{RENAMED.get(hook, hook)}"
