"""The target's gradient with nothing frozen: sources' contributions to first order where everything responds.

Attribution patching (Nanda 2023) of features: one backward pass through the model itself. It predicts the effect of an
ablation. It is no decomposition: the contributions do not sum to the target's value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.attribution.target import Reader
from workbench.model.edits import Edit, Group, Run
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel


def read_stream(model: LanguageModel, tokens: Tensor, reader: Reader, groups: list[Group]) -> Tensor:
    """The target's value in a run with edits, for each row of `tokens` `[rows, pos]`: `[rows]`."""
    name = reader.at or "ln_final.hook_out"
    seen: list[Tensor] = []
    run = Run(groups, watch={model.hook_points[name].key: seen.append})
    model.network.capture(tokens, [name], run)
    return seen[0][:, reader.position].float() @ reader.vector + reader.constant


def read_target_value(model: LanguageModel, tokens: Tensor, reader: Reader, groups: list[Group]) -> Tensor:
    """The same from the logits themselves, where the target is one: a scale or cap on logits responds too."""
    if not reader.tokens:
        return read_stream(model, tokens, reader, groups)
    logits = model.network.run(tokens, Run(groups), last=tokens.shape[1] - reader.position)
    return reader.of_logits(logits[:, 0].float())


def full_gradient(
    model: LanguageModel,
    tokens: Tensor,
    reader: Reader,
    writes: Sequence[str],
    visit: Callable[[int, Tensor, Tensor], None],
) -> None:
    """Call `visit` as `FrozenModel.pull_back` does, with gradients of the model itself.

    Args:
        model: the model.
        tokens: `[1, pos]`.
        reader: the target.
        writes: by layer the hook point where the MLP's output is explained.
        visit: see `FrozenModel.pull_back`.
    """
    places = {-1: "blocks.0.hook_resid_pre"} | dict(enumerate(writes[: reader.layer]))
    leaves: dict[int, Tensor] = {}

    def leaf(layer: int) -> Callable[[Tensor], Tensor]:
        def add(x: Tensor) -> Tensor:
            leaves[layer] = torch.zeros_like(x).requires_grad_()
            return x + leaves[layer]

        return add

    edits = [Edit(name, leaf(layer)) for layer, name in places.items()]
    with taking_gradients():
        value = read_target_value(model, tokens, reader, [Group(model.network.prepare(edits))])
        gradients = torch.autograd.grad(value[0], [leaves[layer] for layer in places])
    for layer, gradient in zip(places, gradients, strict=True):
        visit(layer, torch.tensor([0]), gradient.to(model.device).float())
