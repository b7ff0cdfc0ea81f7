"""The identity of a model: a hash over all that decides what it reads, computes and writes.

It covers the tensors of the checkpoint, the settings of the configuration, the tokens that end a turn and the
tokenizer. It says nothing of where a model was found, or of the libraries that opened it.

Of a configuration it covers the kind of model and the values that differ from the defaults of its class. Another
version of transformers may know more settings: at their defaults these leave the hash as it is. A version that changes
a default changes the hashes of models that have the old or the new value.

A tokenizer counts by what it does: its vocabulary, its template of chats, and what it makes of fixed texts and of a
sample of its own tokens. Two forms of one tokenizer, such as before and after saving, have one hash.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol, TypeGuard
from weakref import WeakKeyDictionary

from workbench.core.hashing import hash_of
from workbench.model.weights import building

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

_of_tokenizers: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()
"""The hash of each tokenizer, and the settings under which it was taken."""


class Hashed(Protocol):
    """A dictionary, as far as the identity of a model asks for it."""

    @property
    def hash(self) -> str:
        """Over all that decides what it computes."""
        ...


def is_hashed(one: object) -> TypeGuard[Hashed]:
    """Whether it has a hash; this is looked up on its class, since the property reads all tensors."""
    return hasattr(type(one), "hash")


def plain_identity(weights: str, config: Any, stop_tokens: Collection[int], tokenizer: Any) -> str:
    """The hash of a model without dictionaries.

    Args:
        weights: the fingerprint of its tensors.
        config: its Hugging Face configuration.
        stop_tokens: ids of the tokens that end a turn.
        tokenizer: its Hugging Face tokenizer, or None.
    """
    content = [VERSION, weights, settings_of(config), sorted(stop_tokens), tokenizer_hash(tokenizer)]
    return hash_of(content)


def spliced_identity(plain: str, splices: Mapping[str, Any]) -> str:
    """The hash of a model that runs through dictionaries; `plain` where there are none.

    Args:
        plain: the hash of the model without them.
        splices: the dictionaries by hook point.
    """
    hashes = {point: one.hash if is_hashed(one) else str(one) for point, one in splices.items()}
    return hash_of([VERSION, plain, hashes]) if hashes else plain


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a Hugging Face configuration that decide, as plain data.

    These are the kind of model and the values that differ from the defaults of the configuration's class. A value that
    is empty or False where the default is not is written as None. A nested configuration is compared with the defaults
    of its own class. All values count where the class has no defaults.
    """
    nested = {name: value for name, value in vars(config).items() if _is_config(value)}
    values, defaults = _plain(config.to_dict()), _defaults(type(config))
    differing = {
        name: values.get(name)
        for name in values.keys() | defaults.keys()
        if name not in nested and values.get(name) != defaults.get(name)
    }
    return differing | {name: settings_of(one) for name, one in nested.items()} | {"model_type": config.model_type}


def _is_config(value: Any) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "model_type")


@functools.lru_cache(256)
def _defaults(kind: type) -> dict[str, Any]:
    """The values of a configuration of this class that nobody set; none where it needs settings."""
    with building():  # transformers warns of defaults that do not fit together
        try:
            return _plain(kind().to_dict())
        except Exception:  # noqa: BLE001, of any library
            return {}


def _plain(values: Any) -> Any:
    """Values as plain data; what is empty or False is left out, since versions of transformers differ in whether they
    write it down."""
    if isinstance(values, Mapping):
        plain = {str(name): _plain(value) for name, value in values.items() if name not in SETTINGS_LEFT_OUT}
        return {name: value for name, value in plain.items() if value not in (None, False, "", {}, [])}
    if isinstance(values, list | tuple | set):
        return [_plain(value) for value in values]
    if isinstance(values, float) and values.is_integer():
        return int(values)
    return values if isinstance(values, str | int | float | bool | None) else str(values)


def tokenizer_hash(tokenizer: Any) -> str:
    """The hash of what a tokenizer does; empty for None.

    It is remembered while the tokenizer keeps its template, its ends and the size of its vocabulary.
    """
    if tokenizer is None:
        return ""
    state = [
        _outcome(lambda: len(tokenizer)),
        _outcome(lambda: str(tokenizer.chat_template)),
        _outcome(lambda: [tokenizer.bos_token_id, tokenizer.eos_token_id, *tokenizer.all_special_ids]),
    ]
    try:
        known = _of_tokenizers.get(tokenizer)
    except TypeError:  # it can't be a key
        return _tokenizer_hash(tokenizer)
    if known is None or known[0] != state:
        known = _of_tokenizers[tokenizer] = state, _tokenizer_hash(tokenizer)
    return known[1]


def _tokenizer_hash(tokenizer: Any) -> str:
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
