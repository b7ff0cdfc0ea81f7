"""Cross-layer transcoders of Gemma Scope 2: a folder with a file for each layer, below one called "clt".

Files say nothing of hook points: transcoders below "clt" read an MLP's normed input and write what it adds to the
stream (SAELens 6.54, `loading/pretrained_sae_loaders.py`, `_infer_gemma_3_raw_cfg_dict`). A decoder holds rows for
all layers, of which those before its own are not used (circuit-tracer 0.5.0, `load_gemma_scope_2_clt`).
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from workbench.core.type_words import shown
from workbench.dictionaries.cross_layer_files import assembled, look_at, mapped
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.protocol import JOIN, Dictionary

TITLE = "Gemma Scope 2 (cross-layer)"
FILES = ("params_layer_*.safetensors",)
SKIP = "affine_skip_connection"
NEEDED = {"w_enc", "b_enc", "w_dec", "b_dec", "threshold"}
CROSSCODERS = ("crosscoder", "crosscoders")
"""Names of folders."""
_LAYER = re.compile(r".*_layer_(0|[1-9][0-9]{0,3})(?:_.*)?\.safetensors")
_REPOSITORY = re.compile(r"gemma-scope-2-([0-9]+[bm]-(?:pt|it))")


def matches(path: Path) -> bool:
    """Whether a folder below one called "clt", or one of crosscoders, holds files of layers."""
    return path.is_dir() and bool({"clt", *CROSSCODERS} & {*path.absolute().parts}) and bool(_files(path))


def read(path: Path) -> Dictionary:
    """The transcoder of all layers, with the hook points of its place.

    Raises:
        DictionaryError: a layer is missing or twice there, a file is damaged, or a tensor does not fit. The message
            does not name the folder.
    """
    if "clt" not in path.absolute().parts:
        raise DictionaryError(
            "it is a crosscoder of Gemma Scope 2 by the name of its folder, and neither SAELens 6.54 nor "
            "circuit-tracer 0.5 reads those, so that nothing says what its files compute; open its autoencoders and "
            "transcoders"
        )
    files = _files(path)
    for number in range(len(files)):
        if [layer for layer, _ in files].count(number) != 1:
            raise DictionaryError(
                f"there is not one file of layer {number}: a transcoder has every layer from 0 on, once"
            )
    made = assembled([_layer(file, layer, len(files)) for layer, file in files])
    sides = ("mlp.hook_in", "hook_mlp_out")
    made.reads, made.writes = (JOIN.join(f"blocks.{layer}.{side}" for layer, _ in files) for side in sides)
    for size in [found[1] for part in path.absolute().parts for found in _REPOSITORY.finditer(part)][-1:]:
        # the smallest model has no ending for pretrained
        made.provenance["model_name"] = f"google/gemma-3-{size.removesuffix('-pt') if '270m' in size else size}"
    return made


def _files(folder: Path) -> list[tuple[int, Path]]:
    """The files of layers with their layer, in order."""
    found = ((_LAYER.fullmatch(one.name), one) for one in folder.iterdir() if one.is_file())
    return sorted((int(match[1]), one) for match, one in found if match)


def _layer(file: Path, layer: int, count: int) -> dict[str, Tensor]:
    tensors = mapped(file, NEEDED, {SKIP})
    decoder = tensors["w_dec"]
    if decoder.ndim != 3 or decoder.shape[1] != count:
        raise DictionaryError(
            f"w_dec in {file.name} has the shape {tuple(decoder.shape)}, and for the {count} layers that are there "
            f"it is [latents, {count}, d_model]; copy all files {shown(FILES[0])}"
        )
    look_at(file, {name: one for name, one in tensors.items() if name != "w_dec"})
    found = {"W_enc": tensors["w_enc"].T, "W_dec": decoder[:, layer:]}
    found |= {name: tensors[name] for name in ("b_enc", "b_dec", "threshold")}
    return found | ({"W_skip": tensors[SKIP]} if SKIP in tensors else {})
