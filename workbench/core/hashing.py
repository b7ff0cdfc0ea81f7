"""One identity for each thing: SHA-256 over files and over tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, independent of their order; in hex."""
    names = sorted(tensors)
    with ThreadPoolExecutor(2) as pool:  # hashing releases the interpreter lock
        return combined(dict(zip(names, pool.map(digest, names, [tensors[name] for name in names]), strict=True)))


def digest(name: str, tensor: Tensor) -> bytes:
    """What one tensor adds to a fingerprint."""
    tensor = tensor.detach().contiguous().cpu()
    head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
    whole = hashlib.sha256(head)
    whole.update(tensor.flatten().view(torch.uint8).numpy().data)  # joined to the head, the bytes would be copied
    return whole.digest()


def combined(digests: Mapping[str, bytes]) -> str:
    """The fingerprint of tensors that were looked at one at a time."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()
