"""How faithful is a dictionary? The plain model, the model through the reconstruction, and without the activation.

Gao et al., "Scaling and evaluating sparse autoencoders" (2024), arXiv 2406.04093, measure the cross-entropy of the
spliced model; loss recovered places it between those of the plain model and of zero ablation (Bricken et al., "Towards
Monosemanticity", 2023). A transcoder is compared with the activation at its write hook point, which it reconstructs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.display import Rows, Tabular
from workbench.core.precision import in_float64
from workbench.core.progress import Progress
from workbench.core.text import counted
from workbench.corpus import Corpus, CorpusError, TokenBatch
from workbench.dictionaries.acting import acting
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import check_order, flattened, gather, sites
from workbench.dictionaries.spreading import Spread
from workbench.dictionaries.variance import SAME
from workbench.evaluation.bootstrap import TextSums, bootstrap
from workbench.evaluation.losses import kl_divergence, predictions, token_losses
from workbench.evaluation.runs import logits_under, windows_at_once
from workbench.model.blame import first_not_finite
from workbench.model.edits import BoundEdit, Edit, Masks, SharedEdit
from workbench.model.hookpoints import HookPoint
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.massive import massive

if TYPE_CHECKING:
    from workbench.figures.common import Figure


@dataclass(frozen=True)
class Fidelity(Tabular):
    """How well a dictionary reconstructs, and what splicing it costs; cross-entropies and KL in nats per token."""

    tokens: int
    """Encoded tokens."""
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
    """Share of the latents that are active on no token."""
    density: Tensor = field(repr=False)
    """The share of the tokens on which each latent is active: `[n_features]`."""
    intervals: dict[str, tuple[float, float]] = field(repr=False)
    """95% confidence intervals of all measures but `dead`, `density` and `massive`, by name, as (low, high)."""
    massive: int = 0
    """Measured tokens whose written activation is massive (see `model.massive`). They hold most of the variance that
    `fvu` is a share of."""

    def __str__(self) -> str:
        where = f"{counted(self.tokens, 'token')} of {counted(self.texts, 'text')}"
        lines = [f"fidelity on {where}, with 95% confidence intervals"]
        for name, (low, high) in self.intervals.items():
            lines.append(f"{name:<15}{getattr(self, name):8.4g}   {low:.4g} to {high:.4g}")
        return "\n".join([*lines, f"{'dead':<15}{self.dead:8.4g}   of {len(self.density):,} on these tokens"])

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each measure, with its interval."""
        for name, (low, high) in self.intervals.items():
            yield {"measure": name, "value": getattr(self, name), "low": low, "high": high}
        yield {"measure": "dead", "value": self.dead, "low": None, "high": None}

    def figure(self) -> Figure:
        """The measures with their intervals."""
        from workbench.figures.fidelity import fidelity_comparison

        return fidelity_comparison([""], [self])

    def to_dict(self) -> dict[str, Any]:
        """The measures as plain data."""
        return asdict(self) | {
            "density": self.density.tolist(),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
        }


@checked(CorpusError)
def measure_fidelity(model: LanguageModel, dictionary: Dictionary, corpus: Corpus, **how: Any) -> Fidelity:
    """The fidelity of one dictionary; settings and errors as in `measure_fidelities`."""
    return measure_fidelities(model, [dictionary], corpus, **how)[0]


@checked(CorpusError)
def measure_fidelities(
    model: LanguageModel,
    dictionaries: Sequence[Dictionary],
    corpus: Corpus,
    tokens: Positive = 8192,
    *,
    context: Annotated[Integer, Ge(2)] = 256,
    batch: Positive = 4,
    seed: Natural = 0,
    resamples: Positive = 1000,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Rows[Fidelity]:
    """The fidelity of dictionaries on the same tokens, each spliced into the model alone.

    Tokens that the corpus masks (padding, special tokens, and the first position of a window, whatever token it is) are
    neither spliced nor zeroed, and they do not count: the first position is an attention sink with activations a
    hundred times larger than elsewhere, on which no dictionary is trained and without which no model works. A
    prediction counts where neither its own token nor the predicted one is masked. Interventions and splices in force
    around the call are set aside.

    The intervals are percentiles of a bootstrap over texts.

    Args:
        model: the model.
        dictionaries: the dictionaries. The plain model runs once for all, the zeroed one once for each hook point where
            they write.
        corpus: the texts, best others than the dictionaries were trained on.
        tokens: at most so many tokens are measured.
        context: positions of a window, with BOS.
        batch: windows that run at once, at most; fewer where the vocabulary is large (see
            `evaluation.windows_at_once`). The logits of two runs are in memory together.
        seed: of the choice of the texts, and of the bootstrap.
        resamples: draws of the bootstrap.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: called after each batch; once it returns True, the results are those of the tokens until then.

    Returns:
        One result for each dictionary, in order.

    Raises:
        DictionaryError: a dictionary without hook points, or one that does not fit the model.
        CorpusError: a setting that can't be used, a model without a tokenizer, texts without two tokens in a row, or
            activations that are all the same within rounding, which leave no variance to explain, or not finite.
    """
    tallies = [_Tally(model, dictionary) for dictionary in dictionaries]
    batches = corpus.batches(model, context, windows_at_once(model, context, batch), tokens, seed)
    total = corpus.count_tokens(model, tokens, context)
    done = 0
    with uninterrupted(), torch.inference_mode():
        for windows in batches:
            if not bool(predictions(windows.content).any()):
                continue
            _add_batch(model, tallies, windows)
            done += int(windows.content.sum())
            if progress:
                progress(done / total, f"{done:,} of {total:,} tokens")
            if cancel is not None and cancel():
                break
    if done == 0:
        raise CorpusError(f"{corpus.name} holds no prediction to measure on: no two tokens in a row are not masked.")
    return Rows(tally.result(resamples, seed) for tally in tallies)


def _add_batch(model: LanguageModel, tallies: Sequence[_Tally], windows: TokenBatch) -> None:
    """Run the plain, the zeroed and the spliced models on a batch; at most two models' logits are held at a time."""
    content, pairs = windows.content, predictions(windows.content)  # [batch, pos], [batch, pos - 1]
    texts = windows.texts[:, None].expand_as(content)

    def losses(logits: Tensor) -> Tensor:
        return token_losses(logits, windows.tokens, pairs)[pairs]  # [predictions]

    zeroed: dict[str, Tensor] = {}
    for tally in tallies:
        if tally.written not in zeroed:
            zeroed[tally.written] = losses(logits_under(model, windows.tokens, _zero(tally, content)))
    across = [tally for tally in tallies if tally.across]
    seen: dict[str, Tensor] = {}
    plain = logits_under(model, windows.tokens, [edit for tally in across for edit in _looking(tally, seen)])
    for tally in across:
        read, written = (gather(seen, [one.name for one in side]) for side in (tally.at.reads, tally.at.writes))
        tally.encode(read[content], written[content], texts[content])
    ce = losses(plain)
    for tally in tallies:
        spliced = logits_under(model, windows.tokens, _through(tally, content, texts[content]))
        if first_not_finite(spliced) is not None:
            raise CorpusError(
                f"{model.name} computes values that are not finite numbers with {tally.dictionary.name}: its weights "
                "are too large, or made for other activations."
            )
        tally.sums.add(
            texts[:, :-1][pairs],
            predictions=torch.ones_like(ce),
            ce=ce,
            ce_spliced=losses(spliced),
            ce_zero=zeroed[tally.written],
            kl=kl_divergence(plain[:, :-1], spliced[:, :-1], pairs)[pairs],
        )
        del spliced  # before the next run


class _Tally:
    """Sums over the tokens of each text, for one dictionary."""

    def __init__(self, model: LanguageModel, dictionary: Dictionary):
        self.dictionary = dictionary
        self.at = sites(dictionary, model)
        check_order(dictionary, self.at)
        self.across = self.at.several
        self.written = " + ".join(one.key for one in self.at.writes)
        self.sums = TextSums()
        self.fired = torch.zeros(dictionary.n_features, dtype=torch.long, device=model.device)
        self.norms: list[Tensor] = []  # of the written activations, [n] each

    def encode(self, read: Tensor, written: Tensor, texts: Tensor) -> Tensor:
        """The reconstruction of some tokens, whose measures are added to the sums.

        Args:
            read: activations at the read hook point, `[n, d_in]`.
            written: activations at the write hook point, `[n, d_out]`.
            texts: the number of each token's text, `[n]`.

        Returns:
            `[n, d_out]`.
        """
        codes = self.dictionary.encode(read)
        reconstruction = self.dictionary.reconstruct(read, codes)
        active = codes.values != 0  # [n, k]
        self.norms.append(written.float().norm(dim=-1))
        self.fired += torch.bincount(codes.indices[active].flatten(), minlength=len(self.fired))
        self.sums.add(
            texts,
            tokens=torch.ones_like(texts, dtype=torch.float32),
            active=active.sum(-1),
            error=in_float64(reconstruction - written).square().sum(-1),
            square=in_float64(written).square().sum(-1),
            cosine=torch.cosine_similarity(in_float64(reconstruction), in_float64(written), dim=-1),
            written=written,
        )
        return reconstruction

    def result(self, resamples: int, seed: int) -> Fidelity:
        """The measures, with intervals over texts."""
        sums = self.sums.tensors()
        _check_varied(
            {name: sums[name].sum(0, keepdim=True) for name in ("tokens", "square", "written")}, self.dictionary.writes
        )
        tokens, n_predictions = sums["tokens"], sums["predictions"]
        estimates = bootstrap(sums, _measures, resamples, seed)
        return Fidelity(
            tokens=int(tokens.sum()),
            predictions=int(n_predictions.sum()),
            texts=len(tokens),
            **{name: float(one.value) for name, one in estimates.items()},
            dead=float(in_float64(self.fired == 0).mean()),
            density=(in_float64(self.fired) / int(tokens.sum())).float().cpu(),
            intervals={name: one.interval for name, one in estimates.items()},
            massive=int(massive(torch.cat(self.norms)).sum()),
        )


def _measures(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each measure from the sums of several draws of texts, `[draws]` or `[draws, d_out]` each: `[draws]`."""
    tokens, count = sums["tokens"], sums["predictions"]
    ce, spliced, zero = (sums[name] / count for name in ("ce", "ce_spliced", "ce_zero"))
    return {
        "l0": sums["active"] / tokens,
        "fvu": torch.where(_varied(sums), sums["error"] / _variance(sums), torch.nan),
        "cosine": sums["cosine"] / tokens,
        "ce": ce,
        "ce_spliced": spliced,
        "ce_zero": zero,
        "loss_recovered": (zero - spliced) / (zero - ce),
        "kl": sums["kl"] / count,
    }


def _variance(sums: Mapping[str, Tensor]) -> Tensor:
    """The sum of the squared distances of the written activations from their mean, `[draws]`."""
    return sums["square"] - sums["written"].square().sum(1) / sums["tokens"]


def _varied(sums: Mapping[str, Tensor]) -> Tensor:
    """Whether the written activations differ by more than rounding, as `variance.SAME` says: bool `[draws]`."""
    return _variance(sums) > SAME**2 * sums["square"]


def _check_varied(sums: Mapping[str, Tensor], at: str) -> None:
    if not bool(sums["square"].isfinite()):
        raise CorpusError(f"The activations at {at} hold values that are not finite numbers.")
    if not bool(_varied(sums)):
        raise CorpusError(
            f"All measured activations at {at} are one and the same within rounding, so that there is no variance "
            "to explain; measure on texts with other tokens, or at another hook point."
        )


def _through(tally: _Tally, content: Tensor, texts: Tensor) -> Sequence[BoundEdit]:
    """Edits that replace the activations at these positions `[batch, pos]` by their reconstruction.

    Where the dictionary writes at one hook point nothing upstream changes, so the activations are those of the plain
    model. Where it writes at several, its codes are those of the run that it changes.
    """
    if tally.across:
        return _through_all(tally, content)

    def through(read: Tensor, written: Tensor) -> Tensor:
        new = written.clone()
        new[content] = tally.encode(read[content], written[content], texts).to(written.dtype)
        return new

    reads, writes = tally.at.reads[0], tally.at.writes[0]
    return acting(reads, writes, through, device=content.device, source="the splice")


def _through_all(tally: _Tally, content: Tensor) -> list[BoundEdit]:
    """The same for a dictionary at several hook points."""
    how: dict[str, Any] = {"device": content.device, "source": "the splice", "replaces": True}

    def only_there(edit: SharedEdit) -> SharedEdit:
        def change(x: Tensor, masks: Masks) -> Tensor:
            at = content.view(*content.shape, *(1 for _ in x.shape[2:])).to(x.device)
            return torch.where(at, edit.change(x, masks), x)

        return SharedEdit(edit.hook_point, change, edit.parts, edit.source)

    edits = Spread(tally.dictionary, tally.at, [], **how).edits()
    return [only_there(edit) if isinstance(edit, SharedEdit) else edit for edit in edits]


def _looking(tally: _Tally, seen: dict[str, Tensor]) -> list[Edit]:
    """Edits that keep the activations `[batch, pos, width]` where a dictionary reads and writes, by hook point."""

    def looking(point: HookPoint) -> Edit:
        def look(x: Tensor) -> Tensor:
            seen[point.name] = flattened(x, point)
            return x

        return Edit(point.name, look, reads_only=True)

    return [looking(point) for point in (*tally.at.reads, *tally.at.writes)]


def _zero(tally: _Tally, content: Tensor) -> list[Edit]:
    """Edits that replace the activations at these positions `[batch, pos]` by zero."""

    def zero(point: HookPoint) -> Edit:
        at = content.view(*content.shape, *(1 for _ in point.shape))
        return Edit(point.name, lambda x: x.masked_fill(at.to(x.device), 0.0))

    return [zero(point) for point in tally.at.writes]
