"""A configuration of the zoo, plain and under Workbench: what the checks of the columns of docs/models.md run on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import tiny
import torch
import zoo
from torch import Tensor, nn

import workbench as wb

CLOSE = 1e-4
"""Of logits, log-probabilities and activations in float32."""
TOKENS = torch.arange(14)[None] * 37 % tiny.VOCAB


@dataclass
class Subject:
    """A configuration of the zoo, twice: plain, and under Workbench."""

    name: str

    @functools.cached_property
    def plain(self) -> Any:
        return zoo.build(self.name)

    @functools.cached_property
    def model(self) -> Any:
        return wb.load_model(zoo.build(self.name), tokenizer=tiny.tokenizer())

    @functools.cached_property
    def layers(self) -> list[nn.Module]:
        """The blocks of the plain model: the longest list of modules of one class."""
        lists = [
            one for one in self.plain.modules() if isinstance(one, nn.ModuleList) and len({type(m) for m in one}) == 1
        ]
        return list(max(lists, key=lambda one: sum(p.numel() for p in one.parameters())))

    def logits(self, tokens: Tensor = TOKENS) -> Tensor:
        with torch.no_grad():
            return self.plain(input_ids=tokens, use_cache=False).logits

    def seen(self, module: nn.Module, side: str, tokens: Tensor = TOKENS) -> Tensor:
        """What goes into or comes out of a plain module, `[batch, pos, width]`."""
        found: list[Tensor] = []

        def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor)))

        def after(_: nn.Module, __: tuple, ___: dict[str, Any], output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        if side == "in":
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(after, with_kwargs=True)
        try:
            self.logits(tokens)
        finally:
            handle.remove()
        return found[0].reshape(*tokens.shape, -1)

    def changed(self, module: nn.Module, change: Callable[[Tensor], Tensor], tokens: Tensor = TOKENS) -> Tensor:
        """Logits of a plain pass in which what goes into a module is changed."""

        def before(_: nn.Module, args: tuple) -> tuple:
            return (change(args[0].clone()), *args[1:])

        handle = module.register_forward_pre_hook(before)
        try:
            return self.logits(tokens)
        finally:
            handle.remove()

    def down(self, layer: int) -> nn.Module:
        """The projection of a layer from its neurons into the stream, by shape: from most to the stream's width."""
        d_model = self.model.network.d_model
        width = self.model.network.neuron_hook_point(layer, "post").width
        fits = [m for m in self.layers[layer].modules() if sizes(m) == (width, d_model)]
        assert fits, "the plain model has no projection of this width"
        return fits[-1]


def sizes(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear map, however it stores them."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":
        return tuple(module.weight.shape)  # type: ignore[return-value]
    return None


def same(one: Tensor, other: Tensor, what: str, within: float = CLOSE) -> None:
    one, other = one.detach(), other.detach()
    scale = max(1.0, float(other.abs().max()))
    assert one.shape == other.shape, f"{what}: {tuple(one.shape)} and {tuple(other.shape)}"
    assert float((one - other).abs().max()) <= within * scale, f"{what}: off by {float((one - other).abs().max()):.3g}"


def random_transcoders(one: Subject, word: str, layers: Iterable[int]) -> list[Any]:
    """A transcoder with random weights for each layer, from the MLP's input to the place of this name."""
    torch.manual_seed(0)
    d, coders = one.model.network.d_model, []
    for layer in layers:
        coder = wb.dictionaries.TopKTranscoder(
            d, 24, k=4, reads=f"blocks.{layer}.mlp.hook_in", writes=f"blocks.{layer}.{word}", name=f"t{layer}"
        )
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape))
        coders.append(coder)
    return coders
