"""Texts of a small grammar, from which a tiny model learns enough that its neurons are of use."""

from __future__ import annotations

import torch


def sentences(count: int, seed: int) -> list[str]:
    """So many texts of five sentences each."""
    generator = torch.Generator().manual_seed(seed)

    def pick(words: str) -> str:
        some = words.split()
        return some[int(torch.randint(len(some), (), generator=generator))]

    def sentence() -> str:
        who, what, where = pick("dog cat mouse boat child"), pick("ran sailed slept"), pick("river house water morning")
        return f"The {pick('small green favourite old')} {who} {what} to the {where}."

    return [" ".join(sentence() for _ in range(5)) for _ in range(count)]
