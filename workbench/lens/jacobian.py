"""The Jacobian lens: one matrix for each layer, the mean effect of the stream behind it on the end of the stream.

    J = mean over texts and source positions t of the sum over target positions t' >= t of d h_last[t'] / d h_layer[t]

A row of `W_U J`, the lens's vector of a token, is a direction in the stream behind the layer: along it the layer speaks
for the token later on. It steers, can be taken out, or swapped for another.

Source: Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models",
transformer-circuits.pub/2026/workspace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from workbench.core.checks import Natural, Number, checked
from workbench.directions.direction import Direction
from workbench.interventions.kinds.swap_directions import SwapDirections
from workbench.lens.errors import LensError
from workbench.lens.streams import hook_point_behind
from workbench.lens.tokens import token_id
from workbench.lens.transports import Lens, LensRecord, place_of
from workbench.model.language_model import LanguageModel


class JacobianLens(Lens):
    """`J h` of the stream h behind a layer; the stream behind the last layer stays as it is.

    Args:
        weight: J of each layer of `about`, `[layers, d_model, d_model]`.
        about: what it belongs to. Its layers rise and end with the last but one.

    Raises:
        LensError: shapes that do not fit.
    """

    kind = "jacobian"
    fitted_by = "wb.lens.fit_jacobian_lens"

    def __init__(self, weight: Tensor, about: LensRecord):
        count, width = len(about.layers), weight.shape[-1] if weight.ndim else 0
        if not (weight.shape == (count, width, width) and count and width and weight.is_floating_point()):
            raise LensError(
                f"A Jacobian lens of {count} layers has weights [{count}, d_model, d_model] of floating-point numbers, "
                f"not {list(weight.shape)}."
            )
        if list(about.layers) != sorted({*about.layers}) or about.layers[0] < 0:
            raise LensError(f"The layers of a Jacobian lens rise from 0 or later, and these do not: {about.layers}.")
        self.weight, self.about = weight, about

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return self.weight.shape[-1]

    def fits(self, model: LanguageModel) -> bool:
        """Whether the width is the model's and the last matrix stands behind its last layer but one."""
        return super().fits(model) and self._last == model.network.n_layers - 1

    def transport(self, layer: int, stream: Tensor) -> Tensor:
        """`J h`, in float32; the stream itself behind the last layer.

        Raises:
            LensError: a layer that the lens does not read.
        """
        h = stream.float()
        return h if layer == self._last else h @ self._matrix(layer).to(h.device).T

    @checked(LensError)
    def vectors(self, model: LanguageModel, tokens: Sequence[str | int], layer: Natural) -> Tensor:
        """The lens's vectors of tokens in the stream behind a layer, `[tokens, d_model]` in float32.

        Args:
            model: the model that the lens belongs to.
            tokens: their texts, such as " Paris", or ids.
            layer: a layer that the lens reads, or the last one, behind which they are rows of the LM head.

        Raises:
            LensError: another model, a text of several tokens, or a layer that the lens does not read.
        """
        self.check_model(model)
        rows = model.network.lm_head.rows([token_id(model, one) for one in tokens])
        return rows if layer == self._last else rows @ self._matrix(layer).to(rows.device)

    @checked(LensError)
    def direction(self, model: LanguageModel, token: str | int, layer: Natural) -> Direction:
        """The lens's vector of a token, as a direction to steer along, to take out or to save.

        `wb.Steer.along(direction, 4.0)` adds it; `wb.AblateDirection(vector)` takes it out.

        Args:
            model: the model that the lens belongs to.
            token: its text, such as " Paris", or its id.
            layer: as in `vectors`.

        Raises:
            LensError: as `vectors`.
        """
        vector = self.vectors(model, [token], layer)[0]
        text = token if isinstance(token, str) else model.token_labels([token])[0]
        about: dict[str, Any] = {"lens": self.kind, "token": text, "layer": layer, "model_hash": model.hash}
        return Direction(
            {hook_point_behind(layer): vector}, f"{text.strip()} by the {self.kind} lens", model.name, about
        )

    @checked(LensError)
    def swap(
        self,
        model: LanguageModel,
        first: str | int,
        second: str | int,
        layers: Sequence[Natural],
        amount: Number = 1.0,
        *,
        positions: Any = "all",
    ) -> list[SwapDirections]:
        """Interventions that exchange two tokens' coordinates in the stream behind layers.

        Args:
            model: the model that the lens belongs to.
            first, second: tokens, by their texts or ids.
            layers: as in `vectors`, each.
            amount: how much of the exchange; 2 is the source's double strength.
            positions: as for every intervention.

        Raises:
            LensError: as `vectors`.
            EditError: two tokens whose vectors lie along one line.
        """
        found = []
        for layer in layers:
            one, other = self.vectors(model, [first, second], layer).tolist()
            found.append(SwapDirections(hook_point_behind(layer), one, other, amount, positions=positions))
        return found

    @property
    def _last(self) -> int:
        """The model's last layer."""
        assert self.about is not None
        return self.about.layers[-1] + 1

    def _matrix(self, layer: int) -> Tensor:
        """The layer's J, in float32; raises `LensError` for a layer that the lens does not read."""
        assert self.about is not None
        return self.weight[place_of(self.about.layers, layer, self.kind)].float()

    def tensors(self) -> dict[str, Tensor]:
        """`weight`."""
        return {"weight": self.weight}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], about: LensRecord) -> JacobianLens:
        """The inverse of `tensors`; raises `LensError` for others."""
        if {*tensors} != {"weight"}:
            raise LensError(f"A Jacobian lens has the tensor weight, not {', '.join(sorted(tensors)) or 'none'}.")
        return cls(tensors["weight"], about)
