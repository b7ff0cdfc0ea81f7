"""A token, as it is named by a person."""

from __future__ import annotations

from workbench.core.checks import as_integer
from workbench.core.type_words import shown
from workbench.lens.errors import LensError
from workbench.model.language_model import LanguageModel


def token_id(model: LanguageModel, token: str | int) -> int:
    """The id of a token, given by its text, such as " Paris", or as an id.

    Raises:
        LensError: a text of several tokens, or an id outside the vocabulary.
    """
    if isinstance(token, str):
        ids = model.to_tokens(token, start=False)[0].tolist() if token else []
        if len(ids) != 1:
            raise LensError(f"{shown(token)} is {len(ids)} tokens for this model; name one token, or its id.")
        return ids[0]
    number = as_integer(token)
    if number is None or not 0 <= number < model.network.vocab_size:
        raise LensError(f"A token is a text or an id from 0 to {model.network.vocab_size - 1}, not {shown(token)}.")
    return number
