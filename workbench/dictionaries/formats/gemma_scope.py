"""Gemma Scope: folders such as `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71` with one file, `params.npz`.

JumpReLU autoencoders and transcoders of Gemma 2 (Lieberum et al., "Gemma Scope" (2024), arXiv 2408.05147). The file
holds five arrays and no word of the model, the layer or the place: the names of the repository and of the folders say
those, as the publisher documents (https://huggingface.co/google/gemma-scope).

`res` is the residual stream behind a layer; `mlp` what an MLP adds to it, behind the norm on it; `att` the heads'
outputs before the output projection; `transcoders` read the MLP's normed input before the norm's gain, and write what
`mlp` is (SAELens 6.54, `loading/pretrained_sae_loaders.py`, `gemma_2`). Those of `embedding` were made of the rows of
the embedding table, which the model multiplies by √d; that factor goes into the weights, the decoder's bias included,
which SAELens leaves as it is.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.foreign import MATRICES, SHAPES, Said, built, in_path, mapped_npz, taken
from workbench.dictionaries.protocol import Dictionary

TITLE = "Gemma Scope"
PARAMS = "params.npz"
FILES = (PARAMS,)
ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
REPOSITORY = r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)(?![a-z])"
"""Size of the model, pretrained or instruction-tuned, and place."""
PLACES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
READS, WRITES = "ln2.hook_normalized", "hook_mlp_out"
"""Of transcoders."""


def matches(path: Path) -> bool:
    """Whether a folder has the one file, or it is that."""
    return path.name == PARAMS if path.is_file() else (path / PARAMS).is_file()


def read(path: Path, said: Said | None = None) -> Dictionary:
    """The dictionary; its place and model are those of the path's names, or as a caller says.

    Raises:
        DictionaryError: the file is damaged or holds other arrays, or the path does not have the repository's name and
            the layer's.
    """
    file = path if path.is_file() else path / PARAMS
    named = in_path(file.parent, REPOSITORY)
    layer, embeds = in_path(file.parent, r"^layer_(\d{1,4})$"), in_path(file.parent, r"^(embedding)$")
    unnamed = named is None or (layer is None) == (embeds is None)
    if unnamed and said is not None and said.reads:
        return _said(file, said)
    if named is None or (layer is None) == (embeds is None):
        raise DictionaryError(
            f"its {PARAMS} does not say where it reads, and its path does not either; keep Gemma Scope's names of "
            f"folders, such as gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71, or {Said.ASKED}"
        )
    size, tuned, place = named
    tensors = _arrays(file)
    model = f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")
    if layer is None:
        return _of_embeddings(tensors, place, model)
    block = f"blocks.{int(layer[0])}"
    if place == "transcoders":
        return built("jumprelu_transcoder", tensors, reads=f"{block}.{READS}", writes=f"{block}.{WRITES}", model=model)
    return built("jumprelu", tensors, reads=f"{block}.{PLACES[place]}", model=model)


def _said(file: Path, said: Said) -> Dictionary:
    """The dictionary at the place that a caller says; the arrays of both kinds are the same."""
    tensors = _arrays(file)
    if said.reads == "hook_embed":
        return _of_embeddings(tensors, "res", said.model)
    kind = "jumprelu_transcoder" if said.writes and said.writes != said.reads else "jumprelu"
    return built(kind, tensors, reads=said.reads, writes=said.writes, model=said.model)


def _arrays(file: Path) -> dict[str, Tensor]:
    """The five arrays by our names; the first letter of a matrix may be small."""
    arrays = mapped_npz(file, f"its {PARAMS}")
    factor = arrays.pop("scaling_factor", None)
    if factor is not None and not bool((factor == 1).all()):
        raise DictionaryError(f"its {PARAMS} has a scaling_factor, for which its publisher states no formula")
    names = {name: f"W_{name[2:]}" if name.startswith("w_") else name for name in arrays}
    if len(set(names.values())) < len(names):
        raise DictionaryError(f"its {PARAMS} holds one array under two names")
    known = {other: ours for other, ours in names.items() if ours in ARRAYS}
    return taken(arrays, known | {name: name for name in ARRAYS if name not in known.values()}, SHAPES, MATRICES)


def _of_embeddings(tensors: dict[str, Tensor], place: str, model: str) -> Dictionary:
    """A dictionary of e, the rows of the embedding table, as one of x = √d e, which the model goes on with."""
    if place != "res":
        raise DictionaryError(f"a dictionary of embeddings is of the residual stream, and its path says {place}")
    root = tensors["W_enc"].shape[0] ** 0.5
    scaled = {name: tensors[name].float() * root for name in ("W_dec", "b_dec")}
    scaled["W_enc"] = tensors["W_enc"].float() / root
    return built("jumprelu", tensors | scaled, reads="hook_embed", model=model)
