"""The target of a graph: the logit of a token, the difference of two logits, or a latent's pre-activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import SkipValidation
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.attribution.sources import encoder
from workbench.core.checks import shown
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.features import Feature
from workbench.model.language_model import LanguageModel

Token = str | int
Target = SkipValidation[Token | tuple[Token, Token] | tuple[Feature, int] | Feature | None]
"""See `attribute`; `read_target` checks it, since what it may be depends on the model and the prompt."""


@dataclass(frozen=True)
class Reader:
    """A linear function of the normed stream at one layer and position: `x @ vector + constant`."""

    label: str
    layer: int
    """The layer whose MLP input is read; the number of layers for the final norm's output."""
    position: int
    vector: Tensor = field(repr=False)
    """`[d_model]`."""
    constant: float
    feature: Feature | None = None
    tokens: tuple[int, ...] = ()
    """The token, or the two tokens, whose logits are read; empty for a latent."""

    def of_logits(self, logits: Tensor) -> Tensor:
        """The target's value from logits `[..., vocab]` at its position."""
        rest = logits.mean(-1) if len(self.tokens) == 1 else logits[..., self.tokens[1]]
        return logits[..., self.tokens[0]] - rest


def read_target(
    model: LanguageModel, transcoders: Mapping[int, SparseCoder], tokens: Tensor, target: Any, position: int | None
) -> Reader:
    """The reader of a target on tokens `[1, pos]`; arguments and errors as in `attribute`."""
    length = tokens.shape[1]
    if isinstance(target, Feature):
        target = (target, length - 1 if position is None else position)
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[0], Feature):
        feature, place = target
        return _latent(transcoders, feature, _place(place, length))
    place = _place(length - 1 if position is None else position, length)
    if target is None:
        chosen = (int(model(tokens)[0, place].argmax()),)
    elif isinstance(target, tuple | list):
        if len(target) != 2:
            raise AttributionError("A target is a token, two tokens, or a feature and its position.")
        chosen = tuple(_token(model, one) for one in target)
        if chosen[0] == chosen[1]:
            raise AttributionError("The two tokens are the same, so their difference is always 0; name two others.")
    else:
        chosen = (_token(model, target),)
    table = model.network.unembedding()
    bias = getattr(model.network.module.get_output_embeddings(), "bias", None)
    bias = torch.zeros(len(table)) if bias is None else bias.detach().float()
    first, names = chosen[0], _texts(model, chosen)
    if len(chosen) == 1:
        vector, constant = table[first] - table.mean(0), float(bias[first] - bias.mean())
    else:
        vector, constant = table[first] - table[chosen[1]], float(bias[first] - bias[chosen[1]])
    return Reader(" − ".join(names), model.network.n_layers, place, vector, constant, None, chosen)


def latent_reader(transcoders: Mapping[int, SparseCoder], layer: int, feature: Feature, position: int) -> Reader:
    """The reader of one latent."""
    vector, constant = encoder(transcoders[layer], feature.index)
    return Reader(str(feature), layer, position, vector, constant, feature)


def _latent(transcoders: Mapping[int, SparseCoder], feature: Feature, position: int) -> Reader:
    for layer, one in transcoders.items():
        if feature.source is one or (feature.source is None and feature.dictionary == one.name):
            return latent_reader(transcoders, layer, one.feature(feature.index), position)
    raise AttributionError(f"{feature} is not a latent of the transcoders given; add its dictionary to them.")


def _place(position: Any, length: int) -> int:
    if isinstance(position, bool) or not isinstance(position, int) or not -length <= position < length:
        raise AttributionError(f"The prompt has positions 0 to {length - 1}; there is no position {shown(position)}.")
    return position % length


def _token(model: LanguageModel, token: Any) -> int:
    if isinstance(token, str):
        ids = model.to_tokens(token, start=False)[0].tolist() if token else []
        if len(ids) != 1:
            parts = ", ".join(repr(text) for text in model.token_texts(ids)) if ids else "none"
            raise AttributionError(f"{token!r} is {len(ids)} tokens for this model ({parts}); a target is one token.")
        return ids[0]
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < model.network.vocab_size:
        raise AttributionError(
            f"A target is a token's text or its id from 0 to {model.network.vocab_size - 1}, not {shown(token)}."
        )
    return token


def _texts(model: LanguageModel, ids: tuple[int, ...]) -> list[str]:
    return [str(one) for one in ids] if model.tokenizer is None else model.token_texts(list(ids))
