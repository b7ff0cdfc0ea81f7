"""Texts, chats and token ids, checked and brought into the form that a network reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.core.type_words import reason_of, shown
from workbench.core.vocabulary import beyond_vocabulary
from workbench.model.chat_templates import render
from workbench.model.sampling import PromptError
from workbench.model.token_texts import part_tokens

USUAL_TOKEN, PIECE = 16, 100_000
"""Characters of a token: the longest one counts only for a text with more for each token of the context. Characters of
a text that are tokenized together where it may be far longer than the context."""
Prompt = str | Tensor | Sequence[int]
"""A text, or token ids `[pos]`."""
Tokens = str | Tensor | Sequence[int] | Sequence[Sequence[int]]
"""A text, token ids `[pos]`, or a batch of them `[batch, pos]`."""


@runtime_checkable
class Tokenizer(Protocol):
    """What a model needs of a Hugging Face tokenizer, beside its settings."""

    def __call__(self, text: Any, **how: Any) -> Any:
        """Token ids of texts."""
        ...

    def decode(self, token_ids: Any, **how: Any) -> Any:
        """The text of token ids."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        ...


def require_tokenizer(tokenizer: Any, name: str) -> Any:
    """The tokenizer of the model `name`; raises `PromptError` where it is None."""
    if tokenizer is None:
        raise PromptError(f"{name} was loaded without a tokenizer; give token ids, or load it with one.")
    return tokenizer


class ChatPrompt(str):
    """A chat as its template writes it: the template writes all special tokens, and encoding adds none.

    A text added in front or behind, such as the beginning of an answer, keeps the kind; other methods of `str` give
    plain texts, to which encoding adds BOS where the tokenizer does.
    """

    def __add__(self, text: str) -> ChatPrompt:
        return ChatPrompt(super().__add__(text))

    def __radd__(self, text: str) -> ChatPrompt:
        return ChatPrompt(text + str(self))


def check_length(model: Any, text: str) -> None:
    """Refuse a text that is far longer than the context, before it is tokenized whole, which takes much memory.

    Pieces of a long text are counted: where it is cut, a few tokens more arise, far fewer than a tenth.

    Args:
        model: a language model; one without a tokenizer is not asked.
        text: a prompt or a part of one.

    Raises:
        PromptError: it has more characters than a full context of the longest tokens, or more tokens by a tenth.
    """
    n_ctx = model.network.n_ctx
    if model.tokenizer is not None and len(text) > n_ctx and _is_far_longer(model.tokenizer, text, n_ctx):
        raise PromptError(
            f"The text has {len(text):,} characters, but {model.name} sees only {n_ctx:,} tokens; shorten it."
        )


def _is_far_longer(tokenizer: Any, text: str, n_ctx: int) -> bool:
    if len(text) > n_ctx * USUAL_TOKEN and len(text) > n_ctx * max(map(len, tokenizer.get_vocab())):
        return True
    left = 1.1 * n_ctx
    for start in range(0, len(text) if len(text) > PIECE else 0, PIECE):
        left -= len(tokenizer(text[start : start + PIECE], add_special_tokens=False).input_ids)
        if left < 0:
            return True
    return False


def encode(tokenizer: Any, text: str, vocab_size: int, name: str, *, start: bool = True) -> list[int]:
    """The token ids of a text that goes on.

    Args:
        tokenizer: a Hugging Face tokenizer, or None.
        text: not empty.
        vocab_size: number of tokens that the model has.
        name: the model's name, for the error.
        start: put the tokens in front that the tokenizer itself adds to a text, such as BOS, unless the text is a
            `ChatPrompt`; BOS is not doubled where the text begins with it. False gives the ids of the text as a part of
            a longer one. Tokens that the tokenizer adds behind a text, such as EOS, are left out.

    Raises:
        PromptError: an empty text, one without a token, a token that the model lacks, or no tokenizer.
    """
    if not isinstance(text, str) or not text:
        raise PromptError("The prompt is empty; give the model at least one token to start from.")
    tokenizer = require_tokenizer(tokenizer, name)
    if isinstance(text, ChatPrompt):
        ids = tokenizer(text, add_special_tokens=False).input_ids
    else:
        ids = _begun(tokenizer, text) if start else part_tokens(tokenizer, text)
    if not ids:
        raise PromptError(f"{shown(text)} has no token in the tokenizer of {name}; give another text.")
    complaint = beyond_vocabulary(ids, vocab_size, tokenizer, name)
    if complaint:
        raise PromptError(complaint)
    return ids


def _begun(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text behind the tokens that the tokenizer puts in front."""
    encoded = tokenizer(text, return_special_tokens_mask=True, return_attention_mask=False)
    ids, added = encoded.input_ids, encoded.special_tokens_mask
    while ids and added[-1]:
        ids, added = ids[:-1], added[:-1]
    bos = tokenizer.bos_token_id
    return ids[1:] if ids[:2] == [bos, bos] and list(added[:2]) == [1, 0] else ids


def chat_text(tokenizer: Any, messages: str | Sequence[Mapping[str, str]], name: str) -> ChatPrompt:
    """A chat in the tokenizer's chat template, up to where the answer begins.

    Args:
        tokenizer: a Hugging Face tokenizer, or None.
        messages: a user's message, or a list of `{"role", "content"}`.
        name: the model's name, for the error.

    Raises:
        PromptError: no message, no tokenizer, no chat template, or a template that refuses the chat.
    """
    if isinstance(messages, str):
        if not messages.strip():
            raise PromptError("The message is empty; write something for the model to answer.")
        messages = [{"role": "user", "content": messages}]
    listed = isinstance(messages, Sequence) and len(messages) > 0
    if not listed or not all(isinstance(message, Mapping) for message in messages):
        raise PromptError('A chat is a message, or a list of {"role": ..., "content": ...} with at least one.')
    if not getattr(require_tokenizer(tokenizer, name), "chat_template", None):
        raise PromptError(f"{name} has no chat template; use generate() with the prompt as the model wants it.")
    plain = type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    try:
        if plain:
            return ChatPrompt(render(tokenizer.get_chat_template(), messages, tokenizer.special_tokens_map))
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
    except (TemplateError, ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
        raise PromptError(f"The chat template of {name} refuses this chat: {reason_of(error)}.") from error
    if ids != tokenizer(text, add_special_tokens=False).input_ids:
        raise PromptError(
            f"The chat template of {name} gives other tokens than its text; give generate() the ids of "
            "tokenizer.apply_chat_template(..., add_generation_prompt=True)."
        )
    return ChatPrompt(text)


def token_tensor(
    tokens: Any, *, n_ctx: int, vocab_size: int, tokenizer: Any, name: str, device: torch.device
) -> Tensor:
    """Token ids as a tensor `[batch, pos]` on a device; one row `[pos]` becomes a batch of one.

    Raises:
        PromptError: ids that are no whole numbers or outside the vocabulary, another shape, or more than `n_ctx`.
    """
    try:
        tokens = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(f"A prompt is a text or token ids, not {type(tokens).__name__}.") from error
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise PromptError(f"Tokens are a tensor [batch, pos] with at least one position, not {tuple(tokens.shape)}.")
    if tokens.shape[1] > n_ctx:
        raise PromptError(f"The text has {tokens.shape[1]:,} tokens, but {name} sees only {n_ctx:,}.")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise PromptError(f"Token ids are whole numbers, not {tokens.dtype}.")
    complaint = beyond_vocabulary([int(tokens.min()), int(tokens.max())], vocab_size, tokenizer, name)
    if complaint:
        raise PromptError(complaint)
    return tokens.long().to(device)


def mask_tensor(mask: Tensor | None, tokens: Tensor) -> Tensor | None:
    """A mask as bool of the shape of `tokens`; None where it hides nothing. Raises `PromptError` for another shape."""
    if mask is None:
        return None
    if mask.shape != tokens.shape:
        raise PromptError(f"The mask is {tuple(mask.shape)}, but the tokens are {tuple(tokens.shape)}.")
    return None if bool(mask.all()) else mask.bool().to(tokens.device)


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows of token ids as one tensor `[batch, pos]`, 0 in the padding, with its mask; None if nothing is padded."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + [*row] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(longest) >= (longest - lengths)[:, None]
    return tokens.to(device), None if bool(mask.all()) else mask.to(device)


def rows_of(tokens: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The token ids of each row of a tensor `[batch, pos]`, without its padding."""
    rows = tokens.tolist()
    return rows if mask is None else [tokens[row][mask[row]].tolist() for row in range(len(rows))]


def stop_tokens(module: Any, tokenizer: Any) -> frozenset[int]:
    """The ids of the tokens that end a turn, by the model's generation settings and its tokenizer."""
    eos = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    stops = set(eos) if isinstance(eos, list) else {eos}
    return frozenset({*stops, getattr(tokenizer, "eos_token_id", None)} - {None})
