"""The search for a direction that does much and costs little: layer, strength, positions and method.

Adding a direction has a continuous strength, so Optuna's tree-structured Parzen estimator proposes each trial from
those before (Akiba et al. 2019, "Optuna"; Bergstra et al. 2011). Ablating has none, so that every candidate is tried
once, as in the search for the refusal direction (Arditi et al. 2024, arXiv 2406.11717).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import MinLen

from workbench.core.checks import Natural, Number, Positive, Raises, checked
from workbench.core.progress import Progress, remembering
from workbench.directions.direction import Direction
from workbench.directions.finding import find_directions
from workbench.directions.samples import Position
from workbench.evaluation import bootstrap
from workbench.interventions import InterventionKind
from workbench.interventions.saved import to_json
from workbench.model.blame import NotFiniteError
from workbench.model.hookpoints import HookPointError
from workbench.model.in_force import acting_on
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt
from workbench.model.sampling import PromptError
from workbench.steering.checkpoint import Checkpoint, Record
from workbench.steering.errors import SteeringError
from workbench.steering.measures import Measure, plain_prompts
from workbench.steering.result import Act, DirectionSearch, DirectionTrial, edits_of, means

FIRST = 10
"""Trials that are drawn at random before the estimator proposes any."""


@checked(SteeringError)
def search_direction(
    model: LanguageModel,
    positives: Annotated[Sequence[Prompt], Raises(PromptError)],
    negatives: Annotated[Sequence[Prompt], Raises(PromptError)],
    effect: Measure,
    cost: Measure,
    *,
    at: Annotated[str | Sequence[str] | None, Raises(HookPointError)] = None,
    methods: Annotated[Sequence[str], MinLen(1)] = ("difference",),
    positions: Annotated[Sequence[Position], MinLen(1)] = ("last",),
    acts: Annotated[Sequence[Act], MinLen(1)] = ("add",),
    strengths: tuple[Number, Number] = (0.1, 2.0),
    trials: Positive = 40,
    seed: Natural = 0,
    checkpoint: str | Path | None = None,
    cancel: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> DirectionSearch:
    """Directions of a concept at many places and strengths, with what each does to the model and what it costs.

    Directions are found by `find_directions` on the positives and negatives. Each trial adds one of them, or ablates
    it, and measures the model under it. Trial n depends on the seed and on the trials before alone, so that a search
    that was stopped and goes on from its checkpoint ends as one that was not.

    Args:
        model: the model; interventions in force act beside each trial's.
        positives: texts that have the concept, as `find_directions` takes them.
        negatives: texts that lack it.
        effect: what is to be high, such as `WordProbability(prompts, " happy")`: from a model, under the interventions
            in force, to a value for each text.
        cost: what is to be low, such as `Divergence(texts)`.
        at: hook points; None for the residual stream behind each layer.
        methods: of `find_directions`.
        positions: tokens at which texts are read, as in `find_directions`.
        acts: "add" a direction, or "ablate" it in every layer, for which the hook points have to be of the stream.
        strengths: ends of the range of what is added, in natural strengths of each direction.
        trials: to make; ablations alone end when each candidate was tried.
        seed: of the split of texts and of the trials.
        checkpoint: a file that holds the trials made so far; a search that finds one goes on from it. Effect and cost
            are measures of `wb.steering` then, and what is in force are interventions that can be saved.
        cancel: asked before each trial; the search so far is returned, not `complete`.
        progress: told the share that is done.

    Raises:
        SteeringError: strengths that are no range, a checkpoint of another search, measures that are not finite on the
            plain model, or no trial that the model can run under.
        DirectionError, HookPointError, PromptError: as `find_directions`.
    """
    low, high = strengths
    if not 0 < low < high:
        raise SteeringError(f"strengths are two rising numbers above 0, not {low:g} and {high:g}.")
    found: dict[tuple[str, str], Mapping[str, Direction]] = {}
    for method, position in dict.fromkeys(itertools.product(methods, positions)):
        how: dict[str, Any] = {"at": at, "method": method, "position": position, "seed": seed, "progress": False}
        found[method, position] = find_directions(model, positives, negatives, **how)
    names = list(next(iter(found.values())))
    space = _Space(names, list(found), list(dict.fromkeys(acts)), (float(low), float(high)), seed)
    _check_widths(model, space)
    texts = [plain_prompts(of) for of in (positives, negatives)]
    beside = [] if checkpoint is None else _beside(model)
    saved = Checkpoint(checkpoint, [model.hash, texts, space.described(), *beside], effect, cost)
    if not all(map(space.holds, saved.records)):
        raise SteeringError(f"{checkpoint} holds trials of another search; name another file, or remove it.")
    plain = [_measured(model, one, what) for one, what in ((effect, "effect"), (cost, "cost"))]
    records, stops = list(saved.records[:trials]), remembering(cancel)
    for proposed in space.proposals(records, trials):
        if stops():
            break
        if progress:
            progress(len(records) / trials, f"Trial {len(records) + 1} of {trials}")
        again = next((one for one in records if proposed.is_of(one)), None)
        records.append(_tried(model, found, proposed, effect, cost) if again is None else again)
        saved.write(records)
    made = [_trial(number, one, found) for number, one in enumerate(records) if one["effect"] is not None]
    if not made and records:
        raise SteeringError("The model can't run under any of the trials; lower the strengths.")
    complete = len(records) >= min(trials, space.size)
    return DirectionSearch(made, means(plain[0]), means(plain[1]), complete, found)


def _check_widths(model: LanguageModel, space: _Space) -> None:
    if "ablate" in space.acts:
        for name in space.names:
            if model.hook_points[name].width != model.network.d_model:
                raise SteeringError(f"{name} is not as wide as the residual stream, where directions are ablated.")


def _beside(model: LanguageModel) -> list[Any]:
    """What is in force beside the trials, as plain data; empty where nothing is."""
    around = acting_on(model)
    kinds = [one for one in around if isinstance(one, InterventionKind)]
    if len(kinds) < len(around):
        raise SteeringError(
            "A checkpoint can't tell what else is in force than interventions of Workbench, such as spliced "
            "dictionaries; search without a checkpoint."
        )
    return [to_json(model, kinds)] if kinds else []


@dataclass(frozen=True)
class _Proposal:
    """What a trial does."""

    hook_point: str
    how: tuple[str, str]
    act: Act
    strength: float

    def is_of(self, record: Record) -> bool:
        """Whether a trial did the same."""
        own = (self.hook_point, " ".join(self.how), self.act, self.strength)
        return own == (record["hook_point"], record["how"], record["act"], record["strength"])


@dataclass(frozen=True)
class _Space:
    """What is searched over."""

    names: list[str]
    hows: list[tuple[str, str]]
    acts: list[Act]
    strengths: tuple[float, float]
    seed: int

    @property
    def size(self) -> float:
        """How many candidates there are; infinite where a strength is one of their settings."""
        return math.inf if "add" in self.acts else len(self.names) * len(self.hows)

    def described(self) -> list[Any]:
        """As plain data."""
        return [self.names, self.hows, self.acts, self.strengths, self.seed]

    def holds(self, record: Record) -> bool:
        """Whether a trial of a file is one that this search can make, with all of its values or none."""
        low, high = self.strengths if record["act"] == "add" else (0.0, 0.0)
        here = record["hook_point"] in self.names and record["how"] in [" ".join(how) for how in self.hows]
        absent = [record[name] is None for name in ("effect", "cost", "interval")]
        return here and record["act"] in self.acts and low <= record["strength"] <= high and len(set(absent)) == 1

    def proposals(self, records: list[Record], trials: int) -> Iterator[_Proposal]:
        """The trials to make behind those of `records`, which the caller extends by each."""
        if math.isfinite(self.size):
            every = list(itertools.product(self.names, self.hows))
            random.Random(self.seed).shuffle(every)
            for name, how in every[len(records) : trials]:
                yield _Proposal(name, how, "ablate", 0.0)
            return
        while len(records) < trials:
            yield self._proposed(records)

    def _proposed(self, records: Sequence[Record]) -> _Proposal:
        """The next trial by Optuna, from the trials before and the seed alone."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        kinds: dict[str, Any] = {
            "hook_point": optuna.distributions.CategoricalDistribution(self.names),
            "how": optuna.distributions.CategoricalDistribution([" ".join(how) for how in self.hows]),
            "act": optuna.distributions.CategoricalDistribution(self.acts),
            "strength": optuna.distributions.FloatDistribution(*self.strengths, log=True),
        }
        sampler = optuna.samplers.TPESampler(n_startup_trials=FIRST, seed=self.seed + 7919 * len(records))
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        for one in records:
            own = [name for name in kinds if name != "strength" or one["act"] == "add"]
            values = {name: one[name] for name in own}
            measured: Any = [one["effect"], one["cost"]]
            failed = one["effect"] is None
            study.add_trial(
                optuna.trial.create_trial(
                    params=values,
                    distributions={name: kinds[name] for name in own},
                    values=None if failed else measured,
                    state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
                )
            )
        trial: Any = study.ask()
        act = trial.suggest_categorical("act", self.acts)
        name = trial.suggest_categorical("hook_point", self.names)
        method, position = trial.suggest_categorical("how", [" ".join(how) for how in self.hows]).split(" ")
        strength = trial.suggest_float("strength", *self.strengths, log=True) if act == "add" else 0.0
        return _Proposal(name, (method, position), act, strength)


def _tried(
    model: LanguageModel,
    found: Mapping[tuple[str, str], Mapping[str, Direction]],
    one: _Proposal,
    effect: Measure,
    cost: Measure,
) -> Record:
    """What a trial does and costs; None where the model can't run under it."""
    direction = found[one.how][one.hook_point]
    edits = edits_of(direction, one.act, one.strength * direction.strength)
    record: Record = {
        "hook_point": one.hook_point,
        "how": " ".join(one.how),
        "act": one.act,
        "strength": one.strength,
        "effect": None,
        "cost": None,
        "interval": None,
    }
    try:
        with model.intervening(edits):
            values, spent = [float(x) for x in effect(model)], [float(x) for x in cost(model)]
    except NotFiniteError:
        return record
    if not values or not spent:
        raise SteeringError("Under a trial a measure has no values; give one with a value for each text.")
    if not all(map(math.isfinite, [*values, *spent])):
        return record
    sums = {"value": torch.tensor(values), "texts": torch.ones(len(values))}
    low, high = bootstrap(sums, lambda of: {"mean": of["value"] / of["texts"]})["mean"].interval
    return record | {"effect": means(values), "cost": means(spent), "interval": [low, high]}  # type: ignore[return-value]


def _measured(model: LanguageModel, measure: Measure, what: str) -> list[float]:
    values = [float(one) for one in measure(model)]
    if not values or not all(map(math.isfinite, values)):
        raise SteeringError(f"The {what} has no finite values on the model as it is; give another measure.")
    return values


def _trial(number: int, one: Record, found: Mapping[tuple[str, str], Mapping[str, Direction]]) -> DirectionTrial:
    method, position = one["how"].split(" ")
    direction = found[method, position].get(one["hook_point"]) if (method, position) in found else None
    if direction is None or one["effect"] is None or one["cost"] is None or one["interval"] is None:
        raise SteeringError("The checkpoint holds a trial of another search; name another file.")
    amount = one["strength"] * direction.strength
    low, high = one["interval"]
    return DirectionTrial(
        number,
        one["hook_point"],
        method,
        position,
        one["act"],
        one["strength"],
        amount,
        one["effect"],
        (low, high),
        one["cost"],
    )
