"""Token ids: which are special, and whether a model has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def beyond_vocabulary(ids: Sequence[int], vocab_size: int, tokenizer: Any, name: str) -> str | None:
    """A sentence that names a token which the model lacks; None where it has all.

    Args:
        ids: token ids.
        vocab_size: number of tokens that the model has.
        tokenizer: a Hugging Face tokenizer, for the token's text, or None.
        name: the model's name.
    """
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return None
    token = next(token for token in ids if not 0 <= token < vocab_size)
    text = "" if tokenizer is None or token < 0 else tokenizer.decode([token])
    shown = f" ({text!r:.40})" if text else ""  # the tokenizer may lack it too
    return (
        f"Token {token:,}{shown} lies outside the vocabulary of {name}, 0 to {vocab_size - 1:,}; "
        "give a tokenizer and ids that belong to this model."
    )


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """The ids of the special tokens of a Hugging Face tokenizer: BOS, padding, marks of turns."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset({*tokenizer.all_special_ids, *(token for token, what in added.items() if what.special)})
