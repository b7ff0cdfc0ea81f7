"""How faithful is a dictionary? The model as it is, through the reconstruction, and without the activation.

Gao et al., "Scaling and evaluating sparse autoencoders" (2024), arXiv 2406.04093, measure the cross-entropy of the
spliced model; loss recovered sets it between those of the plain model and of zero ablation (Bricken et al., "Towards
Monosemanticity", 2023). A transcoder is measured against what it reconstructs, the activation at its write hook point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.core.progress import Progress
from workbench.corpus import Corpus, CorpusError, as_corpus
from workbench.dictionaries.acting import acting, places
from workbench.dictionaries.protocol import Dictionary
from workbench.evaluation.bootstrap import drawn_weights, interval
from workbench.evaluation.predictions import PREDICTIONS, logits_under, some_places
from workbench.model.edits import Edit
from workbench.model.language_model import LanguageModel, uninterrupted


@dataclass(frozen=True)
class Fidelity:
    """What a dictionary keeps of a model; cross-entropies and divergences in nats per token."""

    tokens: int
    """Tokens that were encoded."""
    predictions: int
    """Predictions that the cross-entropies are means over."""
    texts: int
    """Texts that the tokens are from, over which the intervals are taken."""
    l0: float
    """Active latents per token."""
    fvu: float
    """Share of the written activations' variance, around their mean over all tokens, that is not explained."""
    cosine: float
    """Mean cosine between an activation and its reconstruction."""
    ce: float
    """Cross-entropy of the plain model."""
    ce_spliced: float
    """Cross-entropy with the reconstruction in the activation's place."""
    ce_zero: float
    """Cross-entropy with zero in the activation's place."""
    loss_recovered: float
    """(ce_zero - ce_spliced) / (ce_zero - ce): 1 for a perfect dictionary, 0 for one no better than zero."""
    kl: float
    """KL(plain ‖ spliced), mean over predictions."""
    dead: float
    """Share of the latents that are active on none of the tokens."""
    density: Tensor = field(repr=False)
    """On which share of the tokens each latent is active: `[n_features]`."""
    intervals: dict[str, tuple[float, float]] = field(repr=False)
    """95% confidence intervals of all measures but `dead` and `density`, by name, as (low, high)."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {
            "density": self.density.tolist(),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
        }


def measure_fidelity(model: LanguageModel, dictionary: Dictionary, corpus: Corpus, **how: Any) -> Fidelity:
    """Measure one dictionary; settings and errors as in `measure_fidelities`."""
    return measure_fidelities(model, [dictionary], corpus, **how)[0]


def measure_fidelities(
    model: LanguageModel,
    dictionaries: Sequence[Dictionary],
    corpus: Corpus,
    tokens: int = 8192,
    *,
    context: int = 256,
    batch: int = 4,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Fidelity]:
    """Measure dictionaries on the same tokens, each spliced into the model alone.

    Tokens that the corpus masks (padding, BOS and other special tokens) are neither spliced nor zeroed, and they do not
    count: a sequence's first token is an attention sink with activations a hundred times larger than elsewhere, on
    which no dictionary is trained and without which no model works. A prediction counts where both the token that it is
    made at and the token that it is about are not masked. Interventions and splices in force around the call are set
    aside.

    The intervals are percentiles of a bootstrap over texts: whole texts are drawn with replacement, since the tokens of
    one text are not independent.

    Args:
        model: the model.
        dictionaries: what to measure. The plain model runs once for all, the zeroed one once for each hook point where
            they write.
        corpus: the texts, best ones that no dictionary was trained on.
        tokens: measure on so many tokens.
        context: positions of a window, with BOS.
        batch: windows that run at once; the logits of two runs `[batch, pos, vocab]` are in memory together.
        seed: of the choice of the texts, and of the bootstrap.
        resamples: draws of the bootstrap.
        progress: told the share done.
        cancel: asked after each batch; once it says True, the results are those of the tokens until then.

    Returns:
        One result for each dictionary, in order.

    Raises:
        DictionaryError: a dictionary without hook points, or one that does not fit the model.
        CorpusError: a setting that can't be used, a model without a tokenizer, or texts without two tokens in a row.
    """
    tallies = [_Tally(model, dictionary) for dictionary in dictionaries]
    batches = as_corpus(corpus).batches(model, context, batch, tokens, seed)
    total = corpus.count_tokens(model, tokens)
    done = 0
    with uninterrupted(), torch.inference_mode():
        for windows in batches:
            content = windows.content
            pairs = content[:, :-1] & content[:, 1:]  # [batch, pos - 1]
            if not bool(pairs.any()):
                continue
            plain = logits_under(model, windows.tokens, [])
            for part in plain.split(1):  # in place, since a second copy would double the memory
                for some in part[0].split(PREDICTIONS):
                    some.copy_(some.log_softmax(-1))
            zeroed: dict[str, Tensor] = {}
            for tally in tallies:
                if tally.writes.key not in zeroed:
                    logits = logits_under(model, windows.tokens, _zero(tally, content))
                    zeroed[tally.writes.key] = _compare(plain, logits, windows.tokens, pairs)[:, 1:2]
                texts = windows.texts[:, None].expand_as(content)
                logits = logits_under(model, windows.tokens, _through(tally, content, texts[content]))
                found = [_compare(plain, logits, windows.tokens, pairs), zeroed[tally.writes.key]]
                tally.add("predictions", texts[:, :-1][pairs], torch.cat(found, 1))
            done += int(content.sum())
            if progress:
                progress(done / total, f"{done:,} of {total:,} tokens")
            if cancel is not None and cancel():
                break
    if done == 0:
        raise CorpusError(f"{corpus.name} holds no prediction to measure on: no two tokens in a row are not masked.")
    return [tally.result(resamples, seed) for tally in tallies]


class _Tally:
    """Sums over the tokens of each text, for one dictionary."""

    def __init__(self, model: LanguageModel, dictionary: Dictionary):
        self.dictionary = dictionary
        self.reads, self.writes = places(dictionary, model.hook_points)
        self.sums: dict[str, dict[int, Tensor]] = {"tokens": {}, "written": {}, "predictions": {}}
        self.fired = torch.zeros(dictionary.n_features, dtype=torch.long)

    def add(self, kind: str, texts: Tensor, columns: Tensor) -> None:
        """Add rows `[n, columns]` to the sums of their texts `[n]`; a count comes in front."""
        for text in texts.unique().tolist():
            rows = columns[texts == text].double()
            new = torch.cat([rows.new_tensor([len(rows)]), rows.sum(0)])
            old = self.sums[kind].get(text)
            self.sums[kind][text] = new if old is None else old + new

    def encode(self, read: Tensor, written: Tensor, texts: Tensor) -> Tensor:
        """The reconstruction `[n, d_out]` of tokens of these texts `[n]`; everything about it is noted."""
        codes = self.dictionary.encode(read)
        made = self.dictionary.reconstruct(read, codes)
        active = codes.values != 0  # [n, k]
        self.fired += torch.bincount(codes.indices[active].flatten(), minlength=len(self.fired))
        squares = [(made - written).double().square().sum(-1), written.double().square().sum(-1)]
        cosine = torch.cosine_similarity(made.double(), written.double(), dim=-1)
        self.add("tokens", texts, torch.stack([active.sum(-1), *squares, cosine], 1))
        self.add("written", texts, written)
        return made

    def result(self, resamples: int, seed: int) -> Fidelity:
        """Everything together, with a bootstrap over texts."""
        texts = sorted(self.sums["tokens"])
        none = {kind: torch.zeros_like(next(iter(found.values()))) for kind, found in self.sums.items()}
        tokens, written, predictions = (
            torch.stack([found.get(text, none[kind]) for text in texts])  # [texts, columns]
            for kind, found in self.sums.items()
        )
        weights = drawn_weights(len(texts), resamples, seed)
        values = _measures(*(weights @ sums for sums in (tokens, written, predictions)))
        intervals = {name: interval(found) for name, found in values.items()}
        n_tokens, n_predictions = int(tokens[:, 0].sum()), int(predictions[:, 0].sum())
        return Fidelity(
            tokens=n_tokens,
            predictions=n_predictions,
            texts=len(texts),
            **{name: float(found[0]) for name, found in values.items()},
            dead=float((self.fired == 0).double().mean()),
            density=(self.fired.double() / n_tokens).float(),
            intervals=intervals,
        )


def _measures(tokens: Tensor, written: Tensor, predictions: Tensor) -> dict[str, Tensor]:
    """Each measure for sums over several draws of texts, `[draws, columns]` each: `[draws]`."""
    count, active, error, square, cosine = tokens.unbind(1)
    variance = square - written[:, 1:].square().sum(1) / count
    ce, spliced, kl, zero = (predictions[:, 1:] / predictions[:, :1]).unbind(1)
    return {
        "l0": active / count,
        "fvu": error / variance,
        "cosine": cosine / count,
        "ce": ce,
        "ce_spliced": spliced,
        "ce_zero": zero,
        "loss_recovered": (zero - spliced) / (zero - ce),
        "kl": kl,
    }


def _through(tally: _Tally, content: Tensor, texts: Tensor) -> list[Edit]:
    """Edits that put the reconstruction in place of the activations at these positions `[batch, pos]`.

    Nothing upstream is changed, so that what they see there is what the plain model computes.
    """

    def through(read: Tensor, written: Tensor) -> Tensor:
        new = written.clone()
        new[content] = tally.encode(read[content], written[content], texts).to(written.dtype)
        return new

    return acting(tally.dictionary, tally.reads, tally.writes, through, "the splice")


def _zero(tally: _Tally, content: Tensor) -> list[Edit]:
    """An edit that puts zero in place of the activations at these positions `[batch, pos]`."""
    at = content.view(*content.shape, *(1 for _ in tally.writes.shape))
    return [Edit(tally.writes.name, lambda x: x.masked_fill(at, 0.0))]


def _compare(plain: Tensor, logits: Tensor, tokens: Tensor, pairs: Tensor) -> Tensor:
    """How two models predict the next tokens.

    Args:
        plain: log-probabilities of the plain model, `[batch, pos, vocab]`.
        logits: of the other model, `[batch, pos, vocab]`.
        tokens: `[batch, pos]`.
        pairs: which predictions count, `[batch, pos - 1]`.

    Returns:
        `[predictions, 3]`: cross-entropy of the plain and of the other model, KL(plain ‖ other).
    """
    rows = []
    for row, at in some_places(pairs):
        target = tokens[row, at + 1][:, None]  # [n, 1]
        of, to = plain[row, at], logits[row, at].log_softmax(-1)  # [n, vocab]
        kl = torch.where(of == -torch.inf, 0, of.exp() * (of - to)).sum(-1)
        rows.append(torch.stack([-of.gather(1, target)[:, 0], -to.gather(1, target)[:, 0], kl], 1))
    return torch.cat(rows) if rows else torch.zeros(0, 3)
