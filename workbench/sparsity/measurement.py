"""One measurement of sparsity while it runs: early results, results on all texts, then the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from workbench.core.progress import Progress
from workbench.core.provenance import command_line
from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel
from workbench.sparsity.curves import CettCurve, CurveMeter
from workbench.sparsity.evaluation import CettMeter, Sample
from workbench.sparsity.masking import LEAST, Keep, above, down_weights, keeping_above, strongest
from workbench.sparsity.outcome import PassSums, SparsityOutcome
from workbench.sparsity.result import Baseline, Sparsity
from workbench.sparsity.search import Point, Search

BASELINES = ("fixed", "top_k")
FIRST_GUESS = 0.1
"""The CETT that a search begins with."""
SMALL_SHARE = 0.25
"""The share of the texts that the early results are from."""
NEAR = 0.0005
"""How near the rise in perplexity has to come to what is asked, or a twentieth of that where it is less."""
ROUGH = 4.0
"""How many times farther it may stay away in an early result."""
BASELINE_PASSES = 5
"""Passes for a baseline's setting at one p, at most, so that the whole stays within 14 passes for one p."""


class Cancelled(Exception):
    """The measurement was cancelled."""


class Measurement:
    """One measurement while it runs.

    Args:
        model: the model.
        corpora: texts to find thresholds on, and texts to report on.
        wanted: relative rises in perplexity.
        baselines: some of `BASELINES`.
        resamples: draws of the bootstrap.
        progress: called after each batch with the share done and a word on what is being done.
        cancel: called after each batch.
        on_update: called with each new list of results.

    Attributes:
        results: what is known so far, one for each p from the smallest; empty at first.
    """

    def __init__(
        self,
        model: LanguageModel,
        corpora: Sequence[Corpus],
        wanted: Sequence[float],
        *,
        baselines: Sequence[str],
        resamples: int,
        progress: Progress | None,
        cancel: Callable[[], bool] | None,
        on_update: Callable[[list[Sparsity]], None] | None,
    ):
        self.model, self.corpora, self.wanted, self.baselines = model, corpora, sorted(set(wanted)), baselines
        self.resamples, self.seed = resamples, 0
        self.progress: Progress | None = progress
        self.cancel, self.on_update = cancel, on_update
        self.results: list[Sparsity] = []
        self.done, self.size, self.what = 0, 1, "Reading the texts"
        # each p takes about five passes over half of the texts, each baseline as many; then what is run once
        self.expected = 2.0 + len(self.wanted) * 2.5 * (1 + len(baselines))
        self.norms = [weights.norm(dim=1) for weights in down_weights(model)]

    @property
    def passes(self) -> float:
        """Positions run so far, in passes over all texts."""
        return self.done / self.size

    def run(self, sizes: tuple[int, int], how: dict[str, int]) -> None:
        """Measure everything; `results` holds what is known at every time.

        Args:
            sizes: tokens of either corpus.
            how: `context`, `batch` and `seed`.

        Raises:
            Cancelled: `cancel` returned True.
        """
        finding, reporting = (
            Sample.read(self.model, corpus, self._on_batch, tokens=tokens, **how)
            for corpus, tokens in zip(self.corpora, sizes, strict=True)
        )
        self.size, self.seed = finding.positions + reporting.positions, how["seed"]
        provenance = self._provenance(how | {"tokens": sum(sizes), "positions": self.size})
        self.what = "Reading the plain model"
        meter = CurveMeter(self.model)
        finding.run_plain(meter.add)
        curves = meter.curves()
        guesses = self._early(finding.first(SMALL_SHARE), curves, provenance)
        self._all(finding, reporting, curves, guesses, provenance)
        for name in self.baselines:
            top = 1.0 if name == "top_k" else max(curve.thresholds[-1] for curve in curves)
            self._baseline(name, finding, reporting, top)
        if self.progress:
            self.progress(1.0, f"{self.passes:.1f} passes")

    def _on_batch(self, positions: int) -> None:
        self.done += positions
        if self.progress:
            self.progress(min(self.passes / self.expected, 0.99), f"{self.what}, {self.passes:.1f} passes so far")
        if self.cancel is not None and self.cancel():
            raise Cancelled

    def _early(self, small: Sample, curves: list[CettCurve], provenance: dict[str, Any]) -> list[float]:
        """Set results from a small sample; the CETT of each p."""
        self.what = "A first answer"
        search = self._by_cett(small, curves)
        points = self._points(search, [FIRST_GUESS] * len(self.wanted), rough=ROUGH)
        results = []
        for p, point in zip(self.wanted, points, strict=True):
            outcome, limits = self._outcome(point.sums), _thresholds(curves, point.setting)
            known: dict[str, Any] = {"calibrated": outcome, "reported": outcome, "curves": {"cett": _curve(search)}}
            known |= {"cett_by_layer": [], "baselines": {}, "passes": self.passes, "provenance": provenance}
            results.append(Sparsity(p, point.setting, limits, early=True, **known))
        self._update(results)
        return [point.setting for point in points]

    def _all(
        self,
        finding: Sample,
        reporting: Sample,
        curves: list[CettCurve],
        guesses: Sequence[float],
        provenance: dict[str, Any],
    ) -> None:
        """Set results from all texts: thresholds found on some and reported on others."""
        self.what = "Finding the thresholds"
        search = self._by_cett(finding, curves)
        points = self._points(search, guesses)
        self.what = "Other texts"
        limits = [_thresholds(curves, point.setting) for point in points]
        keeps = [keeping_above(self.model, one) for one in limits]
        cett = CettMeter(self.model, keeps)
        reporting.run_plain(cett.add)
        reported = [self._outcome(reporting.run_masked(keep)) for keep in keeps]
        results = []
        for number, (p, point) in enumerate(zip(self.wanted, points, strict=True)):
            known: dict[str, Any] = {"calibrated": self._outcome(point.sums), "reported": reported[number]}
            known |= {"cett_by_layer": cett.means()[number], "baselines": {}, "curves": {"cett": _curve(search)}}
            known |= {"passes": self.passes, "provenance": provenance}
            results.append(Sparsity(p, point.setting, limits[number], early=False, **known))
        self._update(results)

    def _baseline(self, name: str, finding: Sample, reporting: Sample, top: float) -> None:
        """Add to the results what a baseline leaves out at each p."""
        self.what = {"fixed": "One threshold for all layers", "top_k": "The strongest of each token"}[name]
        search = Search(lambda setting: finding.run_masked(self._keeps(name, setting)), top, most=BASELINE_PASSES)
        starts = [_start(name, one) for one in self.results]
        points = self._points(search, starts, LEAST if name == "fixed" else 0.0, rough=2.0)
        at_each_p = [
            Baseline(
                point.setting,
                self._outcome(point.sums),
                self._outcome(reporting.run_masked(self._keeps(name, point.setting))),
            )
            for point in points
        ]
        curve = {name: _curve(search)}
        self._update(
            [
                replace(one, passes=self.passes, curves=one.curves | curve, baselines=one.baselines | {name: baseline})
                for one, baseline in zip(self.results, at_each_p, strict=True)
            ]
        )

    def _update(self, results: list[Sparsity]) -> None:
        self.results = results
        if self.on_update:
            self.on_update(results)

    def _outcome(self, sums: PassSums) -> SparsityOutcome:
        return sums.outcome(self.resamples, self.seed)

    def _by_cett(self, sample: Sample, curves: list[CettCurve]) -> Search:
        """A search over the CETT that all layers share."""
        top = max(curve.cett[-1] for curve in curves)
        return Search(lambda cett: sample.run_masked(keeping_above(self.model, _thresholds(curves, cett))), top)

    def _points(
        self, search: Search, guesses: Sequence[float], least: float = 0.0, *, rough: float = 1.0
    ) -> list[Point]:
        """For each p the point of its rise; settings never fall from one p to the next."""
        points = []
        for p, guess in zip(self.wanted, guesses, strict=True):
            points.append(search.find(p, rough * min(NEAR, p / 20), max(guess, least), least))
            least = points[-1].setting
        return points

    def _keeps(self, name: str, setting: float) -> list[Keep]:
        """Which neurons a baseline keeps in each layer."""
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


def _thresholds(curves: Sequence[CettCurve], cett: float) -> list[float]:
    return [curve.threshold(cett) for curve in curves]


def _curve(search: Search) -> list[tuple[float, float, float]]:
    return [(one.setting, one.sparsity, one.ppl_increase) for one in search.points]


def _start(name: str, result: Sparsity) -> float:
    """Where a baseline's search begins: near what the thresholds of each layer do."""
    if name == "top_k":
        return result.calibrated.sparsity
    return sorted(result.thresholds)[len(result.thresholds) // 2]
