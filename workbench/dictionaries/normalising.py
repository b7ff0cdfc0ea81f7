"""Normalisations of each activation before it is encoded, whose inverse is applied to its reconstruction.

    constant_norm_rescale   x √d / |x|                          back: y |x| / √d
    layer_norm              (x - mean) / (deviation + 1e-5)     back: y deviation + mean

The deviation divides by d - 1. Factors of this kind differ from activation to activation, so that weights can't hold
them. Names and formulas are SAELens's (6.54, `sae_lens/saes/sae.py`, `_setup_activation_normalization`); `layer_norm`
is also that of OpenAI's autoencoders (https://github.com/openai/sparse_autoencoder, `model.py`, `LN`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError

NONE = "none"
"""The rule of dictionaries that encode activations as they are."""
CONSTANT_NORM, LAYER_NORM = "constant_norm_rescale", "layer_norm"
RULES = (NONE, CONSTANT_NORM, LAYER_NORM)
"""Every rule."""
EPSILON = 1e-5


def normalised(x: Tensor, rule: str) -> Tensor:
    """Activations `[..., d]` under a rule: `[..., d]`; an activation of zeros stays zeros."""
    if rule == NONE:
        return x
    factor = scale_of(x, rule)
    if rule == CONSTANT_NORM:
        return x / factor.clamp(min=torch.finfo(x.dtype).tiny)
    return (x - x.mean(-1, keepdim=True)) / (factor + EPSILON)


def restored(y: Tensor, x: Tensor, rule: str) -> Tensor:
    """What was computed from activations `x` `[..., d]` under a rule, in their own units: `[..., d]`."""
    if rule == NONE:
        return y
    scaled = y * scale_of(x, rule)
    return scaled + x.mean(-1, keepdim=True) if rule == LAYER_NORM else scaled


def scale_of(x: Tensor, rule: str) -> Tensor:
    """The factor from a rule's units to those of each activation `[..., d]`: `[..., 1]`."""
    if rule == CONSTANT_NORM:
        return x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return x.std(dim=-1, keepdim=True)


def rule_of(config: Mapping[str, Any]) -> str:
    """The rule that a `cfg.json` states under `normalize_activations`.

    Raises:
        DictionaryError: it is none of `RULES`, or has no meaning for the dictionary's width.
    """
    stated = config.get("normalize_activations")
    if stated is None or stated is False:  # SAELens's first files say True or False
        stated = NONE
    if not isinstance(stated, str) or stated not in RULES:
        raise DictionaryError(f"normalize_activations is one of {', '.join(RULES)}, not {shown(stated)}")
    if stated == LAYER_NORM and config["d_in"] < 2:
        raise DictionaryError("activations of width 1 have no deviation, by which layer_norm divides")
    return stated
