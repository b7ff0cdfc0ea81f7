"""DeepSeek R1: single files such as `DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt`, ReLU autoencoders of the stream.

The name says model and layer, as the publisher documents (https://huggingface.co/qresearch). `b_dec` is not subtracted
from what is read (SAELens 6.54, `loading/pretrained_sae_loaders.py`, `deepseek_r1`).
"""

from __future__ import annotations

import re
from pathlib import Path

from workbench.dictionaries.foreign import built, transposed
from workbench.dictionaries.protocol import Dictionary

TITLE = "DeepSeek R1 (qresearch)"
FILES = ("DeepSeek-R1-Distill-*-SAE-l*.pt",)
NAME = re.compile(r"(DeepSeek-R1-Distill-[A-Za-z]+-[0-9]+B)-SAE-l([0-9]{1,4})\.pt")
NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
}


def matches(path: Path) -> bool:
    """Whether it is such a file, or a folder that holds one."""
    return bool(parts(path))


def parts(path: Path) -> list[Path]:
    """The files in a folder; the file itself."""
    files = [path] if path.is_file() else sorted(path.glob("*.pt"))
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
        model=f"deepseek-ai/{found[1]}",
    )
