"""Small untrained models, and a tokenizer for them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import workbench as wb


def byte_tokenizer(corpus: wb.Corpus, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `size` tokens, trained on the corpus; its BOS token is `<s>`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus.texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")


def tiny_llama(tokenizer: PreTrainedTokenizerFast) -> Any:
    """An untrained Llama of 4 layers and width 48, with three heads and as many key and value heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=3,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["LlamaForCausalLM"],
    )
    return LlamaForCausalLM(config)
