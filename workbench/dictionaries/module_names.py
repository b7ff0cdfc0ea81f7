"""Hook points of a model's modules, by the modules' names in Hugging Face's models.

Tools that train on modules name a place by the module and read its input or its output. A module's name says which
hook point that is only where every architecture means the same by it: a block, its MLP, its attention. Others, such as
`post_attention_layernorm`, stand before the MLP in one architecture and behind the attention in another.
"""

from __future__ import annotations

import re

_BLOCK = re.compile(
    r"(?:(?:base_model|model|transformer|gpt_neox|language_model|decoder|backbone)\.)*(?:layers|h|blocks)\.(\d{1,6})"
    r"(?:\.(mlp|self_attn|self_attention|attention|attn))?"
)
"""A block or a part of it, from the model's base or from above."""


def hook_points_of(module: str) -> tuple[str, str]:
    """The hook points of a module's input and output; two empty texts where its name does not say what it is.

    An MLP's are those of the module itself, which in some architectures stands before a norm whose output is
    `hook_mlp_out`.
    """
    found = _BLOCK.fullmatch(module)
    if not found:
        return "", ""
    block = f"blocks.{int(found[1])}"
    if found[2] is None:
        return f"{block}.hook_resid_pre", f"{block}.hook_resid_post"
    part = f"{block}.{'mlp' if found[2] == 'mlp' else 'attn'}"
    return f"{part}.hook_in", f"{part}.hook_out"
