"""How many tokens a model sees at once."""

from __future__ import annotations

from typing import Any

from torch import nn

from workbench.model.weights import ModelError

FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""The names that configurations have for the number of positions, in the order in which they are asked."""
ENDLESS = 10**9
"""From here on a tokenizer's `model_max_length` stands for no limit."""
UNSTATED = 2048
"""Tokens for a model without learned positions that states no length: BLOOM's (BigScience, 2022, arXiv
2211.05100), which was trained on so many."""


def context_length(module: Any, tokenizer: Any) -> int:
    """The largest number of tokens that a model sees.

    The configuration states it. Where it does not and no positions are learned (ALiBi), the tokenizer does, and
    `UNSTATED` stands for a tokenizer without a limit.

    Raises:
        ModelError: a model with learned positions whose configuration does not state their number.
    """
    sizes = module.config.get_text_config().to_dict()
    sizes |= {name: sizes[own] for name, own in module.config.attribute_map.items() if own in sizes}
    stated = next((sizes[name] for name in FIELDS if isinstance(sizes.get(name), int) and sizes[name] > 0), None)
    if stated is not None:
        return stated
    words = module.get_input_embeddings()
    if any(isinstance(one, nn.Embedding) and one is not words for one in module.modules()):
        raise ModelError(
            f"The configuration of {type(module).__name__} does not state how many tokens the model sees; "
            "set its max_position_embeddings."
        )
    if tokenizer is not None and 0 < tokenizer.model_max_length < ENDLESS:
        return int(tokenizer.model_max_length)
    return UNSTATED
