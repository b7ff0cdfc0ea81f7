"""Linear probes: what can be read off each layer, beside what a probe of its kind reads off anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from workbench.core.checks import Natural, Number, Raises, checked
from workbench.core.display import Shown, Tabular, record_of
from workbench.core.progress import Progress
from workbench.core.text import counted
from workbench.core.type_words import shown
from workbench.directions.direction import Direction
from workbench.directions.errors import DirectionError
from workbench.directions.finding import names_of
from workbench.directions.linear import Ridge, ridge
from workbench.directions.samples import Position, Samples, gather
from workbench.model.hookpoints import HookPointError
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt
from workbench.model.sampling import PromptError

FOLDS, RESAMPLES = 5, 1000
SMALLEST = 10
"""Texts that a probe needs."""


@dataclass(frozen=True)
class ProbeScore(Shown):
    """How well a probe at one hook point predicts texts that it was not fitted on.

    A score is the share of samples whose label is predicted, or R² of numbers: 1 less the squared error divided by that
    of the mean.
    """

    hook_point: str
    score: float
    interval: tuple[float, float]
    """95%, by a bootstrap over texts."""
    shuffled: float
    """The score of the same probe on labels that are exchanged among the texts."""
    control: float
    """The score of the same probe on a control task: each token at which a text is read has a label drawn at random,
    the same wherever it stands (Hewitt & Liang 2019, "Designing and Interpreting Probes with Control Tasks"). NaN where
    all have the same, such as texts that end with one token: any probe does that."""
    penalty: float
    """The penalty of the probe on all texts, chosen by its leave-one-out errors."""

    @property
    def selectivity(self) -> float:
        """The score less that on the control task; NaN where there is none."""
        return self.score - self.control


@dataclass(frozen=True, eq=False)
class Probe(Tabular):
    """Linear probes of the same labels at several hook points."""

    labels: list[Any] = field(repr=False)
    """The labels that it tells apart, in the order of its outputs; empty for numbers."""
    scores: list[ProbeScore]
    """By hook point, in the order they were asked for."""
    fits: dict[str, Ridge] = field(repr=False)
    """The probe on all texts, by hook point: one output for each label, or one for numbers."""
    chance: float
    """The score of the commonest label of a sample, or of the mean."""
    model_name: str = ""

    @property
    def best(self) -> ProbeScore:
        """The score at the hook point where it is highest."""
        return max(self.scores, key=lambda one: one.score)

    @checked(DirectionError)
    def direction(self, hook_point: str, label: Any = None) -> Direction:
        """The direction along which the probe's output for a label rises, of length 1; of numbers, the only one.

        Raises:
            DirectionError: the probe was not fitted there, or has no such label.
        """
        if hook_point not in self.fits:
            raise DirectionError(f"There is no probe at {hook_point}; there are some at {', '.join(self.fits)}.")
        if self.labels and not any(type(label) is type(one) and label == one for one in self.labels):
            raise DirectionError(f"The probe tells {', '.join(map(str, self.labels))} apart, not {shown(label)}.")
        column = self.fits[hook_point].weights[:, self.labels.index(label) if self.labels else 0]
        return Direction({hook_point: column / column.norm()}, "probe", self.model_name, {"method": "ridge probe"})

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each hook point."""
        return (record_of(one) | {"selectivity": one.selectivity} for one in self.scores)

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain data; None for what there is none of."""
        names = [*ProbeScore.__dataclass_fields__, "selectivity"]
        rows = [{name: _known(getattr(one, name)) for name in names} for one in self.scores]
        return {"labels": [str(label) for label in self.labels], "chance": self.chance, "scores": rows}


@checked(DirectionError)
def probe(
    model: LanguageModel,
    texts: Annotated[Sequence[Prompt], Raises(PromptError)],
    labels: Sequence[bool | int | str] | Sequence[Number],
    at: Annotated[str | Sequence[str] | None, Raises(HookPointError)] = None,
    *,
    position: Position = "last",
    seed: Natural = 0,
    progress: Progress | None = None,
) -> Probe:
    """Ridge probes of labels at each hook point, in one pass over the texts, scored on texts left out.

    Texts are split into `FOLDS` parts, copies of a text together; each part is predicted by a probe that was fitted on
    the others, whose penalty was chosen there. Labels that are words or truth values, or whole numbers of at most ten
    kinds, are told apart, one output for each; other numbers are regressed.

    Args:
        model: the model; interventions in force act.
        texts: texts, chat prompts or token ids `[pos]`.
        labels: one for each text.
        at: a hook point, or several; None for the residual stream behind each layer.
        position: the tokens of a text that count: its "last", the "mean" over all, or "all" of them.
        seed: of the split, the shuffled labels, the control task and the bootstrap.
        progress: told the share that is done.

    Raises:
        DirectionError: fewer than `SMALLEST` different texts, another number of labels, or labels of one value.
        HookPointError, PromptError, EditError: as `find_direction`.
    """
    names = names_of(model, at)
    if len(texts) < SMALLEST or len(labels) != len(texts):
        raise DirectionError(
            f"A probe needs at least {SMALLEST} texts and a label for each, not {counted(len(texts), 'text')} and "
            f"{counted(len(labels), 'label')}."
        )
    kinds = _kinds(labels)
    wanted = _targets(labels, kinds)
    if bool((wanted == wanted[0]).all()):
        raise DirectionError("All labels are the same; there is nothing to tell apart.")
    samples = gather(model, texts, names, position, progress)
    tasks = _tasks(samples, wanted, seed)
    groups = samples.copies.unique(return_inverse=True)[1]
    count = int(groups.max()) + 1
    if count < SMALLEST:
        raise DirectionError(f"A probe needs at least {SMALLEST} different texts, and these are {count}.")
    fold = (torch.randperm(count, generator=torch.Generator().manual_seed(seed)) % FOLDS)[groups]
    scores, fits = [], {}
    for name in names:
        x = samples.values[name].double()
        if not bool((x != x[0]).any()):
            raise DirectionError(f"The activations at {name} are the same for all texts; a probe has nothing to read.")
        hits = {task: _left_out(x, y, fold[samples.texts]) for task, y in tasks.items()}
        fits[name] = ridge(x, tasks["score"])
        parts = {task: _parts(hits[task], y, bool(kinds)) for task, y in tasks.items()}
        interval = _interval(parts["score"], groups[samples.texts], seed)
        rates = {task: float(1 - lost.sum() / whole.sum()) for task, (lost, whole) in parts.items()}
        if bool((tasks["control"] == tasks["control"][0]).all()):
            rates["control"] = float("nan")
        scores.append(
            ProbeScore(name, rates["score"], interval, rates["shuffled"], rates["control"], fits[name].penalty)
        )
    # a column of 1 and -1 has the mean 2 p - 1
    chance = float(tasks["score"].mean(0).max() + 1) / 2 if kinds else 0.0
    return Probe(kinds, scores, fits, chance, model.name)


def _kinds(labels: Sequence[Any]) -> list[Any]:
    """The labels to tell apart, sorted; none for numbers."""
    kinds = sorted(set(labels), key=lambda one: (str(type(one)), one))
    fractions = any(isinstance(one, float) and not one.is_integer() for one in labels)
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in labels)
    return [] if numbers and (fractions or len(kinds) > 10) else kinds


def _targets(labels: Sequence[Any], kinds: Sequence[Any]) -> Tensor:
    """What a ridge regression fits, float64: 1 for a text's label and -1 for others `[texts, kinds]`, or numbers."""
    if not kinds:
        return torch.tensor([[float(one)] for one in labels], dtype=torch.float64)
    numbers = torch.tensor([list(kinds).index(one) for one in labels])
    return 2 * torch.nn.functional.one_hot(numbers, len(kinds)).double() - 1


def _tasks(samples: Samples, wanted: Tensor, seed: int) -> dict[str, Tensor]:
    """The targets of each sample: its text's, another text's, and those drawn for its token."""
    source = torch.Generator().manual_seed(seed + 1)
    shuffled = wanted[torch.randperm(len(wanted), generator=source)]
    kinds, inverse = samples.ids.unique(return_inverse=True)
    drawn = wanted[torch.randint(len(wanted), (len(kinds),), generator=source)]
    return {"score": wanted[samples.texts], "shuffled": shuffled[samples.texts], "control": drawn[inverse]}


def _left_out(x: Tensor, y: Tensor, fold: Tensor) -> Tensor:
    """Each sample's prediction by the probe that was fitted without its fold, `[samples, outputs]`."""
    found = torch.zeros_like(y)
    for number in range(FOLDS):
        test = fold == number
        if bool(test.any()):
            found[test] = ridge(x[~test], y[~test]).predict(x[test])
    return found


def _parts(found: Tensor, wanted: Tensor, told: bool) -> tuple[Tensor, Tensor]:
    """For each sample its loss and what it is measured against, whose sums give the score."""
    if told:
        return (found.argmax(1) != wanted.argmax(1)).double(), torch.ones(len(wanted), dtype=torch.float64)
    return (found - wanted).square().sum(1), (wanted - wanted.mean(0)).square().sum(1)


def _interval(parts: tuple[Tensor, Tensor], texts: Tensor, seed: int) -> tuple[float, float]:
    count = int(texts.max()) + 1
    sums = [torch.zeros(count, dtype=torch.float64).index_add_(0, texts, part) for part in parts]
    draws = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    scores = 1 - sums[0][draws].sum(1) / sums[1][draws].sum(1)
    low, high = scores.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _known(value: Any) -> Any:
    """None for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
