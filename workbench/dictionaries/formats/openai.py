"""OpenAI's autoencoders: files such as `resid_post_mlp_v5_32k/autoencoders/6.pt`, TopK and ReLU ones of GPT-2 small.

Gao et al., "Scaling and evaluating sparse autoencoders" (2024), arXiv 2406.04093. A file holds the state of the class
`Autoencoder` and the name of its activation function. With `TopK` each activation is normalised first and its
reconstruction is restored (`layer_norm`); with `ReLU` it is taken as it is. `pre_bias` is subtracted from what is read.
The folders' names say the place and the file's the layer, as the publisher documents. Source:
https://github.com/openai/sparse_autoencoder, `sparse_autoencoder/model.py`, `README.md`.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.core.torch_files import LARGEST_STRUCTURE, read_torch
from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError, check_finite
from workbench.dictionaries.foreign import SHAPES, Said, built, in_path, taken
from workbench.dictionaries.normalising import LAYER_NORM, NONE
from workbench.dictionaries.protocol import Dictionary

TITLE = "OpenAI"
FILES = ("[0-9]*.pt",)
NAME = re.compile(r"([0-9]{1,4})\.pt")
MARKS = (b"pre_bias", b"latent_bias", b"encoder.weight")
"""Names that the structure of a file has."""
PLACES = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}
"""Hook points of the publisher's places."""
NAMES = {"encoder.weight": "W_enc", "latent_bias": "b_enc", "decoder.weight": "W_dec", "pre_bias": "b_dec"}
COUNTS = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}
"""What was counted in training."""
WORDS = {"activation", "activation_state_dict", "activation.k", "activation.postact_fn"}
"""What is no tensor; torch since 2.0 lets the class write the last two, which say what the second says."""
MODEL = "openai-community/gpt2"


def matches(path: Path) -> bool:
    """Whether it is such a file, or a folder with files of layers of which the first is one."""
    if path.is_file():
        return path.suffix == ".pt" and _is_one(path)
    return any(_is_one(file) for file in parts(path)[:1])


def parts(path: Path) -> list[Path]:
    """The files of a folder, by layer; the file itself."""
    if path.is_file():
        return [path]
    files = {int(found[1]): file for file in path.glob("*.pt") if (found := NAME.fullmatch(file.name))}
    return [files[layer] for layer in sorted(files)]


def read(path: Path, said: Said | None = None) -> Dictionary:
    """The dictionary in a file; its place is that of the path's names, or as a caller says.

    Raises:
        DictionaryError: the file is damaged, holds something else, or its place is not known.
    """
    what = f"its {path.name}"
    content = read_torch(path, DictionaryError, what)
    if not isinstance(content, Mapping):
        raise DictionaryError(f"{what} is no state of an autoencoder")
    tensors = {str(name): one.detach() for name, one in content.items() if isinstance(one, Tensor)}
    for name in content.keys() - tensors.keys() - WORDS:
        raise DictionaryError(f"{what} has {shown(name)}, which such an autoencoder does not have")
    own = taken({name: one for name, one in tensors.items() if name not in COUNTS}, NAMES, SHAPES)
    check_finite(own)
    own |= {"W_enc": own["W_enc"].T, "W_dec": own["W_dec"].T.contiguous()}
    kind, settings = _activation(content)
    place, layer = in_path(path.parent, rf"^({'|'.join(PLACES)})(?:_v[0-9].*)?$"), NAME.fullmatch(path.name)
    if place is not None and layer is not None:
        reads = f"blocks.{int(layer[1])}.{PLACES[place[0]]}"
        return built(kind, own, reads=reads, model=MODEL, **settings)
    if said is None or not said.reads:
        raise DictionaryError(
            "its file does not say where it reads, and its path does not either; keep the publisher's names, such as "
            f"resid_post_mlp_v5_32k/autoencoders/6.pt, or {Said.ASKED}"
        )
    return built(kind, own, reads=said.reads, model=said.model, **settings)


def _activation(content: Mapping[Any, Any]) -> tuple[str, dict[str, Any]]:
    """The kind and its settings, from the name of the activation function; none means ReLU, as for the publisher."""
    word, state = content.get("activation", "ReLU"), content.get("activation_state_dict", {})
    settings: dict[str, Any] = {"apply_b_dec_to_input": True, "normalize_activations": NONE}
    if word == "ReLU":
        return "standard", settings
    if word != "TopK" or not isinstance(state, Mapping):
        raise DictionaryError(f"its activation is {shown(word)}, and ReLU and TopK are read")
    k, after = state.get("k"), state.get("postact_fn")
    if after != "ReLU" or not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise DictionaryError(
            f"its TopK keeps {shown(k)} latents and then applies {shown(after)}; a number of them and ReLU are read"
        )
    return "topk", settings | {"k": k, "normalize_activations": LAYER_NORM}


def _is_one(file: Path) -> bool:
    """Whether the structure of a file of `torch.save` names the parts of such an autoencoder; no tensor is read."""
    try:
        with zipfile.ZipFile(file) as archive:
            for one in archive.infolist():
                if one.filename.endswith("/data.pkl") and one.file_size <= LARGEST_STRUCTURE:
                    structure = archive.read(one)
                    return all(mark in structure for mark in MARKS)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return False
    return False
