"""How much of a model is idle, and at what price? PPL-p% sparsity and its rivals.

Luo et al., "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity" (2024), arXiv 2411.02335.
Neurons whose contribution to a token is small are left out. How small is said by one CETT for all layers, which gives
each layer its own threshold; the CETT is the largest at which perplexity rises by no more than p. Rivals, at the same
rise: one threshold for all layers, and the same number of strongest neurons for every token.

Thresholds are found on some texts and reported on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from workbench.core.progress import Progress
from workbench.core.provenance import command_line
from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel, uninterrupted
from workbench.sparsity.curves import CettCurve, CurveMeter
from workbench.sparsity.evaluation import CettMeter, Sample, SparsityOutcome, checked_sizes, summarised
from workbench.sparsity.masking import (
    LEAST,
    SparsityError,
    above,
    checked_thresholds,
    down_weights,
    keeping_above,
    strongest,
)
from workbench.sparsity.result import Rival, Sparsity
from workbench.sparsity.search import Point, Search

RIVALS = ("fixed", "top_k")
FIRST_GUESS = 0.1
"""The CETT that a search begins with."""
SMALL_SHARE = 0.25
"""Of the texts: what the early answer is found on."""
NEAR = 0.0005
"""How near the rise in perplexity has to come to what is asked, or a twentieth of that where it is less."""
ROUGH = 4.0
"""How many times farther it may stay away in an early answer."""

RIVAL_PASSES = 5
"""Passes for a rival's setting at one p, at most, so that the whole stays within 14 passes for one p."""


def measure_sparsity(
    model: LanguageModel, corpus: Corpus, ppl_increase: float = 0.01, tokens: int = 8192, **how: Any
) -> Sparsity:
    """Measure for one p; settings and errors as in `measure_sparsities`."""
    return measure_sparsities(model, corpus, [ppl_increase], tokens, **how)[0]


def measure_sparsities(
    model: LanguageModel,
    corpus: Corpus,
    ppl_increases: Sequence[float] = (0.01,),
    tokens: int = 8192,
    *,
    held_out: Corpus | None = None,
    rivals: Sequence[str] = RIVALS,
    context: int = 256,
    batch: int = 4,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    told: Callable[[list[Sparsity]], None] | None = None,
) -> list[Sparsity]:
    """What share of its neurons a model can do without for each token, before perplexity rises by p.

    Interventions and splices in force around the call are set aside; dictionaries that belong to the model stay. A
    larger p never gets lower thresholds than a smaller one in the same call. The search takes perplexity to rise with
    CETT, as it does but for noise.

    Args:
        model: any with MLPs whose down projection is one matrix; gated or not, with any activation function.
        corpus: texts to find the thresholds on, and, where nothing is held out, to report on.
        ppl_increases: for each of these shares by which perplexity may rise.
        tokens: so many together; half of them to find the thresholds on, half to report on.
        held_out: texts to report on. Without it, half of the corpus's texts.
        rivals: other measures to take at the same rise: "fixed", "top_k".
        context: positions of a window, with BOS.
        batch: windows that run at once.
        seed: of the choice of the texts, and of the bootstrap for the intervals.
        resamples: draws of the bootstrap, over texts.
        progress: told about the share done.
        cancel: asked after each batch; once it says True, the last that `told` got is returned.
        told: given answers as they come: first from a part of the texts, then from all, at last with rivals.

    Returns:
        One result for each p, in the order asked.

    Raises:
        SparsityError: a p or a setting that can't be used, or a measurement stopped before there was an answer.
        CorpusError: texts that can't be used: only one, or without two tokens in a row, or a model without tokenizer.
    """
    wanted = _checked_increases(ppl_increases)
    checked_sizes(tokens, context, batch, seed, resamples)
    if tokens < 2:
        raise SparsityError("tokens is a whole number from 2, one to find thresholds on and one to report on.")
    unknown = [name for name in rivals if name not in RIVALS]
    if unknown:
        raise SparsityError(f"There is no rival measure {unknown[0]!r}; there are {' and '.join(RIVALS)}.")
    work = _Work(
        model,
        sample_corpora(corpus, held_out, seed),
        wanted,
        rivals=list(rivals),
        resamples=resamples,
        progress=progress,
        cancel=cancel,
        told=told,
    )
    with uninterrupted(), torch.inference_mode():
        try:
            work.find((tokens // 2, tokens - tokens // 2), {"context": context, "batch": batch, "seed": seed})
        except _Stop:
            if not work.answers:
                raise SparsityError("The measurement was stopped before there was an answer.") from None
    by_increase = {one.asked: one for one in work.answers}
    return [by_increase[p] for p in map(float, ppl_increases)]


def measure_at_thresholds(
    model: LanguageModel,
    thresholds: Any,
    corpus: Corpus,
    tokens: int = 8192,
    *,
    context: int = 256,
    batch: int = 4,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[SparsityOutcome, list[float]]:
    """What given thresholds do on some texts: how much they leave out and what it costs; and each layer's CETT.

    Args:
        thresholds: a `Sparsity`, one number for each layer, or one for all.
        model, corpus, tokens, context, batch, seed, resamples: as in `measure_sparsities`, all tokens for this.

    Raises:
        SparsityError: thresholds that don't fit the model.
        CorpusError: texts without two tokens in a row.
    """
    keeps = keeping_above(model, checked_thresholds(model, thresholds))
    checked_sizes(tokens, context, batch, seed, resamples)
    with uninterrupted(), torch.inference_mode():
        how = {"tokens": tokens, "context": context, "batch": batch, "seed": seed}
        sample = Sample.read(model, corpus, lambda _: None, **how)
        meter = CettMeter(model, [keeps])
        sample.run_plain(meter.look)
        return summarised(sample.run_thinned(keeps), resamples, seed), meter.means()[0]


def sample_corpora(corpus: Corpus, held_out: Corpus | None, seed: int) -> tuple[Corpus, Corpus]:
    """The texts to find thresholds on, and those to report on: without a text in common."""
    for one in (corpus,) if held_out is None else (corpus, held_out):
        if not isinstance(one, Corpus):
            raise SparsityError(f'Texts are a Corpus, such as Corpus.load("stories"), not {one!r:.40}.')
    return corpus.split(0.5, seed) if held_out is None else (corpus, held_out)


class _Stop(Exception):
    """The work was cancelled."""


class _Work:
    """One measurement while it goes on."""

    def __init__(
        self,
        model: LanguageModel,
        corpora: Sequence[Corpus],
        wanted: Sequence[float],
        *,
        rivals: Sequence[str],
        resamples: int,
        progress: Progress | None,
        cancel: Callable[[], bool] | None,
        told: Callable[[list[Sparsity]], None] | None,
    ):
        self.model, self.corpora, self.wanted, self.rivals = model, corpora, sorted(set(wanted)), rivals
        self.resamples, self.seed = resamples, 0
        self.progress, self.cancel, self.told = progress, cancel, told
        self.answers: list[Sparsity] = []
        self.done, self.size, self.what = 0, 1, "Reading the texts"
        # each p takes about five passes over half of the texts, each rival as many; then what is run once
        self.expected = 2.0 + len(self.wanted) * 2.5 * (1 + len(rivals))
        self.norms = [weights.norm(dim=1) for weights in down_weights(model)]

    @property
    def passes(self) -> float:
        """Positions run, in passes over all texts."""
        return self.done / self.size

    def tick(self, positions: int) -> None:
        """After each batch."""
        self.done += positions
        if self.progress:
            self.progress(min(self.passes / self.expected, 0.99), f"{self.what}, {self.passes:.1f} passes so far")
        if self.cancel is not None and self.cancel():
            raise _Stop

    def find(self, sizes: tuple[int, int], how: dict[str, int]) -> None:
        """The whole measurement, on so many tokens of either corpus; `answers` has what is known at every time."""
        finding, reporting = (
            Sample.read(self.model, corpus, self.tick, tokens=tokens, **how)
            for corpus, tokens in zip(self.corpora, sizes, strict=True)
        )
        self.size, self.seed = finding.positions + reporting.positions, how["seed"]
        provenance = self._provenance(how | {"tokens": sum(sizes), "positions": self.size})
        self.what = "Reading the plain model"
        meter = CurveMeter(self.model)
        finding.run_plain(meter.look)
        curves = meter.curves()
        guesses = self._early(finding.first(SMALL_SHARE), curves, provenance)
        self._all(finding, reporting, curves, guesses, provenance)
        for name in self.rivals:
            top = 1.0 if name == "top_k" else max(curve.thresholds[-1] for curve in curves)
            self._rival(name, finding, reporting, top)
        if self.progress:
            self.progress(1.0, f"{self.passes:.1f} passes")

    def _early(self, small: Sample, curves: list[CettCurve], provenance: dict[str, Any]) -> list[float]:
        """Answers from a small sample; the CETT of each p."""
        self.what = "A first answer"
        search = self._by_cett(small, curves)
        points = self._answer(search, [FIRST_GUESS] * len(self.wanted), rough=ROUGH)
        answers = []
        for p, point in zip(self.wanted, points, strict=True):
            found, limits = self._summarised(point.sums), _thresholds(curves, point.setting)
            known: dict[str, Any] = {"calibrated": found, "reported": found, "curves": {"cett": _listed(search)}}
            known |= {"cett_by_layer": [], "rivals": {}, "passes": self.passes, "provenance": provenance}
            answers.append(Sparsity(p, point.setting, limits, early=True, **known))
        self._tell(answers)
        return [point.setting for point in points]

    def _all(
        self,
        finding: Sample,
        reporting: Sample,
        curves: list[CettCurve],
        guesses: Sequence[float],
        provenance: dict[str, Any],
    ) -> None:
        """Answers from all texts: thresholds found on some and reported on others."""
        self.what = "Finding the thresholds"
        search = self._by_cett(finding, curves)
        points = self._answer(search, guesses)
        self.what = "Other texts"
        limits = [_thresholds(curves, point.setting) for point in points]
        keeps = [keeping_above(self.model, one) for one in limits]
        cett = CettMeter(self.model, keeps)
        reporting.run_plain(cett.look)
        reported = [self._summarised(reporting.run_thinned(keep)) for keep in keeps]
        answers = []
        for number, (p, point) in enumerate(zip(self.wanted, points, strict=True)):
            known: dict[str, Any] = {"calibrated": self._summarised(point.sums), "reported": reported[number]}
            known |= {"cett_by_layer": cett.means()[number], "rivals": {}, "curves": {"cett": _listed(search)}}
            known |= {"passes": self.passes, "provenance": provenance}
            answers.append(Sparsity(p, point.setting, limits[number], early=False, **known))
        self._tell(answers)

    def _rival(self, name: str, finding: Sample, reporting: Sample, top: float) -> None:
        """What another measure leaves out at each p."""
        self.what = {"fixed": "One threshold for all layers", "top_k": "The strongest of each token"}[name]
        search = Search(lambda setting: finding.run_thinned(self._keeps(name, setting)), top, most=RIVAL_PASSES)
        starts = [_start(name, answer) for answer in self.answers]
        points = self._answer(search, starts, LEAST if name == "fixed" else 0.0, rough=2.0)
        made = [
            Rival(point.setting, *map(self._summarised, (point.sums, reporting.run_thinned(keeps))))
            for point in points
            for keeps in [self._keeps(name, point.setting)]
        ]
        curve = {name: _listed(search)}
        self._tell(
            [
                replace(one, passes=self.passes, curves=one.curves | curve, rivals=one.rivals | {name: rival})
                for one, rival in zip(self.answers, made, strict=True)
            ]
        )

    def _tell(self, answers: list[Sparsity]) -> None:
        self.answers = answers
        if self.told:
            self.told(answers)

    def _summarised(self, sums: Tensor) -> SparsityOutcome:
        return summarised(sums, self.resamples, self.seed)

    def _by_cett(self, sample: Sample, curves: list[CettCurve]) -> Search:
        """A search over the CETT that all layers share."""
        top = max(curve.cett[-1] for curve in curves)
        return Search(lambda cett: sample.run_thinned(keeping_above(self.model, _thresholds(curves, cett))), top)

    def _answer(
        self, search: Search, guesses: Sequence[float], least: float = 0.0, *, rough: float = 1.0
    ) -> list[Point]:
        """For each p the point of its rise; settings never fall from one p to the next."""
        found = []
        for p, guess in zip(self.wanted, guesses, strict=True):
            found.append(search.find(p, rough * min(NEAR, p / 20), max(guess, least), least))
            least = found[-1].setting
        return found

    def _keeps(self, name: str, setting: float) -> list:
        """Which neurons a rival keeps in each layer."""
        return [(above if name == "fixed" else strongest)(setting, norms) for norms in self.norms]

    def _provenance(self, how: dict[str, int]) -> dict[str, Any]:
        corpora = [{"name": one.name, "hash": one.hash} for one in self.corpora]
        return how | {
            "model": self.model.name,
            "model_hash": self.model.hash,
            "corpora": corpora,
            "versions": {name: version(name) for name in ("workbench-lm", "torch")},
            "command": f"python {command_line()}",
        }


def _checked_increases(ppl_increases: Sequence[float]) -> list[float]:
    if isinstance(ppl_increases, str) or not isinstance(ppl_increases, Sequence) or not len(ppl_increases):
        raise SparsityError(f"ppl_increases is a list of shares such as [0.01], not {ppl_increases!r}.")
    for p in ppl_increases:
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p < math.inf:
            raise SparsityError(
                f"ppl_increase is the share by which perplexity may rise, a number above 0 such as 0.01, not {p!r}."
            )
    return [float(p) for p in ppl_increases]


def _thresholds(curves: Sequence[CettCurve], cett: float) -> list[float]:
    return [curve.threshold(cett) for curve in curves]


def _listed(search: Search) -> list[tuple[float, float, float]]:
    return [(one.setting, one.sparsity, one.ppl_increase) for one in search.points]


def _start(name: str, answer: Sparsity) -> float:
    """Where a rival's search begins: near what the thresholds of each layer do."""
    if name == "top_k":
        return answer.calibrated.sparsity
    return sorted(answer.thresholds)[len(answer.thresholds) // 2]
