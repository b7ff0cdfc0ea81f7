"""What the examples of the documentation need, in small: a tiny model under the names of the default one.

Dictionaries, indexes and models that come with Workbench have small twins under the same names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import workbench as wb
from workbench.circuits import tasks_generated
from workbench.core import shipped
from workbench.model import LanguageModel

WIDTH, HEADS, LAYERS = 40, 5, 3
POINT = "blocks.1.hook_resid_post"
STORY = (
    "Last week we went to New York with the dog. The capital of France is Paris. I feel so sad, and I feel so glad.\n"
)
NEW_TOKENS = 4
"""Tokens of a continuation where an example names no number."""
WORDS = " ".join([tasks_generated.NAMES, tasks_generated.PLACES, tasks_generated.OBJECTS])


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level; the words of the examples and of the task of indirect objects are single tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    control = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([tiny.TEXT, STORY, f" {WORDS} Paris London France Italy Rome"] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", chat_template=tiny.CHAT, clean_up_tokenization_spaces=False
    )


class World:
    """The models by the names that examples open them by, and the folder with all that comes along."""

    def __init__(self, folder: Path):
        self.data = folder / "data"
        words = tokenizer()
        module = tiny.build(
            "llama",
            vocab_size=len(words),
            hidden_size=WIDTH,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
        )
        self.models = {"": wb.load_model(module, tokenizer=words)}
        self.models["model"] = self.models[""]
        self.models["smollm2-codebooks"] = self._coded(words)
        self.models["tokfsm-attention"] = self._speaker()
        (self.data / "corpora").mkdir(parents=True)
        texts = [f"{STORY}{tiny.TEXT.splitlines()[n % 3]} It was day {n}." for n in range(16)]
        wb.Corpus(texts, "stories", {"source": "tests", "licence": "MIT"}).save(
            self.data / "corpora" / "stories.parquet"
        )
        self._dictionaries(wb.Corpus(texts, "stories"))

    def _coded(self, words: Any) -> Any:
        coded = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
        book = wb.Codebook(32, 8, 1, groups=4)
        book.reads = book.writes = "blocks.1.attn.hook_z"
        coded.splices = {book.reads: book}
        return coded

    def _speaker(self) -> Any:
        settings = {"states": 60, "edges": 3, "digits": 2, "base": 8, "seed": 1}
        machine = wb.synthetic.TokFSM(**settings)
        module = tiny.build("llama", vocab_size=machine.n_vocab, max_position_embeddings=16, eos_token_id=None)
        speaker = wb.load_model(module, tokenizer=machine.tokenizer())
        book = wb.Codebook(32, 8, 1)
        book.reads = book.writes = "blocks.0.hook_attn_out"
        speaker.splices, speaker.about = {book.reads: book}, {"machine": settings}
        return speaker

    def _dictionaries(self, corpus: wb.Corpus) -> None:
        torch.manual_seed(0)
        folder = self.data / "dictionaries"
        resid = wb.TopKSAE(WIDTH, 104, k=8, hook_point=POINT, name="resid-15")
        resid.save(folder / resid.name)
        wb.build_index(self.models[""], resid, corpus, folder / resid.name / "index", context=64)
        for layer in range(1, LAYERS):
            ends = {"reads": f"blocks.{layer}.mlp.hook_in", "writes": f"blocks.{layer}.hook_mlp_out"}
            one = wb.dictionaries.TopKSkipTranscoder(WIDTH, 24, k=4, d_out=WIDTH, name=f"transcoder-{layer}", **ends)
            one.save(folder / one.name)

    def load_model(self, source: Any = None, **how: Any) -> Any:
        """`wb.load_model`, but for the names of the models that come along."""
        known = self.models.get(source or "") if isinstance(source, str | None) and not how else None
        return known or wb.interventions.load_model(source, **how)


@pytest.fixture(scope="module", name="world")
def small_world(tmp_path_factory: pytest.TempPathFactory, _tiny_cache: Path) -> World:
    """One for all pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
        return World(tmp_path_factory.mktemp("docs"))


def enter(world: World, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run in a folder where a stranger would, with the small twins under the names of what comes along."""
    patch.chdir(folder)
    patch.setenv(shipped.VARIABLE, os.pathsep.join([str(world.data)]))
    patch.setattr(wb, "load_model", world.load_model)
    for method in (LanguageModel.generate, LanguageModel.chat):
        patch.setattr(method, "__defaults__", (NEW_TOKENS,))
    (folder / "texts.txt").write_text("\n\n".join(f"{STORY} It was day {n}." for n in range(40)))
