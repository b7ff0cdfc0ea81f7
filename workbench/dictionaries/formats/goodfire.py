"""Goodfire: single files such as `Llama-3.1-8B-Instruct-SAE-l19.pth`, ReLU autoencoders of the stream behind a layer.

The name says model and layer, as the publisher documents (https://huggingface.co/Goodfire). `b_dec` is not subtracted
from what is read (SAELens 6.54, `loading/pretrained_sae_loaders.py`, `goodfire`).
"""

from __future__ import annotations

import re
from pathlib import Path

from workbench.dictionaries.foreign import built, transposed
from workbench.dictionaries.protocol import Dictionary

TITLE = "Goodfire"
FILES = ("Llama-*-Instruct-SAE-l*.pt", "Llama-*-Instruct-SAE-l*.pth")
NAME = re.compile(r"(Llama-[0-9.]+-[0-9]+B-Instruct)-SAE-l([0-9]{1,4})\.pth?")
NAMES = {
    "encoder_linear.weight": "W_enc",
    "encoder_linear.bias": "b_enc",
    "decoder_linear.weight": "W_dec",
    "decoder_linear.bias": "b_dec",
}


def matches(path: Path) -> bool:
    """Whether it is such a file, or a folder that holds one."""
    return bool(parts(path))


def parts(path: Path) -> list[Path]:
    """The files in a folder; the file itself."""
    files = [path] if path.is_file() else sorted(path.glob("*.pt*"))
    return [file for file in files if NAME.fullmatch(file.name)]


def read(path: Path) -> Dictionary:
    """The dictionary in a file.

    Raises:
        DictionaryError: the file is damaged, or holds something else than the four tensors.
    """
    found = NAME.fullmatch(path.name)
    assert found is not None
    return built(
        "standard",
        transposed(path, NAMES),
        reads=f"blocks.{int(found[2])}.hook_resid_post",
        model=f"meta-llama/{found[1]}",
    )
