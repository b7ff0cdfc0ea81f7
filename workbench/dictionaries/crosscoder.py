"""Crosscoder: latents that read several hook points together and write into each of several.

Lindsey et al., "Sparse Crosscoders for Cross-Layer Features and Model Diffing" (2024),
https://transformer-circuits.pub/2024/crosscoders. With x the activations of all hook points one behind the other,

    codes = JumpReLU(x W_enc + b_enc)      x_hat = codes W_dec + b_dec

Where it writes before it has read everything (an acausal one, as of several layers' streams), its latents can't be
held at a value in a run that they change; `Steer` adds their directions.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from workbench.core.checks import Natural, Positive, checked
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.jumping import L0, JumpReLU
from workbench.dictionaries.settings import Band, Setting, Width

Points = Annotated[Positive, Setting("Hook points", "How many hook points it reads, and how many it writes.")]
"""Number of hook points."""


class Crosscoder(SparseCoder):
    """A dictionary of several hook points at once, with a learned threshold for each latent.

    Args:
        d_in: width of what is read, of all hook points together.
        width: number of latents.
        l0: coefficient of the penalty, the number of active latents.
        points: number of hook points; `d_in` and `d_out` are multiples of it.
        bandwidth: width of the band around the threshold in which its gradient is estimated.
        d_out: width of what is written, of all hook points together; None for `d_in`.
        reads, writes: hook points, joined by " + "; empty until they are known.
        name: what features call it.
        seed: of the starting weights; None leaves them to be filled.
    """

    kind = "crosscoder"
    across = True
    centred = False

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        l0: L0 = 1.0,
        *,
        points: Points = 2,
        bandwidth: Band = 0.05,
        d_out: Positive | None = None,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        for what, size in (("d_in", d_in), ("d_out", d_out or d_in)):
            if size % points:
                raise DictionaryError(f"{what} is of all hook points together, a multiple of {points}, not {size:,}.")
        part = JumpReLU(width, l0, bandwidth)
        super().__init__(d_in, width, part, d_out=d_out, reads=reads, writes=writes, name=name, seed=seed)
        self.n_reads = self.n_writes = points

    @classmethod
    def example(cls) -> Self:
        """Two hook points of width 4, and 24 latents."""
        return cls(8, 24)

    def config(self) -> dict[str, Any]:
        """SAELens's fields, and ours under `workbench`; SAELens does not know the kind."""
        config = super().config()
        config["workbench"] = config["workbench"] | {
            "settings": config["workbench"]["settings"] | {"points": self.n_reads}
        }
        return config
