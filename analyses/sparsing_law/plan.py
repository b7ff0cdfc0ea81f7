"""Shapes and settings of the study of the sparsing law."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A transformer's size."""

    d_model: int
    layers: int

    @property
    def ratio(self) -> float:
        """Width over depth."""
        return self.d_model / self.layers

    def __str__(self) -> str:
        return f"{self.d_model}x{self.layers}"


BASE = Shape(96, 3)
SHAPES = (Shape(64, 6), BASE, Shape(128, 2))
"""Three ratios of width to depth, with about the same number of weights."""
SIZES = (Shape(64, 2), BASE, Shape(128, 4))
"""Three sizes at one ratio of width to depth."""


@dataclass(frozen=True)
class Plan:
    """What is trained and measured."""

    points: tuple[int, ...] = (40_000, 80_000, 120_000, 180_000, 270_000, 400_000, 600_000, 900_000, 1_200_000)
    """Numbers of tokens after which a model is measured."""
    shapes: tuple[str, ...] = tuple(dict.fromkeys(map(str, (BASE, *SHAPES, *SIZES))))
    learned: tuple[str, ...] = ("polyrelu", "series")
    """Activations with learned weights; on the base shape only."""
    seeds: int = 2
    """Number of trainings of the base shape with ReLU, and with SiLU."""
    vocabulary: int = 512
    batch: int = 8
    context: int = 128
    lr: float = 2e-3
    warmup: int = 20
    """Steps of warm-up."""
    measured: int = 8192
    """Tokens of a measurement: half to search thresholds, half to report on."""
    p: float = 0.01
    """Rise in perplexity at which neurons are left out."""
    seed: int = 0


SMALLEST = Plan(
    points=(4_096, 8_192, 16_384, 24_576),
    shapes=("32x1", "32x2"),
    seeds=1,
    vocabulary=300,
    batch=8,
    context=64,
    measured=1024,
)
"""Checks that the study runs, in about a minute."""
