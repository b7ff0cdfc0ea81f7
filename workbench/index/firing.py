"""The features that are active on each token of a prompt."""

from __future__ import annotations

import torch

from workbench.corpus import Corpus, TokenBatch
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import gather
from workbench.index.card import TokenFeatures
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import check_length
from workbench.model.sampling import PromptError


def active_features(model: LanguageModel, dictionary: Dictionary, prompt: str, top: int) -> list[TokenFeatures]:
    """The `top` features with the highest values on each token of a prompt, under the interventions in force here.

    The first position, where an attention sink stands, has no features; it is BOS's, where the model has one.

    Raises:
        PromptError: a prompt that is empty or longer than the model's context.
    """
    batch = _window(model, prompt)
    with torch.no_grad():
        seen = model.capture(batch.tokens, dictionary.read_points)
        x = gather({name: value[0].flatten(1).float() for name, value in seen.items()}, dictionary.read_points)
        codes = dictionary.encode(x)  # [pos, k]
    values, order = codes.values.sort(dim=-1, descending=True, stable=True)
    features = codes.indices.gather(-1, order)
    texts = model.token_texts(batch.tokens[0])
    tokens = []
    for row in (batch.positions[0] >= 0).nonzero()[:, 0].tolist():
        active = values[row].nonzero()[: top if row else 0, 0]
        tokens.append(
            TokenFeatures(
                id=int(batch.tokens[0, row]),
                token=texts[row],
                features=features[row, active].tolist(),
                values=values[row, active].tolist(),
            )
        )
    return tokens


def _window(model: LanguageModel, prompt: str) -> TokenBatch:
    """A prompt as the texts of an index are read: behind BOS, where the model has one."""
    if not prompt.strip():
        raise PromptError("The prompt is empty; give the model at least one token to start from.")
    check_length(model, prompt)
    windows = list(Corpus([prompt]).batches(model, model.network.n_ctx, 1, shuffle=False))
    if len(windows) > 1:
        raise PromptError(f"The prompt is longer than the {model.network.n_ctx:,} tokens that the model sees.")
    return windows[0]
