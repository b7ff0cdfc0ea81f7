"""Lenses: each estimates the end of the residual stream from the stream behind a layer.

A new kind is one file that registers a class with a `kind`. The logit lens (nostalgebraist 2020, "interpreting GPT: the
logit lens") takes the stream as it is. The others are fitted to a model, know its hash, and can be saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from workbench.core.checks import checked
from workbench.core.display import Shown
from workbench.core.hashing import not_finite
from workbench.core.type_words import shown
from workbench.lens.errors import LensError
from workbench.lens.recognition import NATIVE, format_called
from workbench.model.language_model import LanguageModel

L = TypeVar("L", bound="Lens")


@dataclass(frozen=True)
class LensRecord(Shown):
    """What a fitted lens belongs to."""

    model_name: str
    model_hash: str
    """`LanguageModel.hash`; empty while files of another tool are read, which do not state it."""
    layers: tuple[int, ...]
    """The layers behind which the lens reads, rising; -1 stands for the embedding, in front of layer 0."""
    fitted_on: Mapping[str, Any] = field(default_factory=dict)
    """Corpus, its hash, tokens, seed and settings, as plain data."""


class Lens(Shown, ABC):
    """An estimate of the stream behind the last layer."""

    kinds: ClassVar[dict[str, type[Lens]]] = {}
    """Every kind by its word."""
    kind: ClassVar[str]
    fitted: ClassVar[bool] = True
    """Whether it has weights that were fitted on texts."""
    fitted_by: ClassVar[str] = ""
    """The function that fits one, for sentences."""
    about: LensRecord | None = None
    """The model that a fitted lens belongs to."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in cls.__dict__:
            Lens.kinds[cls.kind] = cls

    @abstractmethod
    def transport(self, layer: int, stream: Tensor) -> Tensor:
        """The estimate `[..., d_model]` from the stream behind a layer, `[..., d_model]`.

        A fitted lens computes in float32.

        Raises:
            LensError: a layer that the lens does not read.
        """

    def _facts(self) -> Mapping[str, object]:
        about = self.about
        return (
            {} if about is None else {"model": about.model_name, "layers": list(about.layers), "d_model": self.d_model}
        )

    def carried(self, layer: int, part: Tensor) -> Tensor:
        """What a summand of the stream behind a layer adds to the estimate: `[..., d_model]` both."""
        if not self.fitted:
            return self.transport(layer, part)
        return self.transport(layer, part) - self.transport(layer, torch.zeros_like(part))

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name; empty where nothing is fitted."""
        return {}

    @classmethod
    def from_tensors(cls: type[L], tensors: Mapping[str, Tensor], about: LensRecord) -> L:
        """The inverse of `tensors`; the tensors keep their type and device.

        Raises:
            LensError: tensors of other names or shapes.
        """
        raise LensError(f"A {cls.kind} lens has no weights.")

    @property
    def d_model(self) -> int:
        """Width of the stream that a fitted lens reads."""
        raise LensError(f"A {self.kind} lens reads a stream of any width.")

    def fits(self, model: LanguageModel) -> bool:
        """Whether the stream of a model has the width and the layers that a fitted lens reads."""
        layers = () if self.about is None else self.about.layers
        return self.d_model == model.network.d_model and max(layers, default=-1) < model.network.n_layers

    def to(self: L, device: torch.device | str) -> L:
        """The lens with its weights on a device; itself where nothing is fitted."""
        return self._with({name: one.to(device) for name, one in self.tensors().items()})

    def half(self: L) -> L:
        """The lens with weights of 16 bits.

        Raises:
            LensError: a weight that 16 bits do not hold.
        """
        tensors = {name: one.half() for name, one in self.tensors().items()}
        if wrong := not_finite(tensors):
            raise LensError(f"A value in {wrong} of this {self.kind} lens does not fit into 16 bits; save it whole.")
        return self._with(tensors)

    def _with(self: L, tensors: Mapping[str, Tensor]) -> L:
        return self if self.about is None else type(self).from_tensors(tensors, self.about)

    @checked(LensError)
    def save(self, folder: str | Path, *, format: str = NATIVE, half: bool = False) -> None:
        """Write the lens to a folder, whole or not at all.

        Args:
            folder: a lens that is there is replaced.
            format: "workbench", or that of another tool, the name of a file in `lens/formats/`.
            half: keep 16 bits of each weight; a lens computes in float32 all the same.

        Raises:
            LensError: a lens without weights, a weight that 16 bits do not hold or that is not finite, a format that
                has no place for this kind, or a folder that can't be written.
        """
        if not self.fitted:
            raise LensError(f"A {self.kind} lens has no weights to save; it is made from its name alone.")
        if wrong := not_finite(self.tensors()):
            raise LensError(f"The {wrong} of this {self.kind} lens holds values that are not finite; fit it anew.")
        format_called(format).write(self.half() if half else self, Path(folder))

    def check_model(self, model: LanguageModel) -> None:
        """Raise `LensError` where a fitted lens belongs to another model."""
        if self.about is not None and not model.is_named(self.about.model_hash):
            raise LensError(
                f"This {self.kind} lens was fitted to {shown(self.about.model_name)} ({self.about.model_hash[:12]}), "
                f"not to {model.name} ({model.hash[:12]}); {self.how_to_get()}."
            )

    @classmethod
    def how_to_get(cls) -> str:
        """How to come to a lens of this kind, as the end of a sentence."""
        return f"fit one with {cls.fitted_by}, or open one with wb.lens.load_lens, and pass it in place of {cls.kind!r}"

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


def place_of(layers: Sequence[int], layer: int, kind: str) -> int:
    """The place of a layer among those that a lens reads; raises `LensError` where it reads others."""
    if layer not in layers:
        last = f"{layers[0]} to {layers[-1]}" if layers else "none"
        raise LensError(f"This {kind} lens reads behind the layers {last}, not behind {layer}; choose other layers.")
    return list(layers).index(layer)
