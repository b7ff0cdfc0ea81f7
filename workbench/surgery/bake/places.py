"""The matrix that takes over the changes at a hook point, and the switches that give it a bias."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.precision import in_float64
from workbench.interventions.parts import PARTS
from workbench.model.hookpoints import HookPoint, HookPointError
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.surgery.bake.fold import Place, holds_matrix
from workbench.surgery.child_building import SurgeryError, changed_config, parameter_shapes

SWITCHES = ("mlp_bias", "attention_bias", "use_bias", "bias")
"""Values of configurations that give matrices a bias."""
INNER = {"attention": "attn.hook_z", "mlp": "mlp.hook_post"}
"""The hook point of the input of the matrix with which a sublayer writes."""


class Places:
    """The matrices of one model, by hook point.

    Args:
        model: the model.
    """

    def __init__(self, model: LanguageModel):
        self.model = model
        self.module: Any = model.network.module
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        self._streams: dict[str, Callable[[HookPoint], Place]] = {}
        for layer in range(model.network.n_layers):
            self._know(f"blocks.{layer}.hook_resid_post", functools.partial(self._behind_layer, layer))
            self._know(f"blocks.{layer}.hook_resid_pre", functools.partial(self._before_layer, layer))
            for part, name in PARTS.items():
                self._know(f"blocks.{layer}.{name}", functools.partial(self._of_sublayer, layer, part))
        self._know("hook_pos_embed", self._of_positions)

    def at(self, name: str) -> Place:
        """The place for changes at a hook point.

        Raises:
            HookPointError: the model has no such hook point.
            SurgeryError: no matrix can take them over.
        """
        point = self.model.hook_points[name]
        if point.module is not None:
            module = self.module.get_submodule(point.module)
            if holds_matrix(module) and not (isinstance(module, nn.Embedding) and point.side == "in"):
                return Place(point.module, point.side, hides=(point.key,))
        if point.key not in self._streams:
            raise SurgeryError(f"{point.name} is neither in front of a matrix nor behind one")
        return self._streams[point.key](point)

    def bias_switch(self, path: str) -> dict[str, Any] | None:
        """The change of the configuration that gives a module a bias; empty where it has one, None if it can't."""
        module = self.module.get_submodule(path)
        if isinstance(module, nn.Embedding) or getattr(module, "bias", None) is not None:
            return {}
        sizes = self.module.config.get_text_config()
        for switch in SWITCHES:
            if getattr(sizes, switch, None) is False:
                if switch not in self._shapes:
                    config = changed_config(self.model, {switch: True})
                    self._shapes[switch] = parameter_shapes(type(self.module), config)
                if f"{path}.bias" in self._shapes[switch]:
                    return {switch: True}
        return None

    def _know(self, name: str, place: Callable[[HookPoint], Place]) -> None:
        if name in self.model.hook_points:
            self._streams.setdefault(self.model.hook_points[name].key, place)

    def _of_sublayer(self, layer: int, part: str, point: HookPoint) -> Place:
        """The matrix with which the attention or the MLP of a layer writes, behind it."""
        try:
            inner = self.model.hook_points[f"blocks.{layer}.{INNER[part]}"]
        except HookPointError as error:
            raise SurgeryError(f"the {part} of layer {layer} is not of a known form") from error
        if inner.module is None or inner.side != "in" or not holds_matrix(self.module.get_submodule(inner.module)):
            raise SurgeryError(f"the {part} of layer {layer} does not write with one matrix")
        inside = point.module is None or inner.module == point.module or inner.module.startswith(f"{point.module}.")
        hides = [point.key, *self._keys_of(inner.module, "out")]
        return Place(inner.module, "out", 1, through_norm=not inside, hides=tuple(hides))

    def _behind_layer(self, layer: int, point: HookPoint) -> Place:
        """The matrix with which the layer's MLP writes."""
        written = self.model.hook_points[f"blocks.{layer}.{PARTS['mlp']}"]
        place = self._of_sublayer(layer, "mlp", written)
        if place.through_norm:
            raise SurgeryError(f"the output of layer {layer} goes through a norm first")
        return Place(place.module, "out", 2, hides=(point.key, *place.hides))

    def _before_layer(self, layer: int, point: HookPoint) -> Place:
        """The matrix with which the layer before writes, or the embeddings."""
        if layer > 0:
            before = self.model.hook_points[f"blocks.{layer - 1}.hook_resid_post"]
            place = self._behind_layer(layer - 1, before)
            return Place(place.module, "out", 2, hides=(point.key, *place.hides))
        embedded = self.model.hook_points["hook_embed"]
        if embedded.module is None or not holds_matrix(self.module.get_submodule(embedded.module)):
            raise SurgeryError("the embeddings are no plain look-up")
        return Place(embedded.module, "out", 2, self._embedding_scale, hides=(point.key, embedded.key))

    def _of_positions(self, point: HookPoint) -> Place:
        """The rows of the position embeddings."""
        own = self.module.get_input_embeddings()
        width = self.model.network.d_model
        tables = [
            path
            for path, module in self.module.named_modules()
            if isinstance(module, nn.Embedding) and module is not own and module.weight.shape[1] == width
        ]
        if len(tables) != 1:
            raise SurgeryError("the position embeddings are no plain look-up")
        return Place(tables[0], "out", 0, hides=(point.key,))

    def _keys_of(self, path: str, side: str) -> list[str]:
        return list({p.key for p in self.model.hook_points.values() if (p.module, p.side) == (path, side)})

    @functools.cached_property
    def _embedding_scale(self) -> float:
        """The first layer's input for one unit of an embedding; 1 where something else is added to it."""
        names = ["hook_embed", "blocks.0.hook_resid_pre"]
        with uninterrupted(), torch.inference_mode():
            tokens = torch.arange(min(self.model.network.vocab_size, 16), device=self.model.device)[None]
            embedded, entering = (in_float64(x) for x in self.model.capture(tokens, names).values())
        scale = float((embedded * entering).sum() / embedded.square().sum())
        return scale if _close(scale * embedded, entering) and abs(scale - 1) > 1e-6 else 1.0


def _close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())
