"""One pair: the prediction as it is, after the swap by a lens, and after swaps of random directions.

The random pair has the lengths of the lens's two vectors and their angle; only where they point is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from analyses.concept_swap.pairs import Pair
from workbench.lens import JacobianLens


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    layers: tuple[int, ...] = (3, 6, 9, 12, 15, 18, 21, 24, 27)
    amounts: tuple[float, ...] = (1.0, 2.0)
    draws: int = 5
    """Random pairs of directions for each pair, layer and amount."""
    seed: int = 0


def single(model: wb.model.LanguageModel, text: str) -> int | None:
    """The id of a text that is one token; None otherwise."""
    ids = model.to_tokens(text, start=False)[0].tolist()
    return ids[0] if len(ids) == 1 else None


def measure_pair(
    model: wb.model.LanguageModel, lenses: dict[str, JacobianLens], pair: Pair, plan: Plan, number: int
) -> dict[str, Any] | None:
    """The outcome of a pair; None where a concept is no single token, or both answers begin with the same one."""
    concepts = [single(model, one) for one in pair.concepts]
    answers = [model.to_tokens(one, start=False)[0, 0].item() for one in pair.answers]
    if None in concepts or answers[0] == answers[1]:
        return None
    tokens = model.to_tokens(pair.prompt)
    plain = _outcome(model, tokens, answers, [])
    chance = torch.Generator().manual_seed(plan.seed * 1000 + number)
    swaps: list[dict[str, Any]] = []
    for layer in plan.layers:
        point = f"blocks.{layer}.hook_resid_post"
        for name, lens in lenses.items():
            vectors = lens.vectors(model, concepts, layer).cpu()
            for amount in plan.amounts:
                edits = [wb.interventions.SwapDirections(point, *vectors.tolist(), amount)]
                swaps.append({"by": name, "layer": layer, "amount": amount, **_outcome(model, tokens, answers, edits)})
                for _ in range(plan.draws if name == "jacobian" else 0):
                    random = like(vectors, chance)
                    edits = [wb.interventions.SwapDirections(point, *random.tolist(), amount)]
                    found = _outcome(model, tokens, answers, edits)
                    swaps.append({"by": "random", "layer": layer, "amount": amount, **found})
    return {"family": pair.family, "prompt": pair.prompt, "concepts": pair.concepts, "plain": plain, "swaps": swaps}


def like(vectors: Tensor, chance: torch.Generator) -> Tensor:
    """Two random vectors `[2, d]` with the lengths and the angle of two others."""
    drawn = torch.linalg.qr(torch.randn(vectors.shape[1], 2, generator=chance)).Q.T  # [2, d], orthonormal
    lengths = vectors.norm(dim=1)
    cosine = float(torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0))
    second = cosine * drawn[0] + max(0.0, 1 - cosine**2) ** 0.5 * drawn[1]
    return torch.stack([lengths[0] * drawn[0], lengths[1] * second])


def _outcome(
    model: wb.model.LanguageModel, tokens: Tensor, answers: Sequence[int], edits: Sequence[Any]
) -> dict[str, Any]:
    with torch.no_grad(), model.intervening(list(edits)):
        logits = model(tokens)[0, -1].float()
    best, difference = int(logits.argmax()), float(logits[answers[1]] - logits[answers[0]])
    return {"difference": difference, "says_own": best == answers[0], "says_wanted": best == answers[1]}
