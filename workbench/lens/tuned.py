"""The tuned lens: an affine map for each layer, from the stream behind it to the end of the stream.

Source: Belrose et al. 2023, arXiv 2303.08112, "Eliciting Latent Predictions from Transformers with the Tuned Lens".
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from workbench.lens.errors import LensError
from workbench.lens.transports import Lens, LensRecord, place_of
from workbench.model.language_model import LanguageModel


class TunedLens(Lens):
    """`h + A h + b` of the stream h behind a layer; the stream behind the last layer stays as it is.

    Args:
        weight: A of each layer of `about`, `[layers, d_model, d_model]`.
        bias: b of each layer, `[layers, d_model]`.
        about: what it belongs to. Its layers end with the last but one; the last layer needs no map.

    Raises:
        LensError: shapes that do not fit.
    """

    kind = "tuned"
    fitted_by = "wb.lens.fit_tuned_lens"

    def __init__(self, weight: Tensor, bias: Tensor, about: LensRecord):
        count, width = len(about.layers), weight.shape[-1] if weight.ndim else 0
        fits = weight.shape == (count, width, width) and bias.shape == (count, width)
        if not (fits and count and width and weight.is_floating_point() and bias.is_floating_point()):
            raise LensError(
                f"A tuned lens of {count} layers has weights [{count}, d_model, d_model] and biases [{count}, d_model] "
                f"of floating-point numbers, not {list(weight.shape)} and {list(bias.shape)}."
            )
        if list(about.layers) != list(range(about.layers[0], about.layers[0] + count)) or about.layers[0] < -1:
            raise LensError(f"The layers of a tuned lens follow each other from -1 or later, not {about.layers}.")
        self.weight, self.bias, self.about = weight, bias, about

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return self.weight.shape[-1]

    def fits(self, model: LanguageModel) -> bool:
        """Whether the width is the model's and the last map stands behind its last layer but one."""
        assert self.about is not None
        return super().fits(model) and self.about.layers[-1] == model.network.n_layers - 2

    def transport(self, layer: int, stream: Tensor) -> Tensor:
        """`h + A h + b`, in float32; the stream itself behind the last layer.

        Raises:
            LensError: a layer that the lens does not read.
        """
        assert self.about is not None
        h = stream.float()
        if layer == self.about.layers[-1] + 1:
            return h
        place = place_of(self.about.layers, layer, self.kind)
        weight, bias = (one[place].to(h.device).float() for one in (self.weight, self.bias))
        return h + h @ weight.T + bias

    def tensors(self) -> dict[str, Tensor]:
        """`weight` and `bias`."""
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], about: LensRecord) -> TunedLens:
        """The inverse of `tensors`; raises `LensError` for others."""
        if {*tensors} != {"weight", "bias"}:
            raise LensError(
                f"A tuned lens has the tensors weight and bias, not {', '.join(sorted(tensors)) or 'none'}."
            )
        return cls(tensors["weight"], tensors["bias"], about)
