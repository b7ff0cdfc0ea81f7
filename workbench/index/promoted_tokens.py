"""A feature's direction in the residual stream: the tokens that it promotes, and its neighbours by cosine.

The logit lens of nostalgebraist (2020, "interpreting GPT: the logit lens") on a feature's direction: through the final
norm's gain and the LM head. For neurons, as in Davies (2025, arXiv 2501.02688), the direction is the weight vector of
their own site, without the gain.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from workbench.core.products import memory, product
from workbench.dictionaries.protocol import Dictionary
from workbench.model.language_model import LanguageModel
from workbench.model.lm_head import merged
from workbench.model.score_search import ScoreSearch, searched
from workbench.model.weights import ModelError

TOKENS = 10
"""Promoted and suppressed tokens kept per feature."""
NEIGHBOURS = 8
_CHUNK = 512
_RESIDUAL = re.compile(
    r"hook_embed|embed\.hook_out|blocks\.\d+\.(hook_(in|out|resid_\w+|attn_out|mlp_out)|(attn|mlp)(\.o|\.out)?\.hook_out)"
)
"""Hook points of the residual stream, or of tensors that are added to it."""
_POST = re.compile(r"blocks\.(\d+)\.mlp\.(hook_post|out\.hook_in)")


def directions(dictionary: Dictionary) -> Tensor:
    """Every feature's direction at the dictionary's write hook point, `[n_features, d_out]`."""
    with torch.no_grad():
        first = dictionary.direction(0)
        rows = first.new_empty(dictionary.n_features, len(first), dtype=torch.float32)
        for index in range(len(rows)):  # a stack of them would hold all of them twice
            rows[index] = dictionary.direction(index)
    return rows


def residual_directions(model: LanguageModel, dictionary: Dictionary) -> Tensor | None:
    """Each feature's direction in the residual stream, times the final norm's gain: `[n_features, d_model]`.

    None where the dictionary writes somewhere else, such as into an attention head's values.
    """
    try:
        if dictionary.mlp_site is not None:
            layer, site = dictionary.mlp_site
            return model.network.neuron_directions(layer, "down" if site == "post" else site)
        gain, centred = model.network.final_norm()
        points, width = dictionary.write_points, dictionary.d_out // dictionary.n_writes
        if points and all(map(_RESIDUAL.fullmatch, points)) and width == model.network.d_model:
            # at several hook points it writes into one stream, where everything is added up
            each = zip(points, directions(dictionary).chunk(len(points), -1), strict=True)
            vectors = torch.stack([_in_stream(model, point, rows) for point, rows in each]).sum(0)
        elif match := _POST.fullmatch(dictionary.writes):
            vectors = directions(dictionary) @ model.network.neuron_directions(int(match[1]), "down")
        else:
            return None
    except ModelError:
        return None
    return (vectors - vectors.mean(-1, keepdim=True) if centred else vectors) * gain


def _in_stream(model: LanguageModel, point: str, rows: Tensor) -> Tensor:
    """What rows `[n, d_model]` that are written at a hook point add to the stream."""
    if point.endswith("hook_resid_mid"):  # what only the MLP reads is in the stream's coordinates
        return rows
    return model.network.written(model.hook_points[point], rows)


def promoted_tokens(model: LanguageModel, dictionary: Dictionary) -> dict[str, np.ndarray]:
    """The tokens that each feature promotes and suppresses most, best first, with their scores.

    Returns:
        `promoted` and `suppressed`, ids `[n_features, TOKENS]`, -1 where there is no direction in the residual stream;
        `promoted_scores` and `suppressed_scores`, of the same shape.
    """
    vectors = residual_directions(model, dictionary)
    count = min(TOKENS, model.network.vocab_size)
    shape = (dictionary.n_features, count)
    columns = {name: np.full(shape, -1, np.int32) for name in ("promoted", "suppressed")}
    columns |= {f"{name}_scores": np.zeros(shape, np.float32) for name in ("promoted", "suppressed")}
    if vectors is None:
        return columns
    head = model.network.lm_head
    parts = vectors.to(head.device).split(_CHUNK)
    best: list[list[tuple[Tensor, Tensor] | None]] = [[None, None] for _ in parts]
    with torch.no_grad():
        room = memory(vectors.to(head.device), _CHUNK * head.piece)
        for start, rows in head.pieces():
            for sides, part in zip(best, parts, strict=True):
                out = room[: len(part) * len(rows)].view(len(part), len(rows))
                search = searched(part, rows, out, (1, -1))
                for number, sign in enumerate((1, -1)):
                    scores, tokens = search.best(out, count, sign)
                    sides[number] = merged(sides[number], (scores, tokens + start), count)
    for name, number, sign in (("promoted", 0, 1), ("suppressed", 1, -1)):
        found = [one for sides in best if (one := sides[number]) is not None]
        columns[name] = torch.cat([tokens for _, tokens in found]).cpu().numpy().astype(np.int32)
        columns[f"{name}_scores"] = sign * torch.cat([scores for scores, _ in found]).cpu().numpy()
    return columns


def neighbours(model: LanguageModel, dictionary: Dictionary) -> dict[str, np.ndarray]:
    """The features whose directions have the highest cosine with each one's.

    Features of a `dense` dictionary are compared in the residual stream, since their own directions are orthogonal.

    Returns:
        `neighbours`, features `[n_features, n]`, nearest first, and `neighbour_cosines`, of the same shape.
    """
    vectors = residual_directions(model, dictionary) if dictionary.dense else None
    vectors = normalize(directions(dictionary) if vectors is None else vectors, dim=-1)
    count = min(NEIGHBOURS, len(vectors) - 1)
    features, cosines = [], []
    room = memory(vectors, min(_CHUNK, len(vectors)), len(vectors))
    for start in range(0, len(vectors), _CHUNK):
        part = vectors[start : start + _CHUNK]
        scores = product(part, vectors, room[: len(part)])
        own = torch.arange(len(scores), device=scores.device)
        scores[own, start + own] = -2
        search = ScoreSearch(len(part), [slice(0, len(vectors))], scores.device)
        search.see(scores, search.strips[0])
        best = search.best(scores, count)
        features.append(best[1])
        cosines.append(best[0])
    return {
        "neighbours": torch.cat(features).cpu().numpy().astype(np.int32),
        "neighbour_cosines": torch.cat(cosines).cpu().numpy().astype(np.float32),
    }
