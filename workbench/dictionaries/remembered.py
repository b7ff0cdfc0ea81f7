"""The hash of a dictionary's tensors, remembered while they keep their memory and their version.

torch counts a tensor's version up at each change in place, except through `.data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_hashes: WeakKeyDictionary[nn.Module, tuple[list[Any], list[Tensor], str]] = WeakKeyDictionary()
"""The hash of each dictionary's tensors behind their versions when it was taken, and behind these tensors: while they
are held, their memory has no other use."""

_finite: WeakKeyDictionary[nn.Module, tuple[list[Any], list[Tensor]]] = WeakKeyDictionary()
"""The versions of each dictionary's tensors, and these, when all their values were known to be finite."""


def held_tensors(dictionary: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name."""
    parameters = dictionary.named_parameters(remove_duplicate=False)
    return dict([*parameters, *dictionary.named_buffers(remove_duplicate=False)])


def remembered_hash(dictionary: nn.Module) -> str | None:
    """The hash of a dictionary's tensors as they are now; None where it is not known."""
    known = None if _is_unversioned(dictionary) else _hashes.get(dictionary)
    return None if known is None or known[0] != _versions(dictionary) else known[2]


def remember_hash(dictionary: nn.Module, known: str) -> str:
    """Remember the hash of a dictionary's tensors as they are now, where they have versions, and return it."""
    if _is_unversioned(dictionary):
        return known
    held = [tensor.detach() for tensor in held_tensors(dictionary).values()]
    _hashes[dictionary] = _versions(dictionary), held, known
    return known


def hold_examined(dictionary: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], known: str) -> None:
    """Remember the hash of a dictionary whose tensors are those of a file that was looked at.

    A dictionary that holds other tensors, such as converted ones, is left without.

    Args:
        dictionary: a new one.
        own: its tensors, by the names in the file.
        tensors: of the file, mapped; their values are finite.
        known: their fingerprint.
    """
    if own.keys() == tensors.keys() and all(_is_same(own[name], tensors[name]) for name in own):
        remember_hash(dictionary, known)


def hold_finite(dictionary: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Remember that a dictionary's values are finite, where its tensors are in the memory of tensors that were looked
    at; one that holds others is left without."""
    looked = {(one.data_ptr(), one.numel(), one.dtype) for one in tensors.values()}
    held = [tensor.detach() for tensor in held_tensors(dictionary).values()]
    if not _is_unversioned(dictionary) and all((one.data_ptr(), one.numel(), one.dtype) in looked for one in held):
        _finite[dictionary] = _versions(dictionary), held


def is_examined(dictionary: nn.Module) -> bool:
    """Whether the values of a dictionary's tensors as they are now are known to be finite, from its hash or alone."""
    if remembered_hash(dictionary) is not None:
        return True
    known = None if _is_unversioned(dictionary) else _finite.get(dictionary)
    return known is not None and known[0] == _versions(dictionary)


@contextmanager
def keeping_hash(dictionary: nn.Module) -> Iterator[None]:
    """Keep the remembered hash over a block that changes where tensors are in memory and not their values."""
    known = remembered_hash(dictionary)
    yield
    if known is not None:
        remember_hash(dictionary, known)


def _is_unversioned(dictionary: nn.Module) -> bool:
    """Whether a tensor was made in inference mode: torch counts no versions of these."""
    return any(tensor.is_inference() for tensor in held_tensors(dictionary).values())


def _versions(dictionary: nn.Module) -> list[Any]:
    """What changes when a tensor does."""
    held = held_tensors(dictionary)
    return [(name, one.data_ptr(), one.shape, one.dtype, one._version) for name, one in held.items()]


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory, read in the same way."""
    same = (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    return same and one.data_ptr() == other.data_ptr()
