"""Sets of transcoders of circuit-tracer: `config.yaml` and a file `layer_N.safetensors` for each layer.

A set is opened layer by layer; decoders in float32 stay in their files until they are used. With a threshold a layer is
a JumpReLU transcoder, without one a ReLU transcoder, and W_skip adds a linear path. Names of hook points are those of
TransformerLens inside a block.

Source: https://github.com/safety-research/circuit-tracer, `circuit_tracer/utils/hf_utils.py`,
`circuit_tracer/transcoder/single_layer_transcoder.py` (0.5.0).
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import NotRequired

from pydantic import ConfigDict, with_config
from safetensors.torch import save_file
from typing_extensions import TypedDict

from workbench.core.files import clear_leftovers, is_empty, replacing
from workbench.core.forms import as_form, read_text
from workbench.core.locks import alone
from workbench.core.paths import check_links
from workbench.core.type_words import shown
from workbench.core.yaml_text import parse_yaml
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.foreign import MATRICES, check_beside
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.remembered import hold_finite
from workbench.dictionaries.weights_file import check_names, check_shapes, matrix_of, names_in, read_weights

TITLE = "circuit-tracer"
CONFIG = "config.yaml"
FILES = (CONFIG, "layer_*.safetensors")
SET = "transcoder_set"
THRESHOLD = "activation_function.threshold"
NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}
OPTIONAL = frozenset({THRESHOLD, "W_skip"})
_LAYER = re.compile(r"layer_(0|[1-9][0-9]{0,5})\.safetensors")
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
    transcoders: NotRequired[list[str] | None]


def matches(path: Path) -> bool:
    """Whether a folder holds layers of a set, or its `config.yaml` says that it is one; or a file is a layer."""
    if not path.is_dir():
        return bool(_LAYER.fullmatch(path.name)) and ((path.parent / CONFIG).is_file() or names_in(path) >= NAMES)
    layers = _layers(path)
    if (path / CONFIG).is_file():
        config = _config(path, strict=False)
        return bool(layers) if config is None else config["model_kind"] == SET
    return bool(layers) and names_in(next(iter(layers.values()))) >= NAMES


def parts(path: Path) -> list[Path]:
    """The files of a set, in the order of the layers; empty for a file.

    Raises:
        DictionaryError: a layer is missing, or the set names files that are elsewhere.
    """
    if not path.is_dir():
        return []
    config = _config(path) if (path / CONFIG).is_file() else None
    layers = _layers(path)
    elsewhere = None if config is None else config.get("transcoders")
    if elsewhere:
        raise DictionaryError(f"its {CONFIG} names files elsewhere, such as {shown(elsewhere[0])}; open each")
    if not layers:
        raise DictionaryError(f"it has no layer_0.safetensors: its {CONFIG} stands alone")
    for number in range(max(layers) + 1):
        if number not in layers:
            raise DictionaryError(
                f"layer_{number}.safetensors is missing: the set goes up to layer {max(layers)}; copy that file too"
            )
    return [layers[number] for number in sorted(layers)]


def read(path: Path) -> Dictionary:
    """The transcoder of one layer.

    Raises:
        DictionaryError: the file is damaged, or a tensor does not fit. The message does not name the folder.
    """
    tensors = read_weights(path, MATRICES)
    check_names(tensors, path.name, NAMES, OPTIONAL)
    width, d = matrix_of(tensors, "W_enc", path.name)
    shapes = {"W_dec": (width, d), "b_enc": (width,), "b_dec": (d,), THRESHOLD: (width,), "W_skip": (d, d)}
    check_shapes(tensors, path.name, shapes, f"its W_enc {[width, d]}")
    threshold = tensors.pop(THRESHOLD, None)
    word = "skip_transcoder" if "W_skip" in tensors else "transcoder"
    if threshold is not None:
        if bool((threshold < 0).any()):
            raise DictionaryError(
                "a threshold is below 0, so that latents have negative values, which no kind here computes"
            )
        word, tensors["threshold"] = f"jumprelu_{word}", threshold
    tensors["W_enc"] = tensors["W_enc"].T
    stated = {"d_in": d, "d_out": d, "d_sae": width, "apply_b_dec_to_input": False}
    dictionary = Dictionary.kind_called(word).from_config(stated, tensors)
    hold_finite(dictionary, tensors)
    check_beside(path.parent / CONFIG)
    number = _LAYER.fullmatch(path.name)
    if number and (path.parent / CONFIG).is_file() and (config := _config(path.parent)) is not None:
        dictionary.reads = _place(config["feature_input_hook"], number[1])
        dictionary.writes = _place(config["feature_output_hook"], number[1])
        if model := config.get("model_name"):
            dictionary.provenance["model_name"] = model
    return dictionary


def write(dictionary: Dictionary, folder: Path) -> None:
    """Add a transcoder to the set in a folder, as the file of its layer; the first one writes `config.yaml` too.

    Raises:
        DictionaryError: the kind or its widths have no place in this format, it names no layer, or the set there is of
            other hook points or another model; or the folder can't be written.
    """
    layer, config = _stated(dictionary)
    own = {name: one.detach().cpu().contiguous() for name, one in dictionary.tensors().items()}
    own["W_enc"] = own["W_enc"].T.contiguous()
    if "threshold" in own:
        own[THRESHOLD] = own.pop("threshold")
    if not folder.exists() or is_empty(folder):
        with replacing(folder, DictionaryError) as new:
            new.mkdir()
            save_file(own, new / f"layer_{layer}.safetensors")
            (new / CONFIG).write_text(_yaml(config), encoding="utf-8")
        return
    if not (folder / CONFIG).is_file():
        raise DictionaryError(f"{folder} is there and has no {CONFIG} of a set of transcoders; choose another folder.")
    check_links(folder, DictionaryError)
    there = _config(folder)
    if there is None or any(there.get(name) != value for name, value in config.items()):
        raise DictionaryError(
            f"The set of transcoders in {folder} is of another model or other hook points; choose another."
        )
    file = folder / f"layer_{layer}.safetensors"
    if file.exists() and not NAMES <= names_in(file) <= NAMES | OPTIONAL:
        raise DictionaryError(f"{file} is no layer of a set of transcoders; choose another folder.")
    clear_leftovers(folder)  # of a killed process that began the set
    with alone(folder, DictionaryError), replacing(file, DictionaryError, owned=True) as new:
        save_file(own, new)


def _stated(dictionary: Dictionary) -> tuple[int, dict[str, str]]:
    """The layer of a transcoder, and the configuration of its set."""
    if dictionary.kind not in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        raise DictionaryError(
            f"{dictionary.name} is of the kind {dictionary.kind}, and sets of circuit-tracer hold transcoders with "
            "ReLU or JumpReLU; save it in another format."
        )
    if dictionary.d_in != dictionary.d_out or dictionary.config()["normalize_activations"] != "none":
        raise DictionaryError(
            f"{dictionary.name} has two widths or normalises its input, and circuit-tracer does neither."
        )
    reads, writes = _BLOCK.fullmatch(dictionary.reads), _BLOCK.fullmatch(dictionary.writes)
    if reads is None or writes is None or reads[1] != writes[1]:
        raise DictionaryError(
            f"{dictionary.name} reads at {dictionary.reads or 'no place'} and writes at "
            f"{dictionary.writes or 'no place'}, and a set of circuit-tracer needs two hook points of one layer; set "
            ".reads and .writes."
        )
    name = str(dictionary.provenance.get("model_name") or "")
    config = {"model_name": name, "model_kind": SET, "feature_input_hook": reads[2], "feature_output_hook": writes[2]}
    return int(reads[1]), config | {"scan": name or "workbench"}


def _yaml(config: dict[str, str]) -> str:
    """Texts by names; a text in JSON is one in YAML."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())


def _layers(folder: Path) -> dict[int, Path]:
    """The files of layers in a folder, by their number."""
    return {int(match[1]): one for one in folder.iterdir() if (match := _LAYER.fullmatch(one.name)) and one.is_file()}


def _config(folder: Path, *, strict: bool = True) -> Config | None:
    """The configuration of a set.

    Args:
        folder: with a `config.yaml`.
        strict: whether another form is an error; else it is None.

    Raises:
        DictionaryError: it is damaged, has tags or another form.
    """
    try:
        return _understood(read_text(folder / CONFIG, DictionaryError, "a configuration"))
    except DictionaryError:
        if strict:
            raise
        return None


@functools.lru_cache(maxsize=8)
def _understood(text: str) -> Config:
    """The configuration in a text, which every layer of a set asks for."""
    complaint = f"its {CONFIG} is not circuit-tracer's"
    return as_form(parse_yaml(text, DictionaryError, complaint), Config, DictionaryError, complaint)


def _place(hook: str, layer: str) -> str:
    """The hook point of a layer."""
    if not _HOOK.fullmatch(hook):
        raise DictionaryError(f"its {CONFIG} names the hook point {shown(hook)}, which is no name inside a block")
    return f"blocks.{int(layer)}.{RENAMED.get(hook, hook)}"
