"""The product with the LM head: the weight is read once and never copied."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import workbench as wb


class Copies(TorchDispatchMode):
    """Records the operations that make or take a copy as large as a weight."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.seen = size, []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::bmm"):
            sizes = [one.numel() for one in (*args, made) if isinstance(one, torch.Tensor)]
            if self.size in sizes:
                self.seen.append(name)
        return made


def test_the_logits_of_the_last_position_copy_no_weight() -> None:
    model = wb.load_model(tiny.build("llama", tie_word_embeddings=False), tokenizer=tiny.tokenizer())
    tokens = model.to_tokens("The dog ran to the river")
    wanted = model(tokens)[:, -1:]
    for rows in (1, 2):
        copies = Copies(model.network.vocab_size * model.network.d_model)
        with torch.no_grad(), copies:
            logits = model.network.run(tokens.expand(rows, -1), last=1)
        assert copies.seen == []
        assert torch.allclose(logits, wanted.expand(rows, -1, -1), atol=1e-5)
