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
from typing import NotRequired

import torch
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.files import replacing
from workbench.core.forms import as_form, read_text
from workbench.core.hashing import HALVES
from workbench.core.tensor_files import file_fingerprint
from workbench.core.type_words import shown
from workbench.core.yaml_text import parse_yaml
from workbench.dictionaries.cross_layer import CrossLayerTranscoder
from workbench.dictionaries.folder import DictionaryError, check_finite
from workbench.dictionaries.protocol import JOIN, Dictionary

TITLE = "circuit-tracer, cross-layer"
CONFIG = "config.yaml"
FILES = (CONFIG, "W_enc_*.safetensors", "W_dec_*.safetensors")
KIND = "cross_layer_transcoder"
TYPES = (*HALVES, torch.float32)
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
    config, count = _config(path), len(_layers(path))
    for number in range(count):
        if number not in _layers(path):
            raise DictionaryError(f"W_enc_{number}.safetensors is missing: a transcoder has every layer from 0 on")
    tensors: dict[str, Tensor] = {}
    biases: list[Tensor] = []
    for layer in range(count):
        encoder = _encoder(path, layer)
        decoder = _tensors(path / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}"}, frozenset())[f"W_dec_{layer}"]
        width, d = _matrix(encoder["W_enc"], f"W_enc_{layer}")
        first = tensors.setdefault("W_enc_T.0", encoder["W_enc"])
        for name, tensor, shape in (
            ("W_enc", encoder["W_enc"], tuple(first.shape)),
            ("b_enc", encoder["b_enc"], (width,)),
            ("b_dec", encoder["b_dec"], (d,)),
            ("threshold", encoder["threshold"], (width,)),
            ("W_dec", decoder, (width, count - layer, d)),
        ):
            if tuple(tensor.shape) != shape:
                raise DictionaryError(
                    f"{name}_{layer} has the shape {tuple(tensor.shape)}, and for {count} layers with W_enc "
                    f"{tuple(first.shape)} it is {shape}"
                )
        tensors |= {f"W_enc_T.{layer}": encoder["W_enc"], f"b_enc.{layer}": encoder["b_enc"].float()}
        tensors |= {f"W_dec.{layer}": decoder, f"activations.{layer}.threshold": encoder["threshold"].float()}
        biases.append(encoder["b_dec"].float())
    tensors["b_dec"] = torch.stack(biases)
    stated = {"d_in": tensors["b_dec"].numel(), "d_sae": count * len(tensors["b_enc.0"])}
    made = CrossLayerTranscoder.from_config(stated | {"workbench": {"settings": {"layers": count}}}, tensors)
    made.lazy = made.initialised = True
    made.reads, made.writes = (
        JOIN.join(_place(config[side], layer) for layer in range(count))
        for side in ("feature_input_hook", "feature_output_hook")
    )
    if config.get("model_name"):
        made.provenance["model_name"] = config["model_name"]
    return made


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a cross-layer transcoder into a folder, whole.

    Raises:
        DictionaryError: another kind, one with a skip path, or one of other hook points than one of each layer from 0
            on; or the folder can't be written.
    """
    if not isinstance(dictionary, CrossLayerTranscoder):
        raise DictionaryError(
            f"{dictionary.name} is of the kind {dictionary.kind}, and this format is for cross-layer transcoders; save "
            "it in another."
        )
    if dictionary.skip:
        raise DictionaryError(f"{dictionary.name} has a skip path, which files of circuit-tracer don't hold.")
    about = {"model_name": str(dictionary.provenance.get("model_name") or ""), "model_kind": KIND}
    about |= {"feature_input_hook": _hook(dictionary, dictionary.read_points)}
    about |= {"feature_output_hook": _hook(dictionary, dictionary.write_points), "scan": dictionary.name}
    thresholds = [part.threshold for part in dictionary.activations]
    jumps = any(bool(one.any()) for one in thresholds)
    with replacing(folder, DictionaryError) as new:
        new.mkdir()
        (new / CONFIG).write_text(
            "".join(f"{name}: {json.dumps(value)}\n" for name, value in about.items()), encoding="utf-8"
        )
        for layer in range(dictionary.layers):
            own = {
                "W_enc": dictionary.W_enc_T[layer],
                "b_enc": dictionary.b_enc[layer],
                "b_dec": dictionary.b_dec[layer],
            }
            own |= {"threshold": thresholds[layer]} if jumps else {}
            _save(own, layer, new / f"W_enc_{layer}.safetensors")
            _save({"W_dec": dictionary.W_dec[layer]}, layer, new / f"W_dec_{layer}.safetensors")


def _save(tensors: dict[str, Tensor], layer: int, file: Path) -> None:
    save_file({f"{name}_{layer}": one.detach().cpu().contiguous() for name, one in tensors.items()}, file)


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


def _layers(folder: Path) -> set[int]:
    return {int(found[1]) for one in folder.iterdir() if (found := _ENCODER.fullmatch(one.name)) and one.is_file()}


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


def _encoder(folder: Path, layer: int) -> dict[str, Tensor]:
    """The tensors of a layer's encoder file, by their names without the layer; every value is looked at once."""
    file = folder / f"W_enc_{layer}.safetensors"
    needed = {f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")}
    tensors = _tensors(file, needed, frozenset({f"threshold_{layer}"}))
    try:
        file_fingerprint(file, tensors, DictionaryError, lambda *one: check_finite(dict([one])))
    except OSError as error:
        raise _damaged(file, error) from error
    found = {name.removesuffix(f"_{layer}"): one for name, one in tensors.items()}
    threshold = found.setdefault("threshold", torch.zeros_like(found["b_enc"]))
    if bool((threshold < 0).any()):
        raise DictionaryError(f"a threshold of layer {layer} is below 0, so that latents have values below 0")
    return found


def _tensors(file: Path, needed: set[str], optional: frozenset[str]) -> dict[str, Tensor]:
    """The tensors of a file, mapped; refuses other names than these, and other numbers than floats."""
    try:
        with safe_open(file, "pt") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(file, error) from error
    for name in sorted(needed - found.keys()) or sorted(found.keys() - needed - optional):
        raise DictionaryError(f"{file.name} {'lacks' if name in needed else 'has an unknown tensor'} {shown(name)}")
    for name, tensor in found.items():
        if tensor.dtype not in TYPES:
            raise DictionaryError(
                f"{name} holds {tensor.dtype}, and weights are floating-point numbers of 16 or 32 bits"
            )
    return found


def _matrix(tensor: Tensor, name: str) -> tuple[int, int]:
    if tensor.ndim != 2 or not tensor.numel():
        raise DictionaryError(f"{name} has the shape {tuple(tensor.shape)}, and it is [latents, d_model]")
    return tensor.shape[0], tensor.shape[1]


def _damaged(file: Path, error: Exception) -> DictionaryError:
    if not file.exists():
        return DictionaryError(f"{file.name} is missing; copy that file too")
    return DictionaryError(f"{file.name} is damaged or cut short ({error}); copy it again")


def _place(hook: str, layer: int) -> str:
    """The hook point of a layer."""
    if not _HOOK.fullmatch(hook):
        raise DictionaryError(f"its {CONFIG} names the hook point {shown(hook)}, which is no name inside a block")
    return f"blocks.{layer}.{RENAMED.get(hook, hook)}"
