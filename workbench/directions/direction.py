"""A direction: vectors at the hook points of one or several layers, that steer together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.core.checks import checked
from workbench.core.display import Shown
from workbench.core.type_words import shown
from workbench.dictionaries.directions import Directions
from workbench.dictionaries.features import Feature
from workbench.directions.errors import DirectionError
from workbench.directions.reading import read_direction
from workbench.directions.separation import Separation
from workbench.directions.writing import write_direction


@checked(DirectionError)
@dataclass(frozen=True, eq=False)
class Direction(Shown):
    """Vectors by hook point; `wb.Steer.along(direction, amount)` adds each of them, times the amount, at its place.

    Raises:
        DirectionError: no vector, or one that is not `[d]`, zero, or not finite.
    """

    vectors: Mapping[str, Tensor] = field(repr=False)
    """By hook point `[d]`, in the order of the layers; float32."""
    name: str = "direction"
    model_name: str = ""
    """The model that it was made for; empty where that is not known."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it comes from, as plain data."""
    separation: Mapping[str, Separation] = field(default_factory=dict, repr=False)
    """By hook point, how well directions found there separate held-out texts; empty where it was not found here."""

    def __post_init__(self) -> None:
        if not self.vectors:
            raise DirectionError(f"{self.name} holds no vector; name at least one hook point.")
        for point, vector in self.vectors.items():
            if not isinstance(vector, Tensor) or vector.ndim != 1 or not vector.is_floating_point() or not len(vector):
                raise DirectionError(f"The vector of {self.name} at {shown(point)} is no tensor [d] of numbers.")
            if not bool(vector.isfinite().all() and vector.any()):
                raise DirectionError(f"The vector of {self.name} at {shown(point)} is zero or not finite.")
        mine = {point: vector.detach().clone().float() for point, vector in self.vectors.items()}
        object.__setattr__(self, "vectors", mine)

    @property
    def hook_points(self) -> list[str]:
        """The hook points of its vectors."""
        return list(self.vectors)

    @checked(DirectionError)
    def at(self, hook_point: str) -> Direction:
        """Its vector at one hook point alone; raises `DirectionError` if it has none there."""
        if hook_point not in self.vectors:
            raise DirectionError(
                f"{self.name} has no vector at {shown(hook_point)}; it has some at {', '.join(self.vectors)}."
            )
        one, about = {hook_point: self.vectors[hook_point]}, dict(self.provenance)
        return Direction(one, self.name, self.model_name, about, self.separation)

    @property
    def strength(self) -> float:
        """The natural amount of steering along it: the distance of the means of the classes that it was found on.

        Raises:
            DirectionError: it has vectors at several hook points, or was not found here.
        """
        (point, *others) = self.vectors
        if others or point not in self.separation:
            raise DirectionError(
                f"{self.name} has no strength of its own; find it with find_direction, at one hook point."
            )
        return self.separation[point].strength

    @property
    def dictionary(self) -> Directions:
        """The dictionary whose only feature is its vector.

        Raises:
            DirectionError: it has vectors at several hook points.
        """
        if len(self.vectors) > 1:
            raise DirectionError(
                f"{self.name} has vectors at {len(self.vectors)} hook points and a feature has one; choose one with "
                f".at({self.hook_points[0]!r})."
            )
        ((point, vector),) = self.vectors.items()
        return Directions(vector[None], point, self.name)

    @property
    def feature(self) -> Feature:
        """Its vector as a feature, whose value is the projection; raises `DirectionError` as `dictionary` does."""
        return self.dictionary.feature(0)

    def __neg__(self) -> Direction:
        """The opposite direction."""
        turned = {point: -vector for point, vector in self.vectors.items()}
        return Direction(turned, self.name, self.model_name, dict(self.provenance))

    @checked(DirectionError)
    def save(self, path: str | Path) -> None:
        """Write it to one file: a control vector of llama.cpp and repeng (`.gguf`), or `.safetensors` for any place.

        A control vector's `direction.N` is added to the output of block N, counted from 0; llama.cpp reads none of
        block 0.

        Raises:
            DirectionError: another ending, a control vector with a hook point that is no block's output or with vectors
                of several widths, or the file can't be written or holds something else.
        """
        write_direction(Path(path), self.vectors, self.name, self.model_name, self.provenance)

    def _facts(self) -> Mapping[str, object]:
        return {"name": self.name, "model": self.model_name, "hook points": self.hook_points}


@checked(DirectionError)
def load_direction(path: str | Path) -> Direction:
    """The direction in a file; nothing in it is run.

    Args:
        path: a control vector (`.gguf`), a file that `Direction.save` wrote (`.safetensors`), or a `.pt` with the plain
            content of steering-vectors (`dataclasses.asdict` of a `SteeringVector`) or of lm-eval's steered models,
            whose vectors are read times their coefficient.

    Raises:
        DirectionError: the file can't be read, is none of these, or holds what is no sum: a clamp, a single head.
    """
    vectors, about = read_direction(Path(path))
    return Direction(vectors, **about)
