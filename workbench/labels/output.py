"""Does a feature make the model say what its label says: its effect on tokens, beside that of random features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from workbench.core.checks import Natural, Positive, checked
from workbench.dictionaries.features import Feature
from workbench.index import FeatureIndex
from workbench.interventions.kinds import Clamp
from workbench.labels.errors import LabelError
from workbench.labels.scores import Score, wilson


@checked(LabelError)
def output_score(
    index: FeatureIndex,
    feature: Natural,
    says: Sequence[str],
    prompts: Sequence[str],
    *,
    controls: Positive = 20,
    seed: Natural = 0,
) -> Score:
    """The share of random features that raise some tokens less than a feature does, where each has its highest value.

    Each feature is set to its highest value in the index at every position of a prompt. What counts is the rise of the
    log-probability that one of the tokens comes next, on average over the prompts. Chance is 0.5.

    Args:
        index: opened with its model and dictionary.
        feature: the feature.
        says: texts that its label says, one token each, such as " Paris".
        prompts: texts behind which the next token is looked at.
        controls: live features drawn at random.
        seed: of what is drawn.

    Raises:
        LabelError: an index without model or dictionary, a dead feature, no prompt, or a text of several tokens.
    """
    model, dictionary = index.model, index.dictionary
    if model is None or dictionary is None:
        raise LabelError("To steer a feature, open the index with open_index(path, model, dictionary).")
    live = index.statistics["highest"] > 0
    if feature >= index.n_features or not live[feature]:
        raise LabelError(f"Feature {feature:,} is active on no token of the index, so that it has no highest value.")
    others = np.flatnonzero(live & (np.arange(index.n_features) != feature))
    if not prompts or not says or not len(others):
        raise LabelError("There is nothing to compare; give prompts, tokens, and an index with several live features.")
    ids = [_one_token(index, text) for text in says]
    drawn = np.random.default_rng(seed).permutation(others)[:controls].tolist()
    rows = [model.to_tokens(prompt) for prompt in prompts]

    def said(steered: int | None) -> float:
        edits = []
        if steered is not None:
            one = Feature(dictionary.name, steered, source=dictionary)
            edits = [Clamp(one, float(index.statistics["highest"][steered]))]
        with torch.inference_mode(), model.intervening(edits):
            each = [model(row)[0, -1].float().log_softmax(-1)[ids].logsumexp(-1) for row in rows]
        return float(torch.stack(each).mean())

    plain, own = said(None), said(feature)
    rises = np.array([said(one) for one in drawn]) - plain
    share = float(np.mean((rises < own - plain) + 0.5 * (rises == own - plain)))
    return Score(share, *wilson(share, len(drawn)), 0.5, len(drawn))


def _one_token(index: FeatureIndex, text: str) -> int:
    assert index.model is not None
    ids = index.model.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    if len(ids) != 1:
        raise LabelError(f"{text!r} is {len(ids)} tokens; give texts of one token each, with the space in front.")
    return ids[0]
