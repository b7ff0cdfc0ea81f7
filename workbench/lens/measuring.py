"""`measure_lens`: how well a lens predicts what the whole model predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, checked
from workbench.core.display import Tabular, columns
from workbench.core.progress import Progress, remembering
from workbench.core.text import counted
from workbench.corpus import Corpus
from workbench.evaluation.bootstrap import Estimate, TextSums, bootstrap
from workbench.lens.errors import LensError
from workbench.lens.files import opened
from workbench.lens.readout import Readout, Reducer
from workbench.lens.streams import Streams, in_parts, read_streams
from workbench.lens.transports import Lens
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True, repr=False)
class LensFidelity(Tabular):
    """KL(final ‖ layer) of a lens and of the logit lens, in nats per token; `measure_lens` returns one.

    Each estimate is `[layers]`, with 95% confidence intervals over texts.
    """

    kind: str
    layers: list[int]
    """The layers; -1 is the embedding."""
    kl: Estimate
    """Of the lens."""
    logit_kl: Estimate
    """Of the logit lens, at the same tokens."""
    gain: Estimate
    """The logit lens's less the lens's, over the same draws of texts."""
    tokens: int
    texts: int

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each layer."""
        numbers: dict[str, list] = {"layer": self.layers}
        for name in ("kl", "logit_kl", "gain"):
            one: Estimate = getattr(self, name)
            numbers |= {name: one.value.tolist(), f"{name}_low": one.low.tolist(), f"{name}_high": one.high.tolist()}
        return columns(**numbers)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain data."""
        numbers: dict[str, Any] = {name: getattr(self, name) for name in ("kind", "layers", "tokens", "texts")}
        for name in ("kl", "logit_kl", "gain"):
            one: Estimate = getattr(self, name)
            numbers |= {name: one.value.tolist(), f"{name}_intervals": [list(ends) for ends in one.intervals]}
        return numbers

    def __repr__(self) -> str:
        means = f"{float(self.kl.value.mean()):.3f} nats, logit lens {float(self.logit_kl.value.mean()):.3f}"
        where = f"{counted(len(self.layers), 'layer')} and {counted(self.tokens, 'token')}"
        return f"<LensFidelity of a {self.kind} lens: {means}, over {where}>"


@checked(LensError)
def measure_lens(
    model: LanguageModel,
    lens: str | Lens,
    corpus: Corpus,
    *,
    tokens: Positive = 4096,
    batch: Positive = 8,
    context: Positive = 128,
    resamples: Positive = 1000,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> LensFidelity:
    """How far a lens's prediction from each layer is from the model's own, beside the logit lens's.

    Args:
        model: the model.
        lens: a lens, or the word of a kind, as in `read_lens`.
        corpus: texts, others than those that the lens was fitted on.
        tokens: measured at most; special tokens and first positions do not count.
        batch: windows that run together.
        context: positions of a window.
        resamples: of the bootstrap over texts.
        seed: of the order of the texts and of the bootstrap.
        progress: told the share that is done.
        cancel: asked at each batch; a measure that it stops is refused.

    Raises:
        LensError: as `read_lens`; texts that the lens was fitted on; or the measure was cancelled.
        CorpusError: texts without tokens.
    """
    lens, readout, stops = opened(model, lens), Readout(model), remembering(cancel)
    if lens.about is not None and lens.about.fitted_on.get("corpus_hash") == corpus.hash:
        raise LensError(f"This lens was fitted on {corpus.name}; measure it on other texts.")
    layers = [*range(-1, model.network.n_layers - 1)] if lens.about is None else [*lens.about.layers]
    reducer, sums, done = Reducer(readout, 1), TextSums(), 0
    for whole in corpus.batches(model, context, batch, tokens=tokens, seed=seed):
        for part in in_parts(model, whole, len(layers)):
            if stops():
                raise LensError("The measure of the lens was stopped.")
            if not bool(part.content.any()):
                continue
            streams = read_streams(model, readout, part, layers)
            texts = part.texts[:, None].expand(part.content.shape)[part.content]
            measured = _divergences(lens, layers, readout, reducer, streams)
            sums.add(texts, **measured, tokens=torch.ones(len(texts), device=texts.device))
            done += len(texts)
            if progress:
                progress(min(1.0, done / tokens), f"Reading {done:,} of {tokens:,} tokens")
    if not done:
        raise LensError(f"{corpus.name} holds no token to measure, only special ones and first ones of windows.")
    totals = sums.tensors()
    estimates = bootstrap(totals, _measures, resamples, seed)
    return LensFidelity(lens.kind, layers, **estimates, tokens=done, texts=len(totals["tokens"]))


def _divergences(
    lens: Lens, layers: list[int], readout: Readout, reducer: Reducer, streams: Streams
) -> dict[str, Tensor]:
    """KL of the lens and of the logit lens at each token, `[tokens, layers]` each."""
    found = {name: streams.final.new_zeros(len(streams.final), len(layers)) for name in ("kl", "logit_kl")}
    with torch.no_grad():
        for at in readout.blocks(len(streams.final)):
            reducer.begin(streams.final[at])
            for place, (layer, stream) in enumerate(zip(layers, streams.layers, strict=True)):
                found["logit_kl"][at, place] = reducer.divergence(readout.normed(stream[at]))
                found["kl"][at, place] = (
                    reducer.divergence(readout.normed(lens.transport(layer, stream[at])))
                    if lens.fitted
                    else found["logit_kl"][at, place]
                )
    return found


def _measures(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    count = sums["tokens"][:, None]
    kl, logit = sums["kl"] / count, sums["logit_kl"] / count
    return {"kl": kl, "logit_kl": logit, "gain": logit - kl}
