"""Lenses: each estimates the end of the residual stream from the stream behind a layer.

A new kind is one file that registers a class with a `kind`. The logit lens (nostalgebraist 2020, "interpreting GPT: the
logit lens") takes the stream as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from workbench.core.type_words import shown
from workbench.lens.errors import LensError


class Lens(ABC):
    """An estimate of the stream behind the last layer."""

    kinds: ClassVar[dict[str, type[Lens]]] = {}
    """Every kind by its word."""
    kind: ClassVar[str]
    fitted: ClassVar[bool] = True
    """Whether it has weights that were fitted on texts."""

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
            Lens.kinds[cls.kind] = cls

    @abstractmethod
    def transport(self, layer: int, stream: Tensor) -> Tensor:
        """The estimate `[..., d_model]` from the stream behind a layer, `[..., d_model]`."""

    @staticmethod
    def kind_called(word: str) -> type[Lens]:
        """The kind whose word this is; raises `LensError` if there is none."""
        if word not in Lens.kinds:
            raise LensError(f"There is no lens {shown(word)}; there are {', '.join(sorted(Lens.kinds))}.")
        return Lens.kinds[word]


class LogitLens(Lens):
    """The stream itself."""

    kind = "logit"
    fitted = False

    def transport(self, layer: int, stream: Tensor) -> Tensor:
        """The stream."""
        return stream
