"""How much of a model is idle, and at what price? PPL-p% sparsity, and two baselines.

Luo et al., "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity" (2024), arXiv 2411.02335.
Neurons whose contribution to a token is small are left out. One CETT for all layers says how small, which gives each
layer its own threshold; the CETT is the largest at which perplexity rises by no more than p. Baselines, at the same
rise: one threshold for all layers, and the same number of strongest neurons for every token.

Thresholds are found on some texts and reported on others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge

from workbench.core.checks import Integer, Natural, Positive, PositiveNumber, checked
from workbench.core.display import Rows
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.sparsity.evaluation import CettMeter, Sample
from workbench.sparsity.masking import SparsityError, checked_thresholds, keeping_above
from workbench.sparsity.measurement import BASELINES, Cancelled, Measurement
from workbench.sparsity.outcome import SparsityOutcome
from workbench.sparsity.result import Sparsity


@checked(SparsityError)
def measure_sparsity(
    model: LanguageModel, corpus: Corpus, ppl_increase: PositiveNumber = 0.01, tokens: int = 8192, **how: Any
) -> Sparsity:
    """The sparsity at one p; settings and errors as in `measure_sparsities`."""
    return measure_sparsities(model, corpus, [ppl_increase], tokens, **how)[0]


@checked(SparsityError)
def measure_sparsities(
    model: LanguageModel,
    corpus: Corpus,
    ppl_increases: Sequence[PositiveNumber] = (0.01,),
    tokens: Annotated[Integer, Ge(2)] = 8192,
    *,
    held_out: Corpus | None = None,
    baselines: Sequence[Literal["fixed", "top_k"]] = BASELINES,
    context: Annotated[Integer, Ge(2)] = 256,
    batch: Positive = 4,
    seed: Natural = 0,
    resamples: Positive = 1000,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    on_update: Callable[[list[Sparsity]], None] | None = None,
) -> Rows[Sparsity]:
    """The share of its neurons that a model can do without for each token, before perplexity rises by p; for each p.

    Interventions and splices in force around the call are set aside; dictionaries that belong to the model stay. A
    larger p never gets lower thresholds than a smaller one in the same call. The search assumes that perplexity rises
    with CETT, which holds but for noise.

    Args:
        model: any with MLPs whose down projection is one matrix; gated or not, with any activation function.
        corpus: texts to find the thresholds on, and, where nothing is held out, to report on.
        ppl_increases: relative rises in perplexity that are allowed; one result for each.
        tokens: of both halves together: one half to find the thresholds on, one to report on.
        held_out: texts to report on. Without it, half of the corpus's texts.
        baselines: other measures to take at the same rise.
        context: positions of a window, with BOS.
        batch: windows that run at once.
        seed: of the choice of the texts, and of the bootstrap for the intervals.
        resamples: draws of the bootstrap, over texts.
        progress: called with about the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: called after each batch; once it returns True, the last results that `on_update` got are returned.
        on_update: called with results as they come: from a part of the texts, from all, with each baseline.

    Returns:
        One result for each p, in the order asked.

    Raises:
        SparsityError: a p or a setting that can't be used, or a measurement cancelled before there was a result.
        CorpusError: texts that can't be used: only one, or without two tokens in a row, or a model without tokenizer.
    """
    if not len(ppl_increases):
        raise SparsityError("ppl_increases is a list of shares such as [0.01], not an empty one.")
    wanted = [float(p) for p in ppl_increases]
    measurement = Measurement(
        model,
        sample_corpora(corpus, held_out, seed),
        wanted,
        baselines=list(baselines),
        resamples=resamples,
        progress=progress,
        cancel=cancel,
        on_update=on_update,
    )
    with uninterrupted(), torch.inference_mode():
        try:
            measurement.run((tokens // 2, tokens - tokens // 2), {"context": context, "batch": batch, "seed": seed})
        except Cancelled:
            if not measurement.results:
                raise SparsityError("The measurement was stopped before there was an answer.") from None
    by_increase = {one.asked: one for one in measurement.results}
    return Rows(by_increase[p] for p in wanted)


@checked(SparsityError)
def measure_at_thresholds(
    model: LanguageModel,
    thresholds: Any,
    corpus: Corpus,
    tokens: Positive = 8192,
    *,
    context: Annotated[Integer, Ge(2)] = 256,
    batch: Positive = 4,
    seed: Natural = 0,
    resamples: Positive = 1000,
) -> tuple[SparsityOutcome, list[float]]:
    """How much known thresholds leave out on some texts and what that costs; and each layer's CETT.

    Args:
        model: the model.
        thresholds: a `Sparsity`, one number for each layer, or one for all.
        corpus: the texts.
        tokens: at most so many.
        context, batch, seed, resamples: as in `measure_sparsities`.

    Raises:
        SparsityError: thresholds that don't fit the model, or settings that can't be used.
        CorpusError: texts without two tokens in a row.
    """
    keeps = keeping_above(model, checked_thresholds(model, thresholds))
    with uninterrupted(), torch.inference_mode():
        how = {"tokens": tokens, "context": context, "batch": batch, "seed": seed}
        sample = Sample.read(model, corpus, lambda _: None, **how)
        meter = CettMeter(model, [keeps])
        sample.run_plain(meter.add)
        return sample.run_masked(keeps).outcome(resamples, seed), meter.means()[0]


def sample_corpora(corpus: Corpus, held_out: Corpus | None, seed: int) -> tuple[Corpus, Corpus]:
    """The texts to find thresholds on, and those to report on; they have no text in common."""
    return corpus.split(0.5, seed) if held_out is None else (corpus, held_out)
