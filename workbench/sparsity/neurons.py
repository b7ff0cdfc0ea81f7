"""Which neurons are always on, which never, and which on one kind of token only."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from workbench.core.checks import Integer, Natural, Positive, Share, checked
from workbench.core.display import Tabular, cells
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.dictionaries.features import Feature
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.sparsity.evaluation import Sample
from workbench.sparsity.masking import SparsityError, checked_thresholds, keeping_above

KINDS = ("word", "Capital", "inside a word", "number", "punctuation", "white space", "other")
"""What a token is: the beginning of a word in small letters or with a capital, the rest of one, and so on."""


def kind_of(text: str) -> str:
    """Which of `KINDS` a token's text is."""
    body = text.strip()
    if not body:
        return "white space"
    letters = [unicodedata.category(letter)[0] for letter in body]
    if all(one == "N" for one in letters):
        return "number"
    if all(one in "PS" for one in letters):
        return "punctuation"
    if letters[0] != "L":
        return "other"
    if body[0].isupper():
        return "Capital"
    return "word" if text[0].isspace() else "inside a word"


@dataclass(frozen=True)
class NeuronActivity(Tabular):
    """How often each neuron takes part, over the tokens of some texts, and on what kinds of token."""

    tokens: int
    rates: Tensor = field(repr=False)
    """The share of the tokens on which each neuron takes part: `[n_layers, d_mlp]`."""
    kinds: list[str] = field(repr=False)
    """The kinds of token."""
    kind_shares: Tensor = field(repr=False)
    """The share of the tokens that are of each kind: `[kinds]`."""
    by_kind: Tensor = field(repr=False)
    """The share of a neuron's activity on each kind: `[n_layers, d_mlp, kinds]`; 0 for one that never takes part."""

    @checked(SparsityError)
    def always(self, least: Share = 0.999) -> Tensor:
        """The neurons that take part on at least this share of the tokens: bool `[n_layers, d_mlp]`."""
        return self.rates >= least

    def never(self) -> Tensor:
        """The neurons that take part on none of the tokens: bool `[n_layers, d_mlp]`."""
        return self.rates == 0

    @checked(SparsityError)
    def one_kind(self, purity: Share = 0.9, least: Natural = 10) -> list[tuple[Feature, str, float, float]]:
        """The neurons whose activity is nearly all on one kind of token.

        Args:
            purity: the least share of a neuron's activity that is on the kind.
            least: the least number of tokens that the neuron takes part on, to exclude chance.

        Returns:
            The neuron, the kind, the share of its activity on it, and the share of all tokens that the neuron takes
            part on; sorted by purity over the share of tokens of the kind, highest first.
        """
        best, kind = self.by_kind.max(-1)  # [n_layers, d_mlp]
        places = ((best >= purity) & (self.rates * self.tokens >= least - 0.5)).nonzero().tolist()
        rows = []
        for layer, index in places:
            number = int(kind[layer, index])
            share, rate = float(best[layer, index]), float(self.rates[layer, index])
            feature = Feature(f"neurons.{layer}.post", index)
            rows.append((share / float(self.kind_shares[number]), (feature, self.kinds[number], share, rate)))
        return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each neuron: how often it takes part, and its activity by kind of token."""
        shares = {kind: self.by_kind[..., number] for number, kind in enumerate(self.kinds)}
        return cells(("layer", "index"), rate=self.rates, **shares)

    def _facts(self) -> Mapping[str, object]:
        kinds = dict(zip(self.kinds, self.kind_shares.tolist(), strict=True))
        return {"tokens": self.tokens, "kinds": kinds}

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain data."""
        tensors = ("rates", "kind_shares", "by_kind")
        return {"tokens": self.tokens, "kinds": self.kinds} | {name: getattr(self, name).tolist() for name in tensors}


@checked(SparsityError)
def neuron_activity(
    model: LanguageModel,
    thresholds: Any,
    corpus: Corpus,
    tokens: Positive = 8192,
    *,
    context: Annotated[Integer, Ge(2)] = 256,
    batch: Positive = 4,
    seed: Natural = 0,
    kind: Callable[[str], str] = kind_of,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> NeuronActivity:
    """How often each neuron's contribution reaches its layer's threshold while the plain model runs.

    Args:
        model: the model.
        thresholds: a `Sparsity`, or one number for each layer, or one for all.
        corpus: the texts.
        tokens: at most so many.
        context, batch, seed: as in `measure_sparsities`.
        kind: from a token's text to its kind; `kind_of` knows `KINDS`.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: called after each batch; once it returns True, the counts so far are the result.

    Raises:
        SparsityError: thresholds that don't fit the model, or settings that can't be used.
        CorpusError: texts without two tokens in a row.
    """
    keeps = keeping_above(model, checked_thresholds(model, thresholds))
    done = [0]

    def on_batch(positions: int) -> None:
        done[0] += positions
        if progress:
            progress(done[0] / max(sample.positions, 1), f"{done[0]:,} of {sample.positions:,} positions")
        if cancel is not None and cancel():
            raise _Cancelled

    with uninterrupted(), torch.inference_mode():
        sample = Sample.read(model, corpus, on_batch, tokens=tokens, context=context, batch=batch, seed=seed)
        ids = torch.cat([one.tokens[one.content] for one in sample.batches])
        different = ids.unique()
        by_token = {id_: kind(text) for id_, text in zip(different.tolist(), model.token_texts(different), strict=True)}
        kinds = sorted(set(by_token.values()), key=lambda one: KINDS.index(one) if one in KINDS else len(KINDS))
        of = torch.tensor([kinds.index(by_token[token]) for token in ids.tolist()], device=ids.device)  # [n]
        counts = torch.zeros(len(keeps), len(kinds), 0)
        seen = [0] * len(keeps)

        def add(layer: int, values: Tensor) -> None:
            nonlocal counts
            if not counts.numel():
                counts = torch.zeros(len(keeps), len(kinds), values.shape[-1], device=values.device)
            here = of[seen[layer] : seen[layer] + len(values)]
            seen[layer] += len(values)
            counts[layer].index_add_(0, here, keeps[layer](values).float())

        with contextlib.suppress(_Cancelled):
            sample.run_plain(add)
    n = seen[-1]
    total = counts.sum(1)  # [n_layers, d_mlp]
    return NeuronActivity(
        tokens=n,
        rates=total / n,
        kinds=kinds,
        kind_shares=torch.bincount(of[:n], minlength=len(kinds)) / n,
        by_kind=counts.transpose(1, 2) / total.clamp(min=1)[..., None],
    )


class _Cancelled(Exception):
    """The work was cancelled."""
