"""What the tests compare with: plain PyTorch forward hooks on a plain Hugging Face model, with loops in place of masks.

Every pass is a full one, without a key-value cache. Nothing here uses Workbench.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]


@dataclass
class PlainEdit:
    """At the input or output of a module, `change` what stands at the chosen positions."""

    module: nn.Module
    side: str
    change: Change
    """From the vector at one position, `[batch, width]`, to the new one."""
    positions: str | Sequence[int] = "all"


def chosen(rule: str | Sequence[int], position: int, prompt_length: int) -> bool:
    """Whether a rule means this absolute position."""
    if rule == "all":
        return True
    if rule == "prompt":
        return position < prompt_length
    if rule == "generated":
        return position >= prompt_length
    return position in rule


def at_index(index: int, change: Change) -> Change:
    """The change of one coordinate, as a change of the vector."""

    def whole(vector: Tensor) -> Tensor:
        vector = vector.clone()
        vector[:, index] = change(vector[:, index])
        return vector

    return whole


def logits_under(
    module: nn.Module, tokens: Tensor, edits: Sequence[PlainEdit] = (), prompt_length: int | None = None
) -> Tensor:
    """Logits `[batch, pos, vocab]` of a full pass with the edits as hooks, in order."""
    length = tokens.shape[1] if prompt_length is None else prompt_length

    def edited(edit: PlainEdit, value: Tensor) -> Tensor:
        value = value.clone()
        for position in range(value.shape[1]):
            if chosen(edit.positions, position, length):
                value[:, position] = edit.change(value[:, position])
        return value

    def put(edit: PlainEdit) -> torch.utils.hooks.RemovableHandle:
        def before(_module: nn.Module, args: tuple) -> tuple:
            return (edited(edit, args[0]), *args[1:])

        def after(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Tensor | tuple:
            if isinstance(output, tuple):
                return (edited(edit, output[0]), *output[1:])
            return edited(edit, output)

        if edit.side == "in":
            return edit.module.register_forward_pre_hook(before)
        return edit.module.register_forward_hook(after)

    handles = [put(edit) for edit in edits]
    try:
        with torch.no_grad():
            return module(input_ids=tokens, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def seen_at(module: nn.Module, place: nn.Module, side: str, tokens: Tensor, edits: Sequence[PlainEdit] = ()) -> Tensor:
    """The tensor that goes into or comes out of one module in a plain pass, under edits before it."""
    found = []

    def keep(vector: Tensor) -> Tensor:
        found.append(vector)
        return vector

    logits_under(module, tokens, [*edits, PlainEdit(place, side, keep)])
    return torch.stack(found, 1)


def greedy(
    module: nn.Module,
    prompt: Tensor,
    count: int,
    edits: Callable[[int], Sequence[PlainEdit]] | Sequence[PlainEdit] = (),
) -> tuple[list[int], list[float]]:
    """The likeliest continuation of one row `[1, pos]`, each token by a full pass over all before it; with logprobs."""
    tokens, logprobs = prompt, []
    for _ in range(count):
        scores = logits_under(module, tokens, edits, prompt.shape[1])[0, -1].log_softmax(-1)
        best = scores.argmax()
        logprobs.append(float(scores[best]))
        tokens = torch.cat([tokens, best.view(1, 1)], 1)
    return tokens[0, prompt.shape[1] :].tolist(), logprobs


def kl(of: Tensor, to: Tensor) -> Tensor:
    """KL(of ‖ to) in nats for logits `[..., vocab]`, in double precision."""
    first, second = of.double().log_softmax(-1), to.double().log_softmax(-1)
    return (first.exp() * (first - second)).sum(-1)
