"""The target of a graph: the logit of a token, the difference of two logits, or a latent's pre-activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import SkipValidation
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.attribution.parts import Part
from workbench.core.checks import as_integer
from workbench.core.type_words import shown
from workbench.dictionaries.features import Feature
from workbench.model.edits import Run
from workbench.model.language_model import LanguageModel

EXACT = 1e-4
"""The largest difference between a logit and what it is computed from, as a share of the largest logit."""
SMALL = 1e-3
"""Products of the LM head below this share of the largest don't tell a factor."""

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
    value: float = float("nan")
    """The value in the model on the prompt; NaN for a latent."""
    probabilities: tuple[float, ...] = ()
    """The model's probability of each of `tokens`."""
    likeliest: tuple[int, float] | None = None
    """The token that the model finds likeliest there, and its probability; None for a latent."""
    at: str = ""
    """The hook point of what is read; empty for the final norm's output."""

    def of_logits(self, logits: Tensor) -> Tensor:
        """The target's value from logits `[..., vocab]` at its position."""
        rest = logits.mean(-1) if len(self.tokens) == 1 else logits[..., self.tokens[1]]
        return logits[..., self.tokens[0]] - rest


def read_target(
    model: LanguageModel, transcoders: Mapping[int, Part], tokens: Tensor, target: Any, position: int | None
) -> Reader:
    """The reader of a target on tokens `[1, pos]`; arguments and errors as in `attribute`."""
    length = tokens.shape[1]
    if isinstance(target, Feature):
        target = (target, length - 1 if position is None else position)
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[0], Feature):
        feature, place = target
        return _latent(transcoders, feature, _place(place, length))
    place = _place(length - 1 if position is None else position, length)
    logits, normed = _predicted(model, tokens, place)
    if target is None:
        chosen = (int(logits.argmax()),)
    elif isinstance(target, tuple | list):
        if len(target) != 2:
            raise AttributionError("A target is a token, two tokens, or a feature and its position.")
        chosen = tuple(_token(model, one) for one in target)
        if chosen[0] == chosen[1]:
            raise AttributionError("The two tokens are the same, so their difference is always 0; name two others.")
    else:
        chosen = (_token(model, target),)
    head = model.network.lm_head
    bias = getattr(model.network.module.get_output_embeddings(), "bias", None)
    products = head.products(normed)
    bias = torch.zeros_like(products) if bias is None else bias.detach().float()
    factors = _factors(model, products + bias, logits)
    shares = torch.zeros_like(products)  # each token's share in the value
    shares[chosen[0]] = 1.0
    if len(chosen) == 1:
        shares -= 1 / len(head)
    else:
        shares[chosen[1]] = -1.0
    shares *= factors
    name = " − ".join(model.token_labels(chosen))
    reader = Reader(name, model.network.n_layers, place, head.combination(shares), float(shares @ bias), None, chosen)
    chances, best = logits.softmax(-1), int(logits.argmax())
    return replace(
        reader,
        value=float(reader.of_logits(logits)),
        probabilities=tuple(chances[list(chosen)].tolist()),
        likeliest=(best, float(chances[best])),
    )


def _predicted(model: LanguageModel, tokens: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """The logits `[vocab]` at a position of tokens `[1, pos]`, and the final norm's output there, `[d_model]`."""
    seen: list[Tensor] = []
    run = Run([], watch={model.hook_points["ln_final.hook_out"].key: seen.append})
    logits = model.network.run(tokens, run, last=tokens.shape[1] - place)
    return logits[0, 0].float(), seen[0][0, place].float()


def _factors(model: LanguageModel, products: Tensor, logits: Tensor) -> Tensor:
    """For each token its logit over the LM head's product `[vocab]`: 1, or a scale, or what a cap on logits leaves.

    Raises:
        AttributionError: the logits are something else than each token's product, scaled or capped.
    """
    largest = float(logits.abs().max())
    if float((products - logits).abs().max()) <= EXACT * largest:
        return torch.ones_like(products)
    order = products.abs().argsort(descending=True)
    firm = order[products[order].abs() > SMALL * float(products.abs().max())]
    factors = torch.full_like(products, float(logits[firm[-1]] / products[firm[-1]]))
    factors[firm] = logits[firm] / products[firm]
    rises = logits[products.argsort()].diff() >= -EXACT * largest
    if (
        not bool((factors > 0).all() and rises.all())
        or float((factors * products - logits).abs().max()) > EXACT * largest
    ):
        raise AttributionError(
            f"The logits of {model.name} are not its LM head's products with the final norm's output, scaled or "
            "capped, so no logit can be attributed; take a latent as the target."
        )
    return factors


def latent_reader(transcoders: Mapping[int, Part], layer: int, feature: Feature, position: int) -> Reader:
    """The reader of one latent."""
    part = transcoders[layer]
    vector, constant = part.encoder(feature.index)
    return Reader(str(feature), layer, position, vector, constant, feature, at=part.reads)


def _latent(transcoders: Mapping[int, Part], feature: Feature, position: int) -> Reader:
    for layer, one in transcoders.items():
        named = feature.source is one.owner or (feature.source is None and feature.dictionary == one.name)
        if named and one.feature(feature.index) and one.holds(feature.index):
            return latent_reader(transcoders, layer, one.feature(feature.index), position)
    raise AttributionError(f"{feature} is not a latent of the transcoders given; add its dictionary to them.")


def _place(position: Any, length: int) -> int:
    number = as_integer(position)
    if number is None or not -length <= number < length:
        raise AttributionError(f"The prompt has positions 0 to {length - 1}; there is no position {shown(position)}.")
    return number % length


def _token(model: LanguageModel, token: Any) -> int:
    if isinstance(token, str):
        ids = model.to_tokens(token, start=False)[0].tolist() if token else []
        if len(ids) != 1:
            parts = ", ".join(repr(text) for text in model.token_texts(ids[:6])) if ids else "none"
            raise AttributionError(
                f"{shown(token)} is {len(ids)} tokens for this model ({parts}{', …' * (len(ids) > 6)}); a target is "
                "one token."
            )
        return ids[0]
    number = as_integer(token)
    if number is None or not 0 <= number < model.network.vocab_size:
        raise AttributionError(
            f"A target is a token's text or its id from 0 to {model.network.vocab_size - 1}, not {shown(token)}."
        )
    return number
