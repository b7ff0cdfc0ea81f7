"""What a person names: a text, a token, layers; and the texts of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workbench.core.checks import as_integer
from workbench.core.type_words import shown
from workbench.lens.errors import LensError
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt


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


def one_row(model: LanguageModel, text: Prompt, complaint: str) -> Tensor:
    """The tokens of one text, `[1, pos]`.

    Args:
        model: the model.
        text: a text, a `chat_prompt`, or token ids `[pos]`.
        complaint: begins the sentence where there are several rows: "A lens reads".

    Raises:
        LensError: several rows.
        PromptError: an empty text, or one longer than the context.
    """
    tokens = model.as_tokens(text)
    if len(tokens) != 1:
        raise LensError(f"{complaint} one text at a time, not {len(tokens)} rows.")
    return tokens


def chosen_layers(model: LanguageModel, layers: Sequence[int] | None) -> list[int]:
    """Layers of a model, each once; all of them for None.

    Raises:
        LensError: no layer, or one that the model lacks.
    """
    count = model.network.n_layers
    chosen = list(range(count)) if layers is None else list(dict.fromkeys(layers))
    if not chosen or max(chosen) >= count:
        raise LensError(f"{model.name} has layers 0 to {count - 1}; name at least one of these.")
    return chosen
