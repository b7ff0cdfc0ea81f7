"""Predictions and residual streams of two models on the same texts, in one pass of each."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.core.precision import in_float64
from workbench.corpus import Corpus, TokenBatch
from workbench.differences.errors import DifferenceError
from workbench.differences.pairs import Pair
from workbench.differences.results import LayerDifference, Passage, TextDifferences
from workbench.evaluation.bootstrap import TextSums, bootstrap
from workbench.evaluation.losses import kl_divergence, predictions, token_losses
from workbench.evaluation.runs import windows_at_once
from workbench.model.edits import Group, Run
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel

BEFORE = 24
"""Tokens of a passage in front of its prediction."""


@dataclass
class Windows:
    """How texts are read."""

    corpus: Corpus
    tokens: int
    context: int
    batch: int
    seed: int


@dataclass
class TextSide:
    """What the pass over the texts found."""

    texts: TextDifferences
    stream: list[LayerDifference] = field(default_factory=list)


def compare_texts_and_streams(
    pair: Pair, windows: Windows, top: int, tell: Callable[[float, str], None], stops: Callable[[], bool]
) -> TextSide:
    """Losses, KL, passages and streams, from one pass of each model over the texts.

    Raises:
        DifferenceError: no predictions.
    """
    a, b = pair.a, pair.b
    names = [] if pair.alike else _streams(a)
    sums, streams = TextSums(), torch.zeros(len(names), 2, dtype=torch.float64)
    counted, done, best = 0, 0, _Passages(a, top)
    batch = windows_at_once(a, windows.context, windows.batch)
    reader = b if a.network.causal else a
    with uninterrupted(), torch.inference_mode():
        for some in windows.corpus.batches(reader, windows.context, batch, windows.tokens, windows.seed):
            (one, seen), (other, others) = (
                _pass(model, some.tokens, names, beside) for model, beside in zip((a, b), pair.beside, strict=True)
            )
            pairs = predictions(some.content)
            values = _by_token(one, other.to(one.device), some, pairs)
            sums.add(some.texts.repeat_interleave(pairs.sum(1).to(some.texts.device)), **values)
            best.add(some, pairs, values, one, other)
            streams += _distances(seen, others, names, some.content)
            counted += int(some.content.sum())
            done += int(pairs.sum())
            tell(min(counted / windows.tokens, 1.0), f"texts: {counted:,} of {windows.tokens:,} tokens")
            if stops():
                break
    if not done:
        raise DifferenceError("There is no prediction to compare; give longer texts.")
    layers = [
        LayerDifference(layer, float(cosine) / counted, float(distance) / counted)
        for layer, (cosine, distance) in enumerate(streams)
    ]
    return TextSide(_texts(sums, done, best.passages()), layers)


def _streams(model: LanguageModel) -> list[str]:
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.network.n_layers)]
    return names if all(name in model.hook_points for name in names) else []


def _pass(
    model: LanguageModel, tokens: Tensor, names: Sequence[str], beside: Sequence[object]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and streams of one pass; without a mask, since `Corpus.batches` pads for causal models only."""
    seen: dict[str, Tensor] = {}
    keys = {model.hook_points[name].key: name for name in names}
    watch = {key: lambda value, name=name: seen.__setitem__(name, value) for key, name in keys.items()}
    run = Run([Group(model.bind(list(beside)))], watch=watch)  # type: ignore[arg-type]
    return model.network.run(tokens, run), seen


def _by_token(one: Tensor, other: Tensor, some: TokenBatch, pairs: Tensor) -> dict[str, Tensor]:
    """Measures of each counted prediction, `[n]` each."""
    columns = {
        "kl": kl_divergence(one[:, :-1], other[:, :-1], pairs).clamp(min=0),
        "loss_a": token_losses(one, some.tokens, pairs),
        "loss_b": token_losses(other, some.tokens, pairs),
        "same": (one[:, :-1].argmax(-1) == other[:, :-1].argmax(-1)).float(),
    }
    found = {name: value[pairs.to(value.device)] for name, value in columns.items()}
    return found | {"count": torch.ones_like(found["kl"])}


def _distances(one: dict[str, Tensor], other: dict[str, Tensor], names: Sequence[str], content: Tensor) -> Tensor:
    """Sums over tokens of cosine and relative distance behind each layer, `[layers, 2]`."""
    found = []
    for name in names:
        x, y = one[name][content].float(), other[name][content].to(one[name].device).float()
        length = x.norm(dim=-1)
        cosine = (x * y).sum(-1) / (length * y.norm(dim=-1)).clamp(min=1e-30)
        distance = (x - y).norm(dim=-1) / length.clamp(min=1e-30)
        found.append(torch.stack([in_float64(cosine).sum(), in_float64(distance).sum()]).cpu())
    return torch.stack(found) if found else torch.zeros(0, 2, dtype=torch.float64)


def _texts(sums: TextSums, done: int, passages: list[Passage]) -> TextDifferences:
    by_text = sums.tensors()
    names = ("kl", "loss_a", "loss_b", "same")
    ends = bootstrap(by_text, lambda drawn: {name: drawn[name] / drawn["count"] for name in names})
    value = {name: float(one.value) for name, one in ends.items()}
    low, high = ends["kl"].interval
    return TextDifferences(
        kl=value["kl"],
        kl_interval=(low, high),
        losses=(value["loss_a"], value["loss_b"]),
        same_top=value["same"],
        predictions=done,
        passages=passages,
    )


class _Passages:
    """The windows' predictions at which two models part most, one of a window."""

    def __init__(self, model: LanguageModel, top: int) -> None:
        self.model, self.top = model, top
        self._kept: list[tuple[float, int, Passage]] = []
        self._number = 0

    def add(self, some: TokenBatch, pairs: Tensor, values: dict[str, Tensor], one: Tensor, other: Tensor) -> None:
        """Look at the predictions of a batch."""
        kl = torch.full(pairs.shape, -1.0, device=pairs.device)
        kl[pairs] = values["kl"].to(kl)
        losses = torch.zeros(2, *pairs.shape, device=pairs.device)
        losses[0][pairs], losses[1][pairs] = values["loss_a"].to(kl), values["loss_b"].to(kl)
        for row, at in enumerate(kl.argmax(1).tolist()):
            most = float(kl[row, at])
            full = len(self._kept) == self.top
            if most <= 0 or (full and most <= self._kept[0][0]):
                continue
            tokens = some.tokens[row]
            tops = self.model.token_labels([int(one[row, at].argmax()), int(other[row, at].argmax())])
            passage = Passage(
                self.model.to_text(tokens[max(0, at + 1 - BEFORE) : at + 1]),
                self.model.token_labels(tokens[at + 1 : at + 2])[0],
                (tops[0], tops[1]),
                most,
                (float(losses[0, row, at]), float(losses[1, row, at])),
            )
            if any((kept.before, kept.token) == (passage.before, passage.token) for *_, kept in self._kept):
                continue
            self._number += 1
            (heapq.heappushpop if full else heapq.heappush)(self._kept, (most, self._number, passage))

    def passages(self) -> list[Passage]:
        """Those found, the largest KL first."""
        return [one for *_, one in sorted(self._kept, key=lambda kept: (-kept[0], kept[1]))]
