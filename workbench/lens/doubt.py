"""How sure a model is of each token of a text, and from which layer on its answer stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from workbench.core import markup
from workbench.core.checks import Natural, Number, Positive, Raises, Share, checked
from workbench.core.display import Rows, Tabular, columns
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.evaluation.bootstrap import Estimate, TextSums, bootstrap
from workbench.evaluation.losses import cross_entropy
from workbench.lens.errors import LensError
from workbench.lens.files import opened
from workbench.lens.grid import LensGrid
from workbench.lens.reading import read_lens
from workbench.lens.readout import Readout
from workbench.lens.transports import Lens
from workbench.model.edits import EditError, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt

if TYPE_CHECKING:
    from workbench.figures.common import Figure

SAME, SAME_16_BITS = 1e-4, 0.05
"""KL up to which the last layer's prediction is the model's own, in nats."""


@dataclass(frozen=True, eq=False)
class Doubt(Tabular):
    """How sure a model is of each token of a text; `read_doubt` returns one."""

    prompt: list[str]
    """The text of each token."""
    surprise: Tensor = field(repr=False)
    """-log p of each token given those before it, `[pos]`, in nats; NaN for the first."""
    entropy: Tensor = field(repr=False)
    """Of the prediction behind each token, `[pos]`, in nats."""
    margin: Tensor = field(repr=False)
    """The likeliest token's probability behind each token less that of the second, `[pos]`."""
    settled: Tensor = field(repr=False)
    """The first layer from which on the likeliest token behind each token is the model's own, `[pos]`."""

    @checked(LensError)
    def spans(self, at_most: Number = 0.5, least: Positive = 2) -> list[tuple[int, int]]:
        """The stretches of tokens that the model is sure of: first and last position, each surprise at most so high.

        Args:
            at_most: nats.
            least: tokens in a stretch.
        """
        found: list[tuple[int, int]] = []
        start: int | None = None
        for place, value in enumerate([*self.surprise.tolist(), float("inf")]):
            if value <= at_most:
                start = place if start is None else start
            elif start is not None:
                if place - start >= least:
                    found.append((start, place - 1))
                start = None
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each token."""
        numbers = {name: getattr(self, name).tolist() for name in ("surprise", "entropy", "margin", "settled")}
        return columns(position=range(len(self.prompt)), token=self.prompt, **numbers)

    def figure(self) -> Figure:
        """Surprise and entropy of each token."""
        from workbench.figures.predictions import doubt_bars

        return doubt_bars(self.prompt, self.surprise.tolist(), self.entropy.tolist())

    def _parts(self) -> Iterator[str]:
        yield markup.tokens(self.prompt, self.surprise.tolist(), unit="nats of surprise")
        yield from super()._parts()

    def _facts(self) -> Mapping[str, object]:
        return {"tokens": len(self.prompt), "mean surprise": float(self.surprise[1:].mean())}

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain data; the first surprise is None."""
        surprise = [None, *self.surprise[1:].tolist()]
        names = ("entropy", "margin", "settled")
        return {"prompt": self.prompt, "surprise": surprise} | {name: getattr(self, name).tolist() for name in names}


@checked(LensError)
def read_doubt(
    model: LanguageModel,
    text: Prompt,
    kind: str | Lens = "logit",
    *,
    interventions: Annotated[Sequence[Intervention], Raises(EditError)] = (),
) -> Doubt:
    """How sure the model is of each token of a text, and from which layer on its answer stands.

    Args:
        model: the model.
        text: a text, a `chat_prompt`, or token ids `[pos]`.
        kind: the lens by which layers are read, as in `read_lens`.
        interventions: act in the run that is read, beside those in force here.

    Raises:
        LensError, PromptError, EditError: as `read_lens`.
        LensError: what the lens reads of the last layer is not the model's own prediction, as where an intervention
            acts behind that layer.
    """
    return doubt_of(read_lens(model, text, kind, top_k=2, interventions=interventions))


def doubt_of(grid: LensGrid) -> Doubt:
    """What `read_doubt` returns, from a grid of the stream with at least two tokens in each cell.

    Args:
        grid: its last row is the last layer; `settled` counts its rows.

    Raises:
        LensError: its last row is not the model's own prediction.
    """
    name = grid.model.name
    if not float(grid.kl[-1].max()) <= (SAME if grid.model.dtype == torch.float32 else SAME_16_BITS):
        raise LensError(
            f"{name} predicts otherwise than its last layer's stream, by which doubt is read; leave out what "
            "acts behind the last layer, or take another lens."
        )
    last = grid.probabilities[-1]
    surprise = torch.full((len(grid.prompt),), torch.nan, device=last.device)
    surprise[1:] = -_of_next(grid)
    return Doubt(grid.prompt, surprise, grid.entropy[-1], last[:, 0] - last[:, 1], settled(grid))


def settled(grid: LensGrid) -> Tensor:
    """The first row from which on the likeliest token of each position is the last row's, `[pos]`."""
    other = grid.ids[..., 0] != grid.ids[-1, :, 0]  # [rows, pos]
    numbers = torch.arange(1, len(other) + 1, device=other.device)[:, None]
    return (other * numbers).amax(0)


def _of_next(grid: LensGrid) -> Tensor:
    """The log-probability of each token but the first, `[pos - 1]`, in the last row."""
    readout, streams = Readout(grid.model), grid.streams[-1, :-1]
    found = []
    with torch.no_grad():
        for at in readout.blocks(len(streams)):
            logits = readout.logits(readout.normed(streams[at]))
            found.append(-cross_entropy(logits, grid.prompt_ids[1:][at].to(logits.device)))
    return torch.cat(found) if found else streams.new_zeros(0, dtype=torch.float32)


@dataclass(frozen=True)
class EarlyExit(Tabular):
    """What becomes of tokens that leave at the first layer which is confident enough; `measure_early_exit`."""

    confidence: float
    """The probability of the likeliest token that a layer must reach."""
    left: list[float]
    """The share of the tokens that has left by each layer; 1 at the last."""
    agreement: Estimate
    """The share of the tokens whose token at the exit is the whole model's."""
    layers: Estimate
    """The mean share of the layers that is computed."""
    tokens: int

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each layer."""
        return columns(layer=range(len(self.left)), left=self.left)

    def figure(self) -> Figure:
        """The share of tokens that has left, by layer."""
        from workbench.figures.predictions import exit_curve

        return exit_curve(self.left, self.confidence)

    def _facts(self) -> Mapping[str, object]:
        return {
            "confidence": self.confidence,
            "agreement": _with_ends(self.agreement),
            "layers": _with_ends(self.layers),
            "tokens": self.tokens,
        }

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        numbers = {name: getattr(self, name) for name in ("confidence", "left", "tokens")}
        for name in ("agreement", "layers"):
            one: Estimate = getattr(self, name)
            numbers |= {name: float(one.value), f"{name}_interval": list(one.interval)}
        return numbers


@checked(LensError)
def measure_early_exit(
    model: LanguageModel,
    corpus: Corpus,
    kind: str | Lens = "logit",
    *,
    confidences: Sequence[Share] = (0.5, 0.7, 0.9),
    tokens: Positive = 2048,
    context: Positive = 128,
    resamples: Positive = 1000,
    seed: Natural = 0,
    progress: Progress | None = None,
) -> Rows[EarlyExit]:
    """How many tokens could leave before the last layer, and how often that agrees with the whole model.

    A token leaves at the first layer whose likeliest token has at least the confidence.

    Args:
        model: the model.
        corpus: texts.
        kind: the lens by which layers are read, as in `read_lens`.
        confidences: one result for each.
        tokens: measured at most.
        context: tokens of a window.
        resamples: of the bootstrap over texts; the intervals hold 95%.
        seed: of the bootstrap.
        progress: told the share that is done; None: a bar; False: nothing.

    Raises:
        LensError: as `read_lens`, or no confidence.
        CorpusError: texts without tokens.

    Source: the question of Kangaroo (Liu et al. 2024, arXiv 2404.18911) and SWIFT (Xia et al. 2024, arXiv 2410.06916).
    """
    if not confidences:
        raise LensError("There is no confidence; name at least one, such as 0.7.")
    lens = opened(model, kind)
    sums = [TextSums() for _ in confidences]
    layers = model.network.n_layers
    by_layer = torch.zeros(len(confidences), layers)
    done = 0
    for window in corpus.batches(model, tokens=tokens, context=context, batch=1):
        mask = window.mask[0]
        grid = read_lens(model, window.tokens[0][mask], lens, top_k=1)
        counted = window.content[0][mask]
        text = window.texts.expand(int(counted.sum()))
        for number, confidence in enumerate(confidences):
            at = _exits(grid, confidence).to(counted.device)  # [pos]
            same = (grid.ids[..., 0].gather(0, at[None])[0] == grid.ids[-1, :, 0])[counted]
            at = at[counted]
            share = (at + 1).float() / layers
            sums[number].add(text, agreement=same.float(), layers=share, tokens=torch.ones_like(share))
            by_layer[number] += torch.bincount(at.cpu(), minlength=layers)
        done += len(text)
        if progress:
            progress(min(1.0, done / tokens), f"Reading {done:,} of {tokens:,} tokens")
    return Rows(
        _result(confidence, one, counts, resamples, seed)
        for confidence, one, counts in zip(confidences, sums, by_layer, strict=True)
    )


def _with_ends(one: Estimate) -> str:
    low, high = one.interval
    return f"{float(one.value):.1%}, {low:.1%} to {high:.1%}"


def _exits(grid: LensGrid, confidence: float) -> Tensor:
    """The first row that is confident enough at each position, the last where none is: `[pos]`."""
    sure = grid.probabilities[..., 0] >= confidence
    sure[-1] = True
    return sure.int().argmax(0)


def _result(confidence: float, sums: TextSums, counts: Tensor, resamples: int, seed: int) -> EarlyExit:
    def measures(of: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: of[name] / of["tokens"] for name in ("agreement", "layers")}

    estimates = bootstrap(sums.tensors(), measures, resamples, seed)
    left = (counts.cumsum(0) / counts.sum()).tolist()
    return EarlyExit(confidence, left, estimates["agreement"], estimates["layers"], int(counts.sum()))
