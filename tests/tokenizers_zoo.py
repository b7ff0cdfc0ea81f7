"""Small tokenizers of every kind that laws run over: how they cut, what they put around a text, how large they are.

`build(name)` gives a fast tokenizer of Hugging Face, trained on `tiny.TEXT`. The names of the special tokens are those
of no family, so that nothing is recognised by its spelling.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, UNK = "<|first|>", "<|end|>", "<|pad|>", "<|unk|>"
PLAIN = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """One tokenizer."""

    cuts: str
    """`bytes`: byte-level BPE. `metaspace`: BPE over words that begin with ▁; its decoder strips a text's first space.
    `fallback`: the same with a normalizer in place of a pre-tokenizer, and bytes for unknown characters. `unigram`: a
    unigram model over ▁ words. `words`: WordPiece."""
    bos: bool = False
    """Whether a text gets a token in front."""
    eos: bool = False
    """Whether a text gets a token behind it."""
    chat: str = ""
    """The chat template: none, `plain`, or `bos` if it writes the first token itself."""
    size: int = tiny.VOCAB
    first: bool = True
    """Whether it has a BOS token at all."""

    @property
    def words(self) -> str:
        """The kind in words."""
        form = {
            "bytes": "byte-level",
            "metaspace": "Metaspace",
            "fallback": "Metaspace, byte fallback",
            "unigram": "unigram, Metaspace",
            "words": "WordPiece",
        }[self.cuts]
        form += "" if self.first else " without BOS"
        added = " and ".join(name for name, has in (("BOS", self.bos), ("EOS", self.eos)) if has)
        template = {"": "", "plain": ", chat template", "bos": ", chat template that writes BOS"}[self.chat]
        size = "" if self.size == tiny.VOCAB else f", {self.size} tokens"
        return f"{form}{', adds ' + added if added else ''}{template}{size}"


KINDS: dict[str, Kind] = {
    "bytes": Kind("bytes"),
    "bytes-bos": Kind("bytes", bos=True, chat="plain"),
    "bytes-bos-chat-bos": Kind("bytes", bos=True, chat="bos"),
    "bytes-eos-chat": Kind("bytes", eos=True, chat="plain"),
    "bytes-both-chat-bos": Kind("bytes", bos=True, eos=True, chat="bos"),
    "bytes-none-chat-bos": Kind("bytes", chat="bos"),
    "metaspace-bos-chat": Kind("metaspace", bos=True, chat="plain"),
    "metaspace-bos-chat-bos": Kind("metaspace", bos=True, chat="bos"),
    "metaspace": Kind("metaspace"),
    "fallback-bos": Kind("fallback", bos=True),
    "fallback-both-chat": Kind("fallback", bos=True, eos=True, chat="plain"),
    "unigram-eos": Kind("unigram", eos=True),
    "words": Kind("words", bos=True, eos=True),
    "bytes-smaller": Kind("bytes", bos=True, size=300),
    "bytes-without": Kind("bytes", chat="plain", first=False),
    "bytes-larger": Kind("bytes", bos=True, size=345),
}
"""By name; models of the zoo have 331 tokens."""


@functools.cache
def build(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of this name."""
    kind = KINDS[name]
    core = _core(kind)
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in (BOS, EOS, PAD, UNK)])
    words = [*([BOS] if kind.bos else []), "$A", *([EOS] if kind.eos else [])]
    if len(words) > 1:
        pairs = [(word, core.token_to_id(word)) for word in (BOS, EOS)]
        core.post_processor = processors.TemplateProcessing(single=" ".join(words), special_tokens=pairs)
    template = {"": None, "plain": PLAIN, "bos": "{{ bos_token }}" + PLAIN}[kind.chat]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS if kind.first else None,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def _core(kind: Kind) -> Tokenizer:
    special = [BOS, EOS, PAD, UNK]
    if kind.cuts == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=kind.size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind.cuts in ("metaspace", "fallback"):
        core = Tokenizer(models.BPE(unk_token=UNK, byte_fallback=kind.cuts == "fallback"))
        extra = [f"<0x{byte:02X}>" for byte in range(256)] if kind.cuts == "fallback" else []
        if kind.cuts == "metaspace":
            core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
            core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
        else:
            core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            core.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
        trainer = trainers.BpeTrainer(
            vocab_size=max(kind.size, 320), special_tokens=[*special, *extra], show_progress=False
        )
    elif kind.cuts == "unigram":
        core = Tokenizer(models.Unigram())
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
        core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token=UNK, show_progress=False)
    else:
        core = Tokenizer(models.WordPiece(unk_token=UNK))
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        core.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=kind.size, special_tokens=special, show_progress=False)
    core.train_from_iterator([tiny.TEXT], trainer)
    return _without_special_bytes(core) if kind.cuts == "fallback" else core


def _without_special_bytes(core: Tokenizer) -> Tokenizer:
    """The same, with bytes as ordinary tokens; a trainer takes words of a fixed place as special tokens only."""
    parts = json.loads(core.to_str())
    parts["added_tokens"] = [one for one in parts["added_tokens"] if not one["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(parts))
