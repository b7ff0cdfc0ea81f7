"""The tokenizer that a GGUF file describes: byte-level BPE, or SentencePiece BPE, built from its vocabulary.

A file holds the tokens, their kinds and merges or scores. How a text is cut into words before that stands in a name
only (`tokenizer.ggml.pre`), whose meaning is llama.cpp's; a name without a line here is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from workbench.core.type_words import reason_of, shown
from workbench.model.gguf_header import Header
from workbench.model.weights import ModelError

NORMAL, UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens."""
SPACE = "\u2581"
"""How SentencePiece writes a space."""
PREFIX = "tokenizer.ggml."
LONGEST, PAIRS, PAIRS_MORE = 1000, 16, 10_000
"""Characters of a token of SentencePiece, and pairs that make its tokens: for each token, and more."""
LISTS = ("tokens", "token_type", "merges", "scores")
FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix", "add_sep_token", "remove_extra_whitespaces")
ENDS_OF_TURNS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")
ENDS_OF_TURNS += ("<|end_of_text|>", "<|return|>", "<EOT>", "<turn|>")
"""Texts of control tokens that end a turn where a chat template writes them."""


@dataclass(frozen=True)
class Cut:
    """How a byte-level vocabulary cuts a text into words."""

    pattern: str = ""
    """What a word is; empty for the words of GPT-2."""
    digits: bool = False
    """Each digit is a word of its own."""
    composed: bool = False
    """Characters are composed first (NFC)."""
    whole: bool = False
    """A word that is a token stays whole, whatever the merges say."""
    begins: bool = False
    """A text gets the first token, unless the file says otherwise."""


_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"

CUTS: dict[str, Cut] = {
    "gpt-2": Cut(),
    "olmo": Cut(),
    "smollm": Cut(digits=True),
    "starcoder": Cut(digits=True),
    "refact": Cut(digits=True),
    "codeshell": Cut(digits=True),
    "llama-bpe": Cut(_LLAMA3, whole=True, begins=True),
    "smaug-bpe": Cut(_LLAMA3),
    "dbrx": Cut(_LLAMA3),
    "qwen2": Cut(rf"{_SHORT}|{_WORD}|\p{{N}}|{_REST}", composed=True),
    "deepseek-r1-qwen": Cut(rf"{_SHORT}|{_WORD}|\p{{N}}|{_REST}", composed=True),
    "tekken": Cut(rf"{_CASED}|{_CAPITALS}|\p{{N}}|{_REST_WITH_SLASH}", whole=True, begins=True),
    "gpt-4o": Cut(rf"{_CASED}{_SHORT}?|{_CAPITALS}{_SHORT}?|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}"),
    "bloom": Cut(r" ?[^(\s|.,!?…。，、।۔،)]+"),
}
CUTS |= {"llama3": CUTS["llama-bpe"], "llama-v3": CUTS["llama-bpe"]}
"""By `tokenizer.ggml.pre`."""


class Vocabulary:
    """The tokens of a file, checked against each other."""

    def __init__(self, header: Header, rows: int):
        self.header = header
        self.words = header.texts(f"{PREFIX}tokens")
        self.kinds: list[int] = header.numbers(f"{PREFIX}token_type").tolist()
        self.ids = {word: number for number, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            raise ModelError(f"{header.path} has two tokens of the same text; convert the model again.")
        if len(self.kinds) != len(self.words) or len(self.words) > rows:
            raise header.fault(f"{PREFIX}tokens", f"at most {rows:,} tokens, each with its kind")
        self._refuse_others()

    def of_kind(self, *kinds: int) -> list[str]:
        """The tokens of some kinds, in their order."""
        return [word for word, kind in zip(self.words, self.kinds, strict=True) if kind in kinds]

    def special(self, name: str) -> str | None:
        """The token that the file states for a purpose, such as `bos`; None where it states none."""
        key = f"{PREFIX}{name}_token_id"
        if key not in self.header.fields:
            return None
        number = self.header.whole(key)
        if number >= len(self.words):
            raise self.header.fault(key, f"one of its {len(self.words):,} tokens")
        return self.words[number]

    def _refuse_others(self) -> None:
        """Raise `ModelError` for a field of the tokenizer that nobody reads and that is no token's number."""
        known = {PREFIX + name for name in (*LISTS, *FLAGS, "model", "pre")}
        for key in self.header.fields:
            if key.startswith(PREFIX) and key not in known and not key.endswith("_token_id"):
                raise ModelError(
                    f"{self.header.path} states {key}, which Workbench does not know of a tokenizer; give the "
                    "tokenizer of its model on Hugging Face: wb.load_model(..., tokenizer=...)."
                )


def read_gguf_tokenizer(header: Header, rows: int, length: int) -> Any:
    """The fast Hugging Face tokenizer of a GGUF file, with its chat template.

    Args:
        header: of the file.
        rows: of the model's embedding.
        length: tokens of the model's context.

    Raises:
        ModelError: a vocabulary of another kind, a way of cutting words that is not known, or damaged lists.
    """
    from transformers import PreTrainedTokenizerFast

    vocabulary = Vocabulary(header, rows)
    kind = header.text(f"{PREFIX}model")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise _unknown(header, f"a tokenizer of the kind {shown(kind)}")
    try:
        tokenizer, begins = makers[kind](vocabulary)
    except ModelError:
        raise
    except Exception as error:  # the library of tokenizers raises this for merges that are no tokens
        raise ModelError(f"{header.path} has a damaged tokenizer: {reason_of(error)}; fetch it again.") from error
    tokenizer.add_special_tokens(_added(vocabulary.of_kind(CONTROL), special=True))
    tokenizer.add_tokens(_added(vocabulary.of_kind(ADDED), special=False))
    _surround(tokenizer, vocabulary, begins)
    template = header.text("tokenizer.chat_template") if "tokenizer.chat_template" in header.fields else None
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=vocabulary.special("bos"),
        eos_token=vocabulary.special("eos"),
        unk_token=vocabulary.special("unknown"),
        pad_token=vocabulary.special("padding"),
        chat_template=template,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def ends_of_turns(header: Header) -> list[int]:
    """The ids of the tokens that end a turn, in ascending order.

    These are those that the file states (`eos`, `eot`, `eom`), and the control tokens of `ENDS_OF_TURNS` that its chat
    template writes: for many models a file states only the token that ends a text.
    """
    fields = header.fields
    stated = {header.whole(key) for name in ("eos", "eot", "eom") if (key := f"{PREFIX}{name}_token_id") in fields}
    template = fields.get("tokenizer.chat_template", "")
    words, kinds = fields.get(f"{PREFIX}tokens"), fields.get(f"{PREFIX}token_type")
    if not (isinstance(template, str) and isinstance(words, list) and isinstance(kinds, np.ndarray)):
        return sorted(stated)
    written = {word for word in ENDS_OF_TURNS if word in template}
    kinded = enumerate(zip(words, kinds.tolist(), strict=False))
    found = {number for number, (word, kind) in kinded if word in written and kind == CONTROL} if written else set()
    return sorted(stated | found)


def _unknown(header: Header, what: str) -> ModelError:
    return ModelError(
        f"{header.path} has {what}, which Workbench does not know; give the tokenizer of its model on Hugging Face: "
        "wb.load_model(..., tokenizer=...)."
    )


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """A tokenizer whose tokens are bytes, and whether a text gets the first token by default."""
    header = vocabulary.header
    name = header.fields.get(f"{PREFIX}pre", "")
    cut = CUTS.get(name) if isinstance(name, str) else None
    if cut is None:
        raise _unknown(header, f"words cut in a way it calls {shown(name)}" if name else "no tokenizer.ggml.pre")
    merges = [tuple(merge.split(" ", 1)) for merge in header.texts(f"{PREFIX}merges")]
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=cut.whole))  # type: ignore[arg-type]
    if cut.composed:
        tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut.pattern)
    first: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    first += [pre_tokenizers.Split(Regex(cut.pattern), "isolated")] if cut.pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer, cut.begins


def _sentencepiece(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """A tokenizer whose tokens are characters, and bytes for others; a text gets the first token by default."""
    header = vocabulary.header
    if header.fields.get(f"{PREFIX}pre", "default") != "default":
        raise _unknown(header, f"words cut in a way it calls {shown(header.fields[f'{PREFIX}pre'])}")
    if header.fields.get(f"{PREFIX}remove_extra_whitespaces"):
        raise _unknown(header, "a tokenizer that leaves out spaces")
    bytes_too = {f"<0x{byte:02X}>" for byte in range(256)} <= vocabulary.ids.keys()
    unknown = vocabulary.special("unknown")
    model = models.BPE(vocabulary.ids, _merges(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=bytes_too)
    tokenizer = Tokenizer(model)
    prefix = header.yes(f"{PREFIX}add_space_prefix", True)
    steps: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])  # type: ignore[assignment]
    back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    back += [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(back)  # type: ignore[assignment]
    return tokenizer, True


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Pairs of tokens that make another one, the best first: SentencePiece joins those of the highest score."""
    header, ids = vocabulary.header, vocabulary.ids
    scores = header.numbers(f"{PREFIX}scores").tolist()
    if len(scores) != len(vocabulary.words):
        raise header.fault(f"{PREFIX}scores", f"a number for each of {len(vocabulary.words):,} tokens")
    normal = [number for number, kind in enumerate(vocabulary.kinds) if kind in (NORMAL, UNUSED)]
    normal.sort(key=lambda number: -scores[number])
    pairs: list[tuple[str, str]] = []
    most = PAIRS * len(normal) + PAIRS_MORE
    for number in normal:
        word = vocabulary.words[number]
        if len(word) > LONGEST or len(pairs) > most:
            raise ModelError(f"{header.path} has a vocabulary whose tokens are joined in too many ways.")
        lefts = [left for place in range(1, len(word)) if (left := word[:place]) in ids and word[place:] in ids]
        pairs += [(left, word[len(left) :]) for left in sorted(lefts, key=ids.__getitem__)]
    return pairs


def _added(words: list[str], *, special: bool) -> list[AddedToken]:
    return [AddedToken(word, special=special, normalized=False) for word in words]


def _surround(tokenizer: Tokenizer, vocabulary: Vocabulary, begins: bool) -> None:
    """Let the tokenizer put tokens around a text, as the file says."""
    header = vocabulary.header
    parts, pairs = ["$A"], []
    for name, default in (("bos", begins), ("eos", False)):
        if not header.yes(f"{PREFIX}add_{name}_token", default):
            continue
        word = vocabulary.special(name)
        if word is None:
            raise header.fault(f"{PREFIX}{name}_token_id", "the token that its texts get")
        parts = [word, *parts] if name == "bos" else [*parts, word]
        pairs.append((word, vocabulary.ids[word]))
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=[part if part == "$A" else f"{part}:0" for part in parts], special_tokens=pairs
        )
