"""Directions that need no examples: of a feature, of a token, and one that is optimised for a wanted continuation.

That of a Jacobian lens is its own, `lens.direction(model, word, layer)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from workbench.core.checks import Number, Positive, Raises, checked
from workbench.core.progress import Progress
from workbench.dictionaries.features import Feature, FeatureError
from workbench.dictionaries.sites import sites
from workbench.directions.direction import Direction
from workbench.evaluation import cross_entropy
from workbench.interventions.features import dictionary_of
from workbench.model.edits import Edit
from workbench.model.hookpoints import HookPointError
from workbench.model.language_model import LanguageModel
from workbench.steering.errors import SteeringError
from workbench.steering.measures import Prompts, as_row


@checked(SteeringError)
def feature_direction(model: LanguageModel, feature: Annotated[Feature | str, Raises(FeatureError)]) -> Direction:
    """What one unit of a feature adds where its dictionary writes, at each hook point where that is not zero.

    Raises:
        FeatureError, DictionaryError: the model has no such feature, or its dictionary is not loaded.
    """
    feature = Feature.parse(feature) if isinstance(feature, str) else feature
    dictionary = dictionary_of(model, feature)
    writes = sites(dictionary, model).writes
    parts = dictionary.direction(feature.index).detach().float().cpu().chunk(len(writes))
    vectors = {point.name: part for point, part in zip(writes, parts, strict=True) if bool(part.any())}
    return Direction(vectors, str(feature), model.name, {"method": "feature", "feature": str(feature)})


@checked(SteeringError)
def token_direction(
    model: LanguageModel, word: str, at: Annotated[str | None, Raises(HookPointError)] = None
) -> Direction:
    """The direction of length 1 along which the stream says a token: the token's row of the LM head, times the gain.

    It raises the token's logit, less the mean of all logits, most for its length, as far as the stream reaches the
    final norm as it is.

    Args:
        model: the model.
        word: a text of one token; the space belongs to it.
        at: a hook point of the residual stream; None for the one behind the last layer.

    Raises:
        SteeringError: a word of several tokens, or a hook point that is not as wide as the stream.
        HookPointError: the model lacks the hook point.
    """
    ids = model.to_tokens(word, start=False)[0].tolist()
    if len(ids) != 1:
        raise SteeringError(f"The word has {len(ids)} tokens, and the direction is that of one; give a shorter word.")
    name = f"blocks.{model.network.n_layers - 1}.hook_resid_post" if at is None else at
    if model.hook_points[name].width != model.network.d_model:
        raise SteeringError(f"{name} is not as wide as the residual stream, from which the LM head reads.")
    gain, centres = model.network.final_norm()
    head = model.network.lm_head
    every = torch.full((len(head),), 1 / len(head), device=model.device)
    vector = (head.rows(ids)[0] - head.combination(every).to(model.device)).float() * gain.float().to(model.device)
    vector = vector - vector.mean() if centres else vector
    return Direction({name: (vector / vector.norm()).cpu()}, word.strip() or "token", model.name, {"method": "token"})


@checked(SteeringError)
def optimise_direction(
    model: LanguageModel,
    prompts: Annotated[Prompts, Raises(SteeringError)],
    continuation: str,
    at: Annotated[str, Raises(HookPointError)],
    *,
    share: Annotated[Number, Gt(0)] = 0.5,
    steps: Positive = 20,
    progress: Progress | None = None,
) -> Direction:
    """The vector whose addition makes prompts go on with a text, found by gradient and held on a length.

    Each step moves along the gradient of the mean log-probability and returns to the length, which is a share of the
    mean norm of the activations there. The step's size falls to zero; the best vector on the way is returned, so that
    `Steer.along(direction)` adds what was optimised.

    Args:
        model: the model; interventions in force act.
        prompts: texts, chat prompts or token ids `[pos]`.
        continuation: what they are to go on with, such as " happy"; the space belongs to it.
        at: the hook point.
        share: the vector's length, in norms of the activations.
        steps: of the ascent.
        progress: told the share that is done.

    Raises:
        SteeringError: an empty continuation, or a gradient of zero: nothing at the hook point changes it.
        HookPointError, PromptError: the model lacks the hook point, or can't read a prompt.
    """
    point = model.hook_points[at]
    end = model.to_tokens(continuation, start=False)[0]
    if not len(end):
        raise SteeringError("The continuation is empty; give the text that the prompts are to go on with.")
    rows = [as_row(model, prompt) for prompt in prompts]
    with torch.inference_mode():
        norms = [model.capture(row[None], [at])[at].flatten(2).float().norm(dim=-1).mean() for row in rows]
    length = share * float(torch.stack(norms).mean())
    best, highest = torch.zeros(point.width), -float("inf")
    vector = torch.zeros(point.width, device=model.device)
    for step in range(steps + 1):
        value, slope = _slope(model, rows, end, at, vector)
        if step and value > highest:
            best, highest = vector.cpu(), value
        size = float(slope.norm())
        if not size > 0:
            raise SteeringError(f"Nothing at {at} changes how these prompts go on; name an earlier hook point.")
        rate = 1.0 if step == 0 else 0.5 * (1 - step / (steps + 1))
        moved = vector + rate * length * slope / size
        vector = moved * (length / moved.norm())
        if progress:
            progress(step / steps, "Following the gradient")
    return Direction(
        {at: best}, continuation.strip() or "optimised", model.name, {"method": "optimised", "share": share}
    )


def _slope(model: LanguageModel, rows: Sequence[Tensor], end: Tensor, at: str, vector: Tensor) -> tuple[float, Tensor]:
    """The mean log-probability of the continuation under the vector, and its gradient by the vector."""
    total, slope = 0.0, torch.zeros_like(vector)
    shape = model.hook_points[at].shape
    for row in rows:
        leaf = vector.clone().requires_grad_()
        added = Edit(at, lambda x, leaf=leaf: x + leaf.view(shape).to(x), source="optimise_direction")
        with torch.inference_mode(False), torch.enable_grad():
            tokens = torch.cat([row, end[:-1]])[None].clone()
            edits = [*model.bind(()), *model.network.prepare([added])]
            logits = model.run(tokens, edits, prompt_length=len(row), last=len(end))[0]
            value = -cross_entropy(logits, end.clone().to(logits.device)).sum()
            (part,) = torch.autograd.grad(value, leaf)
        total, slope = total + float(value.detach()) / len(rows), slope + part.detach() / len(rows)
    return total, slope
