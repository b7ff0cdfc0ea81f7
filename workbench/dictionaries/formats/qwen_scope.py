"""Qwen Scope: files such as `SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer0.sae.pt`, TopK autoencoders of the stream.

The repository's name says the model, the width in units of 1,024 and k; the file's the layer, behind which it reads
(https://huggingface.co/collections/Qwen/qwen-scope; SAELens 6.54, `loading/pretrained_sae_loaders.py`, `qwen_scope`).
`b_dec` is not subtracted from what is read.
"""

from __future__ import annotations

import re
from pathlib import Path

from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.foreign import built, in_path, transposed
from workbench.dictionaries.protocol import Dictionary

TITLE = "Qwen Scope"
FILES = ("layer*.sae.pt",)
NAME = re.compile(r"layer([0-9]{1,4})\.sae\.pt")
REPOSITORY = r"SAE-Res-(Qwen.+)-W([0-9]{1,6})K-L0_([0-9]{1,6})$"
"""Model, width in units of 1,024, and k."""
NAMES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def matches(path: Path) -> bool:
    """Whether it is such a file, or a folder that holds some."""
    return bool(parts(path))


def parts(path: Path) -> list[Path]:
    """The files in a folder, by layer; the file itself."""
    files = [path] if path.is_file() else list(path.glob("layer*.sae.pt"))
    layers = {int(found[1]): file for file in files if (found := NAME.fullmatch(file.name))}
    return [layers[layer] for layer in sorted(layers)]


def read(path: Path) -> Dictionary:
    """The dictionary in a file.

    Raises:
        DictionaryError: the file is damaged, holds something else than the four tensors, or its path does not have the
            repository's name.
    """
    found, named = NAME.fullmatch(path.name), in_path(path.parent, REPOSITORY)
    assert found is not None
    if named is None:
        raise DictionaryError(
            "its file does not say how many latents it keeps, and its path does not either; keep Qwen Scope's name of "
            "the folder, such as SAE-Res-Qwen3-8B-Base-W64K-L0_50"
        )
    tensors = transposed(path, NAMES)
    width = len(tensors["b_enc"])
    if width != 1024 * int(named[1]):
        raise DictionaryError(f"it has {width:,} latents, and its folder's name says {named[1]}K")
    reads = f"blocks.{int(found[1])}.hook_resid_post"
    return built("topk", tensors, reads=reads, model=f"Qwen/{named[0]}", k=int(named[2]))
