"""Gemma Scope 2: folders with `config.json` and `params.safetensors`, JumpReLU dictionaries of Gemma 3.

`config.json` names the plain model's modules that are read and written, such as `model.layers.17.output`; transcoders
read an MLP's normed input and write what it adds to the stream, some with a linear path past the latents. Where a
repository has no `config.json`, the folder's name says the place. Source: SAELens 6.54,
`loading/pretrained_sae_loaders.py`, `gemma_3`; https://huggingface.co/google/gemma-scope-2.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.forms import parse_json
from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.foreign import (
    MATRICES,
    SHAPES,
    Said,
    built,
    check_beside,
    in_path,
    mapped_safetensors,
    taken,
)
from workbench.dictionaries.protocol import Dictionary

TITLE = "Gemma Scope 2"
CONFIG, PARAMS = "config.json", "params.safetensors"
FILES = (PARAMS, CONFIG)
MODULE = re.compile(r"model\.(?:language_model\.)?layers\.([0-9]{1,4})\.(.+)")
PLACES = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""Hook points of the plain model's modules."""
NAMED = {"resid_post": ("output", ""), "attn_out": ("self_attn.o_proj.input", "")}
NAMED |= {"mlp_out": ("post_feedforward_layernorm.output", "")}
NAMED |= {"transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output")}
"""What the names of folders say is read and written; `_all` may follow them."""
NAMES = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
SKIP = "affine_skip_connection"


@with_config(ConfigDict(extra="allow"))
class Config(TypedDict):
    """The fields of `config.json` that decide."""

    architecture: str
    model_name: str
    hf_hook_point_in: str
    hf_hook_point_out: NotRequired[str | None]
    affine_connection: NotRequired[bool | None]


def matches(path: Path) -> bool:
    """Whether a folder has the weights, or it is that file."""
    return path.name == PARAMS if path.is_file() else (path / PARAMS).is_file()


def read(path: Path, said: Said | None = None) -> Dictionary:
    """The dictionary, with the hook points that its `config.json` or its path names, or as a caller says.

    Raises:
        DictionaryError: a file is damaged, the configuration is of something else, or it contradicts the weights or the
            path.
    """
    file = path if path.is_file() else path / PARAMS
    config = _config(file.parent, said)
    if config is None:
        assert said is not None
        tensors, skips = _tensors(file)
        kind = "jumprelu" if said.writes in ("", said.reads) else f"jumprelu{'_skip' * skips}_transcoder"
        if skips and kind == "jumprelu":
            raise DictionaryError(f"its weights have {SKIP}, and it writes where it reads")
        return built(kind, tensors, reads=said.reads, writes=said.writes, model=said.model)
    if config["architecture"] != "jump_relu":
        raise DictionaryError(f"its architecture is {shown(config['architecture'])}, and Gemma Scope 2's is jump_relu")
    reads, writes = _hook_point(config["hf_hook_point_in"]), _hook_point(config.get("hf_hook_point_out") or "")
    layer = in_path(file.parent, r"^layer_([0-9]{1,4})_")
    if layer and not reads.startswith(f"blocks.{int(layer[0])}."):
        raise DictionaryError(f"its {CONFIG} says {config['hf_hook_point_in']}, and its folder layer {layer[0]}")
    tensors, skips = _tensors(file)
    if bool(config.get("affine_connection")) != skips:
        raise DictionaryError(
            f"its {CONFIG} says affine_connection = {shown(config.get('affine_connection'))}, and its weights "
            f"{'have' if skips else 'lack'} {SKIP}"
        )
    if writes in ("", reads):
        if skips:
            raise DictionaryError(f"its weights have {SKIP}, and it writes where it reads")
        return built("jumprelu", tensors, reads=reads, model=_model(config["model_name"]))
    kind = "jumprelu_skip_transcoder" if skips else "jumprelu_transcoder"
    return built(kind, tensors, reads=reads, writes=writes, model=_model(config["model_name"]))


def _config(folder: Path, said: Said | None) -> Config | None:
    """The content of `config.json`, or what the path's names say; None where a caller says it."""
    check_beside(folder / CONFIG)
    try:
        content = (folder / CONFIG).read_bytes()
    except FileNotFoundError:
        return None if said is not None and said.reads else _named(folder)
    return parse_json(content, Config, DictionaryError, f"its {CONFIG} is damaged")


def _named(folder: Path) -> Config:
    repository = in_path(folder, r"gemma-scope-2-([0-9]+[bm]-(?:pt|it))(?![a-z])")
    layer = in_path(folder, r"^layer_([0-9]{1,4})_")
    place = in_path(folder.parent, f"^({'|'.join(NAMED)})(?:_all)?$")
    if repository is None or layer is None or place is None:
        raise DictionaryError(
            f"it has no {CONFIG}, and its path does not say where it reads; keep Gemma Scope 2's names of folders, "
            f"such as gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_small, or {Said.ASKED}"
        )
    read, written = (word and f"model.layers.{int(layer[0])}.{word}" for word in NAMED[place[0]])
    found: Config = {"architecture": "jump_relu", "model_name": f"gemma-3-{repository[0]}", "hf_hook_point_in": read}
    return {**found, "hf_hook_point_out": written, "affine_connection": folder.name.endswith("_affine")}


def _hook_point(module: str) -> str:
    """TransformerLens's name of a module's side; empty for none."""
    if not module:
        return ""
    found = MODULE.fullmatch(module)
    if found is None or found[2] not in PLACES:
        raise DictionaryError(f"its {CONFIG} names {shown(module)}, which is no place that is known here")
    return f"blocks.{int(found[1])}.{PLACES[found[2]]}"


def _model(name: str) -> str:
    """The model's name on the hub: files say "gemma-v3-1b-pt", and the smallest has no ending for pretrained."""
    name = name if name.startswith("google/") else f"google/{name}"
    name = name.replace("-v3", "-3")
    return name.removesuffix("-pt") if "270m" in name else name


def _tensors(file: Path) -> tuple[dict[str, Tensor], bool]:
    """The weights by our names, and whether a linear path is among them."""
    tensors: dict[str, Any] = mapped_safetensors(file, f"its {PARAMS}")
    skips, across = SKIP in tensors, tensors.get("w_dec")
    if across is not None and across.ndim == 3:
        raise DictionaryError("it writes at several layers, and this reader is for dictionaries that write at one")
    found = taken(tensors, NAMES | ({SKIP: "W_skip"} if skips else {}), SHAPES, MATRICES)
    if skips:
        found["W_skip"] = found["W_skip"].T.contiguous()  # stored as [d_in, d_out]
    return found, skips
