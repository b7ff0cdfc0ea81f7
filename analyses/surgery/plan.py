"""Settings of the study of surgery."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What is done, and the numbers of tokens, positions and texts."""

    calibration: int = 2048
    """Tokens that pruning and rounding are calibrated on; half of them score the levels of each matrix."""
    window: int = 64
    """Positions of a window on which candidates are scored."""
    context: int = 128
    """Positions of all other windows."""
    test: int = 1536
    """Tokens of the other half of the articles; since they are few, they are of one article."""
    test_searches: int = 6144
    """Tokens of passages from that half, for the sets that searches find: they differ by less than articles do."""
    stories: int = 768
    """Tokens of bundled stories."""
    calibration_searches: int = 4096
    """Tokens of passages on which sets of sublayers are scored."""
    split: int = 1
    """Seed of the halves of the articles. The search's own settings were chosen on other halves, 0 and 3."""
    more_splits: tuple[int, ...] = (2, 4, 5)
    """Other halves, on which all searches but the uniform one are repeated: results depend on the articles."""
    passes: tuple[int, ...] = (40_000, 75_000)
    """Positions that the greedy search may run at the central budget. It takes whole windows: here one for each
    candidate, the least possible, and two. EvoPress may run as many as the greedy search took."""
    searches: int = 1
    """Seeds of EvoPress at the central budget."""
    fewer_passes: int = 25_000
    """Positions that the other searches may run."""
    shares: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Shares of sublayers that are skipped."""
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.75)
    bits: tuple[int, ...] = (8, 6, 5, 4, 3)
    heal_tokens: int = 8_000
    heal_batch: int = 2
    heal_rank: int = 8
    heal_lr: float = 1e-3
    full_lr: float = 5e-5
    """Learning rate where all weights of the layers learn."""
    kinds: tuple[str, ...] = ("code", "dialogue", "email", "list", "qa", "children", "review", "speech")
    kind_tokens: int = 48
    """Tokens of each text whose kind is named."""
    kind_texts: int = 25
    """Texts of each kind that are tested on."""
    tune_tokens: int = 32_000
    tune_lr: float = 3e-5
    drops: tuple[float, ...] = (0.5, 0.9, 0.99)
    domains: tuple[str, ...] = ("code", "email", "news")
    keep: float = 0.75
    """Share of the neurons that an expert keeps."""
    label_tokens: int = 12_000
    label_words: int = 60
    label_texts: int = 100
    """Texts that labels are tested on."""
    seed: int = 0

    @property
    def centre(self) -> float:
        """The middle one of the shares, the central budget."""
        return self.shares[len(self.shares) // 2]


SMALLEST = Plan(
    calibration=48,
    calibration_searches=64,
    more_splits=(),
    context=16,
    window=16,
    test=48,
    test_searches=64,
    stories=48,
    passes=(300, 400),
    fewer_passes=200,
    heal_tokens=128,
    kinds=("code", "list"),
    kind_tokens=12,
    kind_texts=3,
    tune_tokens=256,
    drops=(0.0, 0.9),
    domains=("code", "list"),
    label_tokens=128,
    label_texts=4,
    label_words=20,
)
"""Checks that the study runs, on a tiny untrained model; the results say nothing."""
