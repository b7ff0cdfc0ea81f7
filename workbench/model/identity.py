"""The identity of a model: a hash over all that decides what it reads, computes and writes.

It covers the tensors of the checkpoint, the settings of the configuration, the tokens that end a turn and the
tokenizer. It says nothing of where a model was found, or of the libraries that opened it.

A tokenizer counts by what it does: its vocabulary, its template of chats, and what it makes of fixed texts and of a
sample of its own tokens. Two forms of one tokenizer, such as before and after saving, have one hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from workbench.core.hashing import hash_of

VERSION = 2
"""Of the identity; version 1 was the hash of the tensors alone, with those of dictionaries in them."""
SETTINGS_LEFT_OUT = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
SETTINGS_LEFT_OUT += ("use_cache", "output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id")
SETTINGS_LEFT_OUT += ("problem_type", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "auto_map")
"""Values of a configuration that decide nothing of what a model computes, or stand for themselves in the hash."""
SAMPLE = 2048
"""Tokens of a vocabulary that a tokenizer is tried on, at most."""
AT_ONCE = 32
"""Tokens of a text that it is tried on."""
TEXTS = (
    "The dog ran to the river, and 3.14159 is not 1,000,000; isn't it?",
    "  Two  spaces,\ttabs\nand\r\nlines.  ",
    "Ärger über Öl: naïve façade – “quotes” … 東京 Москва العربية 한국어 😀👩‍💻",
    "def mean(numbers):\n    return sum(numbers) / len(numbers)  # {0: 'a'}",
    "<s></s><|endoftext|>[CLS][SEP]<pad><unk>",
)
"""Texts that a tokenizer is tried on."""


@runtime_checkable
class Hashed(Protocol):
    """A dictionary, as far as the identity of a model asks for it."""

    @property
    def hash(self) -> str:
        """Over all that decides what it computes."""
        ...


def plain_identity(weights: str, config: Any, stop_tokens: Collection[int], tokenizer: Any) -> str:
    """The hash of a model without dictionaries.

    Args:
        weights: the fingerprint of its tensors.
        config: its Hugging Face configuration.
        stop_tokens: ids of the tokens that end a turn.
        tokenizer: its Hugging Face tokenizer, or None.
    """
    content = [VERSION, weights, settings_of(config.to_dict()), sorted(stop_tokens), tokenizer_hash(tokenizer)]
    return hash_of(content)


def spliced_identity(plain: str, splices: Mapping[str, Any]) -> str:
    """The hash of a model that runs through dictionaries; `plain` where there are none.

    Args:
        plain: the hash of the model without them.
        splices: the dictionaries by hook point.
    """
    hashes = {point: one.hash if isinstance(one, Hashed) else str(one) for point, one in splices.items()}
    return hash_of([VERSION, plain, hashes]) if hashes else plain


def settings_of(values: Any) -> Any:
    """The values of a configuration that decide, as plain data; what is empty or False is left out, since versions of
    transformers differ in whether they write it down."""
    if isinstance(values, Mapping):
        plain = {str(name): settings_of(value) for name, value in values.items() if name not in SETTINGS_LEFT_OUT}
        return {name: value for name, value in plain.items() if value not in (None, False, "", {}, [])}
    if isinstance(values, list | tuple | set):
        return [settings_of(value) for value in values]
    if isinstance(values, float) and values.is_integer():
        return int(values)
    return values if isinstance(values, str | int | float | bool | None) else str(values)


def tokenizer_hash(tokenizer: Any) -> str:
    """The hash of what a tokenizer does; empty for None."""
    if tokenizer is None:
        return ""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    words = sorted(vocabulary, key=lambda word: (vocabulary[word], word))
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"{vocabulary[word]} {word}\n".encode(errors="surrogatepass"))
    some = words[:: max(len(words) // SAMPLE, 1)]
    texts = [*TEXTS, *("".join(some[start : start + AT_ONCE]) for start in range(0, len(some), AT_ONCE))]
    ids = [vocabulary[word] for word in some]
    said = {
        "vocabulary": digest.hexdigest(),
        "ids": [_outcome(lambda text=text: list(tokenizer(text).input_ids)) for text in texts],
        "texts": [
            _outcome(lambda part=ids[start : start + AT_ONCE]: tokenizer.decode(part))
            for start in range(0, len(ids), AT_ONCE)
        ],
        "special": _outcome(lambda: sorted(tokenizer.all_special_ids)),
        "template": _outcome(lambda: tokenizer.chat_template),
        "bos": _outcome(lambda: [tokenizer.bos_token_id, tokenizer.eos_token_id]),
    }
    return hash_of(said)


def _outcome(act: Any) -> Any:
    """What a call returns, or the kind of the error that it raises: a tokenizer may refuse a text."""
    try:
        return act()
    except Exception as error:  # noqa: BLE001, of any library
        return type(error).__name__
