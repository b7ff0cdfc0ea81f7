"""The layers of a text, read in the background: what each predicts, and how sure the model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import caching

from read.request import LensRequest, TextRequest

if TYPE_CHECKING:
    from caching import Job
    from torch import Tensor

    from workbench.lens import Doubt, LensGrid
    from workbench.model import LanguageModel


@dataclass(frozen=True)
class LayerReading:
    """A grid of a lens without its streams, which take much memory, and the doubt of each token."""

    prompt: list[str]
    ids: list[int]
    """Of the prompt."""
    labels: list[str]
    """Of the rows."""
    layers: list[int]
    """Of the rows."""
    tops: Tensor
    """The likeliest tokens, `[rows, pos, k]`."""
    probabilities: Tensor
    """Theirs."""
    entropy: Tensor
    """`[rows, pos]`, in nats."""
    kl: Tensor
    """KL(model ‖ cell), `[rows, pos]`, in nats."""
    words: dict[int, str]
    """The text of each token of `tops` and `answers`."""
    answers: list[int]
    """The token that the last layer's stream predicts behind each position."""
    sure: list[float]
    """Their probabilities."""
    doubt: Doubt | None
    """`settled` counts layers where the rows are the stream behind all of them, by the lens without a fit."""
    trouble: str
    """Why there is no doubt."""


def start(model: LanguageModel, text: TextRequest, lens: LensRequest) -> Job[LayerReading]:
    """The job that reads the layers, started if need be."""

    def work(tell: Callable[[float, str], None]) -> LayerReading:
        import workbench as wb

        prompt, edits = text.prompt(model), text.interventions
        layers = None if lens.layer is None else [lens.layer]
        grid = wb.read_lens(model, prompt, lens.kind, at=lens.at, layers=layers, interventions=edits, progress=tell)
        end = grid
        if not lens.whole:
            end = wb.read_lens(model, prompt, layers=[model.network.n_layers - 1], top_k=2, interventions=edits)
        return _reading(model, grid, end)

    return caching.lens_reading((*text.key(model), lens.kind, lens.at, str(lens.layer)), work)


def _reading(model: LanguageModel, grid: LensGrid, end: LensGrid) -> LayerReading:
    """The numbers of a grid, and the doubt by the last row of another."""
    from workbench.lens import LensError
    from workbench.lens.doubt import doubt_of

    doubt, trouble = None, ""
    try:
        doubt = doubt_of(end)
    except LensError as error:
        trouble = str(error)
    answers = end.ids[-1, :, 0]
    ids = sorted({*grid.ids.unique().tolist(), *answers.tolist()})
    return LayerReading(
        grid.prompt,
        grid.prompt_ids.tolist(),
        [place.label for place in grid.places],
        grid.layers,
        *(one.cpu() for one in (grid.ids, grid.probabilities, grid.entropy, grid.kl)),
        dict(zip(ids, model.token_texts(ids), strict=True)),
        answers.tolist(),
        end.probabilities[-1, :, 0].tolist(),
        doubt,
        trouble,
    )


@dataclass(frozen=True)
class Cell:
    """A cell of a grid, with the text and the model that it is of."""

    model: LanguageModel
    text: TextRequest
    lens: LensRequest
    reading: LayerReading
    row: int
    position: int

    @property
    def layer(self) -> int:
        """The layer of the row."""
        return self.reading.layers[self.row]

    @property
    def key(self) -> tuple[str, ...]:
        """All that a result on the text depends on."""
        return self.text.key(self.model)

    @property
    def prompt(self) -> str:
        """The model's input text."""
        return self.text.prompt(self.model)

    @property
    def token(self) -> str:
        """The text of the token at the position."""
        return self.reading.prompt[self.position]

    @property
    def answer(self) -> int:
        """The token that the model itself predicts at the position."""
        return self.reading.answers[self.position]

    @property
    def answer_text(self) -> str:
        """Its text."""
        return self.reading.words[self.answer]
