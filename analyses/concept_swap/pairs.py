"""The pairs of concepts, fixed in `pairs.toml`, and what is asked of each."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("pairs.toml")


@dataclass(frozen=True)
class Pair:
    """A prompt about one concept, and another one that takes its place."""

    family: str
    prompt: str
    concepts: tuple[str, str]
    """The one in the prompt, and the other; each as inside a text, with a space in front."""
    answers: tuple[str, str]
    """The answers to both, with a space in front."""


def read_pairs(file: Path = FILE) -> list[Pair]:
    """Every pair of the file, in its order."""
    families = tomllib.loads(file.read_text(encoding="utf-8"))["family"]
    return [
        Pair(
            family["name"],
            family["prompt"].format(first),
            (f" {first}", f" {second}"),
            (f" {family['answers'][first]}", f" {family['answers'][second]}"),
        )
        for family in families
        for first, second in family["pairs"]
    ]
