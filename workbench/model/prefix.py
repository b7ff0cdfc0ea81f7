"""A copy in float32 of a model's first layers, on which hook points are found for all of its layers.

Numbers of 16 bits are too coarse to tell whether two trees of modules compute one tensor. The copy has the fewest first
layers that hold every kind of layer, with their own weights, and the embeddings of a few tokens. Two layers are of one
kind where the classes, the shapes and the plain attributes of their modules are the same, whatever their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.model.hookpoints import HookPoint
from workbench.model.modules import sharing_copy
from workbench.model.sharded import make_whole
from workbench.model.weights import whole

TOKENS = 17
"""Tokens of the copy, at least."""
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


class UnclearError(Exception):
    """A model whose hook points can't be told from a few layers."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first layers of a model in float32.

    Args:
        module: the copy.
        layers: the path of the layers in the model and in the copy.
        like: for each layer of the model, the number of the first layer of its kind.
        tokens: how many tokens the copy has.
        vocab_size: how many tokens the model has.
    """

    module: Any
    layers: str
    like: tuple[int, ...]
    tokens: int
    vocab_size: int

    def expanded(self, points: Iterable[HookPoint]) -> list[HookPoint]:
        """The hook points of the model, for those of the copy.

        Raises:
            UnclearError: layers of one kind have other hook points, or the layers' names do not follow each other.
        """
        before: list[HookPoint] = []
        behind: list[HookPoint] = []
        blocks: dict[int, list[HookPoint]] = {}
        for point in points:
            match = _BLOCK.fullmatch(point.name)
            if match is None:
                (behind if blocks else before).append(self._with_all_tokens(point))
            elif behind:
                raise UnclearError
            else:
                blocks.setdefault(int(match[1]), []).append(point)
        for number, own in blocks.items():
            if own != [self._moved(point, self.like[number], number) for point in blocks[self.like[number]]]:
                raise UnclearError
        everywhere = (self._moved(p, old, new) for new, old in enumerate(self.like) for p in blocks[old])
        return [*before, *everywhere, *behind]

    def in_copy(self, key: str) -> str:
        """The key of a hook point of the model, in the copy."""
        match = _BLOCK.fullmatch(key)
        return f"blocks.{self.like[int(match[1])]}.{match[2]}" if match else key

    def _moved(self, point: HookPoint, old: int, new: int) -> HookPoint:
        """The hook point of another layer of the same kind."""
        names = [_renumbered(name, "blocks", old, new) for name in (point.name, point.key)]
        module = point.module and _renumbered(point.module, self.layers, old, new)
        return replace(point, name=names[0], key=names[1], module=module)

    def _with_all_tokens(self, point: HookPoint) -> HookPoint:
        shape = tuple(self.vocab_size if size == self.tokens else size for size in point.shape)
        return replace(point, shape=shape)


def float32_prefix(module: Any) -> Prefix:
    """The copy of a model's first layers.

    Args:
        module: the plain model; it stays as it is.

    Raises:
        UnclearError: it is unclear which modules are the layers, or the head has no row for each token.
    """
    path = _layers_path(module)
    like = _first_of_kind(module, path)
    twin = first_layers(module, path, max(like) + 1)
    vocab_size, tokens = module.get_input_embeddings().weight.shape[0], _unlike_sizes(module)
    _cut_tokens(twin, min(tokens, vocab_size))
    make_whole(twin)
    for config in _configs(twin):
        if hasattr(config, "vocab_size"):
            config.vocab_size = min(tokens, vocab_size)
        config.dtype = torch.float32
    return Prefix(twin.float(), path, like, tokens, vocab_size)


def first_layers(module: Any, path: str, number: int) -> Any:
    """A copy of a model that has its first layers alone, and shares its weights.

    Args:
        module: the plain model; it stays as it is.
        path: of the layers in it.
        number: of layers in the copy.
    """
    twin: Any = sharing_copy(module)
    layers = list(twin.get_submodule(path))
    setattr(twin.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], nn.ModuleList(layers[:number]))
    for config in _configs(twin):
        _cut_config(config, len(layers), number)
    return twin


def _configs(module: Any) -> list[Any]:
    """A model's configuration, and that of its text part where this is another one."""
    return list({id(one): one for one in (module.config, module.config.get_text_config())}.values())


def _layers_path(module: Any) -> str:
    number = module.config.get_text_config().num_hidden_layers
    lists = [path for path, one in module.named_modules() if isinstance(one, nn.ModuleList) and len(one) == number]
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise UnclearError
    return outer[0]


def _first_of_kind(module: Any, path: str) -> tuple[int, ...]:
    """For each layer the number of the first layer of its kind."""
    layers = [_plain_parts(layer) for layer in module.get_submodule(path)]
    settings = module.config.get_text_config().to_dict().values()
    lists = [one for one in settings if isinstance(one, list | tuple) and len(one) == len(layers)]
    numbers = {key for key in layers[0] if _counts([layer.get(key) for layer in layers])}
    kinds: dict[str, int] = {}
    found = []
    for number, parts in enumerate(layers):
        kind = {key: part for key, part in parts.items() if key not in numbers}
        found.append(kinds.setdefault(repr((kind, [one[number] for one in lists])), number))
    return tuple(found)


def _plain_parts(layer: nn.Module) -> dict[tuple[str, str], Any]:
    """Classes, shapes and plain attributes of a layer's modules, by the module's path and the name."""
    parts: dict[tuple[str, str], Any] = {}
    for path, one in layer.named_modules():
        parts[path, "class"] = type(one).__qualname__
        for name, tensor in [*one.named_parameters(recurse=False), *one.named_buffers(recurse=False)]:
            parts[path, name] = tuple(tensor.shape)
        parts |= {(path, name): value for name, value in vars(one).items() if _is_plain(value)}
    return parts


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, str | int | float | bool)


def _counts(values: Sequence[Any]) -> bool:
    """Whether values number the layers."""
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    return whole and len(values) > 1 and all(value == values[0] + step for step, value in enumerate(values))


def _unlike_sizes(module: Any) -> int:
    """A number of tokens that no axis of a weight has, and no setting."""
    sizes = {size for tensor in module.parameters() for size in tensor.shape}
    sizes |= {value for value in module.config.get_text_config().to_dict().values() if isinstance(value, int)}
    return next(number for number in range(TOKENS, TOKENS + len(sizes) + 1) if number not in sizes)


def _cut_tokens(twin: Any, tokens: int) -> None:
    """Leave the first tokens in the embedding and in the head."""
    table, head = twin.get_input_embeddings(), twin.get_output_embeddings()
    rows = {table.weight.shape[0], head.weight.shape[0]}
    if len(rows) != 1 or not isinstance(table, nn.Embedding) or not isinstance(head, nn.Linear):
        raise UnclearError
    tied = head.weight is table.weight
    table.weight, table.num_embeddings, table.padding_idx = _first_rows(table.weight, tokens), tokens, None
    head.weight = table.weight if tied else _first_rows(head.weight, tokens)
    head.out_features = tokens
    if head.bias is not None:
        head.bias = _first_rows(head.bias, tokens)


def _first_rows(tensor: Tensor, number: int) -> nn.Parameter:
    return nn.Parameter(whole(tensor.detach()[:number]).float().clone(), requires_grad=False)


def _cut_config(config: Any, layers: int, number: int) -> None:
    """Let a configuration state the copy's layers."""
    values: Mapping[str, Any] = config.to_dict()
    for name, value in values.items():
        if isinstance(value, list | tuple) and len(value) == layers and hasattr(config, name):
            setattr(config, name, list(value[:number]))
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = number


def _renumbered(path: str, start: str, old: int, new: int) -> str:
    """A path in a layer, in another one; a path outside of the layers as it is."""
    if not path.startswith(f"{start}."):
        return path
    own = f"{start}.{old}"
    if path != own and not path.startswith(f"{own}."):
        raise UnclearError
    return f"{start}.{new}{path[len(own) :]}"
