"""Fine-tuning as an operation; see `finetuning/healing.py`."""

from __future__ import annotations

from typing import Any

from workbench.model.language_model import LanguageModel
from workbench.surgery.child import Child
from workbench.surgery.finetuning.healing import heal
from workbench.surgery.inputs import load_calibration
from workbench.surgery.registry import Argument, Operation, register


def _run(model: LanguageModel, *, corpus: str, rank: int, **how: Any) -> Child:
    return heal(model, load_calibration(corpus), rank=rank or None, **how)


register(
    Operation(
        "heal",
        "Fine-tune",
        "Lets the model learn from text for a short while; what was cut stays cut.",
        (
            Argument("corpus", "Texts to learn from", "stories", "text"),
            Argument("tokens", "Tokens", 20_000, "whole", low=1),
            Argument("rank", "Rank of what is learned", 8, "whole", low=0, help="0 trains all weights."),
            Argument("lr", "Learning rate", 1e-4, low=0.0, neutral=1e-12),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
    )
)
