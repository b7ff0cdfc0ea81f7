"""Directions that tell two kinds of texts apart, found at one hook point or at every layer, and tested on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from workbench.core.checks import Natural, Raises, checked
from workbench.core.progress import Progress
from workbench.core.text import counted
from workbench.core.type_words import shown
from workbench.directions.direction import Direction
from workbench.directions.errors import DirectionError
from workbench.directions.methods import OF_PAIRS, Method, method_called
from workbench.directions.samples import Position, Samples, gather
from workbench.directions.separation import Separation, auc, auc_interval
from workbench.model.hookpoints import HookPointError
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt
from workbench.model.sampling import PromptError

HELD_OUT = 3
"""Of so many texts of each class, one is held out."""
FOLDS = 4
"""Parts of the texts that a direction is found on, by which the hook point is chosen."""


@checked(DirectionError)
def find_directions(
    model: LanguageModel,
    positives: Annotated[Sequence[Prompt], Raises(PromptError)],
    negatives: Annotated[Sequence[Prompt], Raises(PromptError)],
    *,
    at: Annotated[str | Sequence[str] | None, Raises(HookPointError)] = None,
    method: str = "difference",
    position: Position = "last",
    seed: Natural = 0,
    progress: Progress | None = None,
) -> dict[str, Direction]:
    """The direction of a concept at each hook point, by hook point, with how well it separates held-out texts.

    Every third text of each class, in an order drawn by the seed, is held out; the directions are found on the rest.
    Pairs (equally many of both) stay together, as do copies of a text. Each is a vector of length 1 that points to the
    positives.

    Args:
        model: the model; interventions in force act.
        positives: texts that have the concept, chat prompts, or token ids `[pos]`.
        negatives: texts that lack it.
        at: a hook point, or several; None for the residual stream behind each layer.
        method: "difference" of means, "pca" of the differences of pairs, "logistic" or "ridge" regression, or "lda".
        position: the tokens of a text that count: its "last", the "mean" over all, or "all" of them.
        seed: of the split and the bootstrap.
        progress: told the share that is done.

    Raises:
        DirectionError: fewer than `HELD_OUT` different texts of a class, or pairs; a text in both; activations that are
            all alike; an unknown method, or one that takes pairs where there are none.
        HookPointError: the model lacks a hook point.
        PromptError: a text that the model can't read.
        EditError: an intervention in force that can't act.
    """
    chosen = method_called(method)
    names = names_of(model, at)
    _check(positives, negatives)
    _check_pairs(method, len(positives), len(negatives), position)
    both = gather(model, [*positives, *negatives], names, position, progress)
    split = _split(both, len(positives), len(negatives), seed)
    about = {"method": method, "position": position, "seed": seed, "texts": [len(positives), len(negatives)]}
    found = {}
    for name in names:
        x = both.values[name].double()
        vector = _unit(chosen(x[split.train[0]], x[split.train[1]]), name)
        separation = _separation(x, vector, split, chosen, seed)
        found[name] = Direction({name: vector}, "direction", model.name, about, {name: separation})
    return found


@checked(DirectionError)
def find_direction(
    model: LanguageModel,
    positives: Annotated[Sequence[Prompt], Raises(PromptError)],
    negatives: Annotated[Sequence[Prompt], Raises(PromptError)],
    *,
    at: Annotated[str | Sequence[str] | None, Raises(HookPointError)] = None,
    method: str = "difference",
    position: Position = "last",
    seed: Natural = 0,
    progress: Progress | None = None,
) -> Direction:
    """The direction of a concept at the hook point where it separates best; `separation` has all hook points.

    The hook point is the one with the highest area under the curve over `FOLDS` folds of the texts that directions are
    found on; what is held out takes no part in the choice. Arguments and errors are those of `find_directions`.
    """
    how = {"at": at, "method": method, "position": position, "seed": seed, "progress": progress}
    found = find_directions(model, positives, negatives, **how)
    separation = {name: one.separation[name] for name, one in found.items()}
    best = max(separation, key=lambda name: separation[name].folds)
    return replace(found[best], separation=separation)


@dataclass(frozen=True)
class _Split:
    """The samples of each class, as masks, and the text of each sample within its class, one for its copies."""

    train: tuple[Tensor, Tensor]
    """Positives and negatives that a direction is found on, `[samples]` each."""
    test: tuple[Tensor, Tensor]
    """Those that are held out."""
    texts: Tensor
    """`[samples]`."""
    counts: tuple[int, int]
    """Held-out texts of each class."""


def names_of(model: LanguageModel, at: str | Sequence[str] | None) -> list[str]:
    """The hook points that a person names; those of the stream behind each layer for None."""
    if at is None:
        return [f"blocks.{layer}.hook_resid_post" for layer in range(model.network.n_layers)]
    names = [at] if isinstance(at, str) else list(dict.fromkeys(at))
    if not names:
        raise DirectionError("There is no hook point; name at least one, or leave it out for every layer.")
    return [model.hook_points[name].name for name in names]


def _check(positives: Sequence[Prompt], negatives: Sequence[Prompt]) -> None:
    for texts, word in ((positives, "positive"), (negatives, "negative")):
        if len(texts) < HELD_OUT:
            raise DirectionError(
                f"{counted(len(texts), f'{word} text is', f'{word} texts are')} too few; a direction needs at least "
                f"{HELD_OUT} of each, since every third is held out to test it."
            )
    shared = _as_keys(positives) & _as_keys(negatives)
    if shared:
        raise DirectionError(
            f"{counted(len(shared), 'text is', 'texts are')} positive and negative, such as "
            f"{shown(next(iter(shared)))}; take what is in both out of one."
        )


def _as_keys(texts: Sequence[Prompt]) -> set:
    return {text if isinstance(text, str) else tuple(torch.as_tensor(text).flatten().tolist()) for text in texts}


def _check_pairs(method: str, positives: int, negatives: int, position: Position) -> None:
    if method in OF_PAIRS and positives != negatives:
        raise DirectionError(
            f"The method {method} takes pairs, and there are {positives} positives and {negatives} negatives; "
            "give as many of each, pair by pair, or choose another method."
        )
    if method in OF_PAIRS and position == "all":
        raise DirectionError(
            f"The method {method} takes pairs, and the tokens of two texts are none; read them at their last token or "
            "the mean, or choose another method."
        )


def _split(both: Samples, positives: int, negatives: int, seed: int) -> _Split:
    """Every third text of each class is held out; copies, and pairs where there are as many of both, stay together."""
    source = torch.Generator().manual_seed(seed)
    own = [both.copies[:positives], both.copies[positives:] - positives]
    if positives == negatives:
        own = [_joined(*own)] * 2
    groups = [one.unique(return_inverse=True)[1] for one in own]
    counts = [int(one.max()) + 1 for one in groups]
    if min(counts) < HELD_OUT:
        raise DirectionError(
            f"There are {min(counts)} different texts of a class, or pairs that share none; a direction needs at least "
            f"{HELD_OUT}, since every third is held out to test it."
        )
    orders = [torch.randperm(counts[0], generator=source)]
    orders.append(orders[0] if positives == negatives else torch.randperm(counts[1], generator=source))
    held = [
        torch.isin(one, order[: count // HELD_OUT]) for one, order, count in zip(groups, orders, counts, strict=True)
    ]
    positive, out = both.texts < positives, torch.cat(held)[both.texts]
    return _Split(
        (positive & ~out, ~positive & ~out),
        (positive & out, ~positive & out),
        torch.cat(groups)[both.texts],
        (int(held[0].sum()), int(held[1].sum())),
    )


def _joined(one: Tensor, other: Tensor) -> Tensor:
    """A number for each pair `[pairs]`, the same for pairs that share a text, be it by others between them."""
    numbers = torch.arange(len(one))
    while True:
        former = numbers
        for texts in (one, other):
            least = torch.full_like(numbers, len(numbers)).scatter_reduce(0, texts, numbers, "amin")
            numbers = least[texts]
        if bool((numbers == former).all()):
            return numbers


def _separation(x: Tensor, vector: Tensor, split: _Split, chosen: Method, seed: int) -> Separation:
    """How well a vector `[d]` separates the samples `[n, d]` that are held out."""
    seen, unseen = ([x[mask] @ vector for mask in masks] for masks in (split.train, split.test))
    interval = auc_interval(unseen[0], unseen[1], (split.texts[split.test[0]], split.texts[split.test[1]]), seed)
    strength = float(seen[0].mean() - seen[1].mean())
    return Separation(auc(unseen[0], unseen[1]), interval, _over_folds(x, split, chosen), strength, split.counts)


def _unit(vector: Tensor, name: str) -> Tensor:
    length = float(vector.norm())
    if not length > 0 or not bool(vector.isfinite().all()):
        raise DirectionError(f"The activations of both classes are the same at {name}; there is no direction there.")
    return vector / length


def _over_folds(x: Tensor, split: _Split, chosen: Method) -> float:
    """The mean area under the curve of training texts under directions that were found without their fold."""
    train = [x[mask] for mask in split.train]
    ranks = [split.texts[mask].unique(return_inverse=True)[1] for mask in split.train]
    folds = min(FOLDS, *(int(rank.max()) + 1 for rank in ranks))
    scores = []
    for fold in range(folds):
        inside = [rank % folds != fold for rank in ranks]
        vector = chosen(*(of[mask] for of, mask in zip(train, inside, strict=True)))
        scores.append(auc(*(of[~mask] @ vector for of, mask in zip(train, inside, strict=True))))
    return sum(scores) / len(scores)
