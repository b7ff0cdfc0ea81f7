"""The grid of a lens: rows × positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.core import markup
from workbench.core.checks import checked
from workbench.core.display import Tabular, cells
from workbench.evaluation.losses import cross_entropy
from workbench.lens.errors import LensError
from workbench.lens.places import Place
from workbench.lens.readout import Readout
from workbench.lens.tokens import token_id
from workbench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from workbench.figures.common import Figure


@dataclass(frozen=True, eq=False, repr=False)
class LensGrid(Tabular):
    """What each row predicts behind each position of a text; `read_lens` returns one."""

    model: LanguageModel = field(repr=False)
    prompt: list[str]
    """The text of each of the prompt's tokens."""
    prompt_ids: Tensor
    """`[pos]`."""
    places: list[Place]
    """The rows: a layer, or a head of one."""
    ids: Tensor
    """The likeliest tokens of each cell, best first, `[rows, pos, k]`."""
    probabilities: Tensor
    """Theirs, `[rows, pos, k]`."""
    entropy: Tensor
    """Of each cell's prediction, `[rows, pos]`, in nats."""
    kl: Tensor
    """KL(final ‖ cell), the model's own prediction beside the cell's, `[rows, pos]`, in nats."""
    streams: Tensor
    """What is read of each cell, `[rows, pos, d_model]`: the estimate of the end of the residual stream."""

    @property
    def layers(self) -> list[int]:
        """The layer of each row."""
        return [place.layer for place in self.places]

    @property
    def tokens(self) -> list[list[list[str]]]:
        """The texts of `ids`: rows of positions of tokens, best first."""
        flat = self.model.token_labels(self.ids)
        k, pos = self.ids.shape[2], self.ids.shape[1]
        cells = [flat[start : start + k] for start in range(0, len(flat), k)]
        return [cells[start : start + pos] for start in range(0, len(cells), pos)]

    @checked(LensError)
    def rank(self, token: str | int) -> Tensor:
        """The rank of a token in each cell, from 0: `[rows, pos]`; ties count in its favour.

        Args:
            token: its text, such as " Paris", or its id.

        Raises:
            LensError: a text of several tokens, or an id outside the vocabulary.
        """
        return self._of_token(token, lambda logits, number: (logits > logits[:, number : number + 1]).sum(-1))

    @checked(LensError)
    def log_probability(self, token: str | int) -> Tensor:
        """The log-probability of a token in each cell, in nats: `[rows, pos]`; arguments and errors as `rank`."""

        def measure(logits: Tensor, number: int) -> Tensor:
            return -cross_entropy(logits, torch.full(logits.shape[:1], number, device=logits.device))

        return self._of_token(token, measure)

    def _of_token(self, token: str | int, measure: Any) -> Tensor:
        """A measure of each cell's logits `[cells, vocab]` and a token's id: `[rows, pos]`."""
        number, readout = token_id(self.model, token), Readout(self.model)
        cells = self.streams.flatten(0, 1)
        found = []
        with torch.no_grad():
            for at in readout.blocks(len(cells)):
                logits = readout.logits(readout.normed(cells[at]))
                found.append(measure(logits, number))
        return torch.cat(found).view(self.streams.shape[:2])

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each cell, with the likeliest token."""
        flat = iter(cells(("row", "position"), entropy=self.entropy, kl=self.kl))
        for place, texts, shares in zip(self.places, self.tokens, self.probabilities.tolist(), strict=True):
            for token, words, some in zip(self.prompt, texts, shares, strict=True):
                top = {"token": token, "top": words[0], "probability": some[0], "others": words[1:]}
                yield next(flat) | {"row": place.label} | top

    def figure(self) -> Figure:
        """The likeliest token of each cell, coloured by its probability."""
        from workbench.figures.predictions import lens_map

        labels = [place.label for place in self.places]
        words = [[cell[0] for cell in row] for row in self.tokens]
        return lens_map(self.prompt, labels, words, self.probabilities[..., 0].tolist())

    def _parts(self) -> Iterator[str]:
        shares = self.probabilities[..., 0].tolist()
        rows = [
            (place.label, [(word[0], share, f"{share:.1%}") for word, share in zip(*row, strict=True)])
            for place, *row in list(zip(self.places, self.tokens, shares, strict=True))[::-1]
        ]
        yield markup.grid(rows, self.prompt)

    def _facts(self) -> Mapping[str, object]:
        return {"rows": len(self.places), "positions": len(self.prompt), "tokens of each cell": self.ids.shape[2]}

    def to_dict(self) -> dict[str, Any]:
        """The grid as plain data, without `streams`."""
        return {
            "prompt": self.prompt,
            "rows": [place.label for place in self.places],
            "tokens": self.tokens,
            "probabilities": self.probabilities.tolist(),
            "entropy": self.entropy.tolist(),
            "kl": self.kl.tolist(),
        }

    def __repr__(self) -> str:
        rows, pos, k = self.ids.shape
        return f"<LensGrid: {rows} rows × {pos} positions, top {k} tokens>"
