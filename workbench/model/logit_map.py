"""What a model makes of its LM head's products: a factor and a soft-cap, measured and not read from a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.model.modules import sharing_copy
from workbench.model.stream import EXACT, EXACT_16_BITS
from workbench.model.weights import ModelError

SIZES = (0.1, 1e-3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Products that stand in for the head's in a probe, each with both signs."""
LARGEST = 1e5
"""The last product of a probe, which a soft-cap bends to the cap."""
LARGEST_FLOAT16 = 1e4
"""The same where numbers end at 65,504, so that a factor of a few leaves it finite."""


@dataclass(frozen=True)
class LogitMap:
    """`factor * products`, or `cap * tanh(factor * products / cap)`."""

    factor: float
    """1 for most models; Granite divides, Cohere multiplies."""
    cap: float | None = None
    """The soft-cap, as Gemma 2 has one; None without."""

    def logits(self, products: Tensor) -> Tensor:
        """The logits for products with the LM head, its bias included."""
        scaled = self.factor * products
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    def slopes(self, logits: Tensor) -> Tensor | None:
        """The derivative of the logits by the products, at logits that came of them; None where it is 1 everywhere."""
        if self.cap is None:
            return None if self.factor == 1 else torch.full_like(logits, self.factor)
        return self.factor * (1 - (logits / self.cap) ** 2)


def measure_logit_map(module: Any) -> LogitMap:
    """The map of a plain model, from one pass in which known numbers stand in for the head's products.

    Raises:
        ModelError: the logits are another function of the products.
    """
    twin: Any = sharing_copy(module)
    largest = LARGEST_FLOAT16 if twin.dtype == torch.float16 else LARGEST
    put = torch.tensor([sign * size for size in (*SIZES, largest) for sign in (1, -1)])
    width = min(len(put), twin.get_output_embeddings().weight.shape[0])

    def replace(_: nn.Module, __: tuple, out: Tensor) -> Tensor:
        new = torch.zeros_like(out)
        new[..., :width] = put[:width].to(out)
        return new

    twin.get_output_embeddings().register_forward_hook(replace)
    with torch.no_grad():
        tokens = torch.zeros(1, 1, dtype=torch.long, device=twin.device)
        found = twin(input_ids=tokens, use_cache=False).logits[0, -1, :width].cpu().double()
    products = put[:width].to(twin.dtype).double()
    top, ratios = float(found[-2]), found / products
    linear = bool((ratios[0] - ratios[-2]).abs() <= 0.01 * ratios[-2].abs())
    bent = torch.atanh(found[0] / top) * top / products[0]  # the factor before the cap
    factor = float(ratios.median() if linear else bent)
    exact = EXACT if twin.dtype == torch.float32 else EXACT_16_BITS
    one = LogitMap(1.0 if abs(factor - 1) < exact else _tidy(factor), None if linear else _tidy(top))
    rounding = torch.finfo(twin.dtype)
    if not torch.allclose(one.logits(products), found, rtol=0.01, atol=rounding.tiny * rounding.eps):
        raise ModelError("The logits of this model are no multiple of its LM head's products, nor a soft-cap of one.")
    return one


def _tidy(value: float) -> float:
    """A measured number without the rounding of the model's type."""
    return float(f"{value:.5g}")
