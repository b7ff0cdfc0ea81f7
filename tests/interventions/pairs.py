"""Tiny models twice, under Workbench and plain with hooks, and the interventions that are tried on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tiny
import torch
from reference import PlainEdit, at_index
from torch import Tensor

import workbench as wb
from workbench.dictionaries.relu import SkipTranscoder
from workbench.dictionaries.topk import TopKSAE

INDEX = 7
LAYER = 1
PROMPT = 6
TOKENS = torch.tensor([[61, 258, 12, 300, 77, 5, 190, 33, 261, 88], [9, 270, 15, 42, 42, 101, 6, 330, 27, 3]])
PLACES = [("llama", s) for s in ("gate", "up", "post")] + [(a, s) for a in ("gpt2", "neox") for s in ("up", "post")]
RULES: list[Any] = ["all", "prompt", "generated", (0, 3, 7)]
Change = Callable[[Tensor], Tensor]
Kind = tuple[Callable[[str, Any], Any], Change]

KINDS: dict[str, Kind] = {
    "clamp": (lambda f, p: wb.Clamp(f, 3.5, positions=p), lambda old: torch.full_like(old, 3.5)),
    "clamp to 0": (lambda f, p: wb.Clamp(f, 0.0, positions=p), torch.zeros_like),
    "scale": (lambda f, p: wb.Scale(f, -2.5, positions=p), lambda old: old * -2.5),
    "ablate": (lambda f, p: wb.Ablate(f, positions=p), torch.zeros_like),
    "set to mean": (lambda f, p: wb.Ablate(f, "mean", 0.3, positions=p), lambda old: torch.full_like(old, 0.3)),
    "steer": (lambda f, p: wb.Steer(f, 2.25, positions=p), lambda old: old + 2.25),
}


@dataclass
class Pair:
    """One tiny model twice: under Workbench, and plain with hooks."""

    model: wb.model.LanguageModel
    plain: Any

    def edit(self, site: str, change: Change, rule: Any, index: int = INDEX, layer: int = LAYER) -> PlainEdit:
        """A plain hook on one neuron."""
        module, side = tiny.mlp(self.plain, layer)[site]
        return PlainEdit(module, side, at_index(index, change), rule)

    def logits(self, edits: list[Any], tokens: Tensor = TOKENS, prompt: int = PROMPT) -> Tensor:
        """Workbench's logits under interventions."""
        with self.model.intervening(edits):
            return self.model(tokens, prompt_length=prompt)


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-5)


RESID, HEADS, MLP_IN, MLP_OUT = (
    f"blocks.{LAYER}.{name}" for name in ("hook_resid_post", "attn.hook_z", "ln2.hook_out", "hook_mlp_out")
)
LATENTS: dict[str, Callable[[], Any]] = {
    "on the residual stream": lambda: TopKSAE(32, 48, 5, hook_point=RESID, name="mine"),
    "on heads": lambda: TopKSAE(32, 48, 5, hook_point=HEADS, name="mine"),
    "of a transcoder": lambda: SkipTranscoder(32, 48, reads=MLP_IN, writes=MLP_OUT, name="mine"),
}


def latents(case: str, seed: int = 0) -> Any:
    """A dictionary with random weights everywhere."""
    dictionary = LATENTS[case]()
    chance = torch.Generator().manual_seed(seed)
    for parameter in dictionary.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=chance)
    return dictionary


def plain_latents(pair: Pair, dictionary: Any, edit: Callable[[int, Tensor], Tensor]) -> list[PlainEdit]:
    """Plain hooks that add decode(edited) - decode(codes), all dense; `edit` gets position and codes `[batch, 48]`."""
    block = pair.plain.model.layers[LAYER]
    where = {
        RESID: (block, "out"),
        HEADS: (block.self_attn.o_proj, "in"),
        MLP_IN: (block.post_attention_layernorm, "out"),
        MLP_OUT: (block.mlp, "out"),
    }
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    position = iter(range(TOKENS.shape[1]))

    def write(x: Tensor) -> Tensor:
        read = seen.pop(0) if dictionary.reads != dictionary.writes else x
        sees = read if dictionary.W_skip is not None else read - dictionary.b_dec
        pre = sees @ dictionary.W_enc + dictionary.b_enc
        if dictionary.W_skip is None:  # TopK with k = 5
            pre = torch.where(pre >= pre.sort(dim=1, descending=True).values[:, 4:5], pre, 0)
        codes = pre.clamp(min=0)
        return x + (edit(next(position), codes.clone()) - codes) @ dictionary.W_dec

    write_edit = PlainEdit(*where[dictionary.writes], write)
    return (
        [write_edit]
        if dictionary.reads == dictionary.writes
        else [
            PlainEdit(*where[dictionary.reads], remember),
            write_edit,
        ]
    )
