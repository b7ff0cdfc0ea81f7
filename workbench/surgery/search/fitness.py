"""How far a changed model is from the dense one: KL(dense ‖ changed), on few tokens or many, each counted.

Sieberling et al., "EvoPress" (2024), arXiv 2410.14649, judge candidates so. The dense model runs once; its
log-probabilities are kept in 16 bits, which moves a KL by about 1e-6, because it is quadratic in such an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.checks import checked
from workbench.corpus import Corpus, CorpusError
from workbench.evaluation.losses import cross_entropy, kl_divergence, perplexity
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class Costs:
    """What a changed model costs on a text."""

    kl: float
    """KL(dense ‖ changed) in nats, mean over predictions."""
    perplexity: float
    predictions: int


@checked(CorpusError)
class DenseKL:
    """KL to a model's logits on windows of a corpus.

    Args:
        model: the dense model, without what is in force around it.
        corpus: texts to calibrate on.
        tokens: of all windows together; two bytes are kept for each of them and each word of the vocabulary.
        context: positions of a window, with BOS.
        seed: of the choice of the texts.

    Attributes:
        token_forwards: positions that were run through changed models so far; on a way back they count once more.

    Raises:
        CorpusError: a setting that can't be used, or texts without tokens.
    """

    def __init__(self, model: LanguageModel, corpus: Corpus, tokens: int = 2048, *, context: int = 128, seed: int = 0):
        self.token_forwards = 0
        self._windows: list[Tensor] = []  # [1, pos] each
        self._content: list[Tensor] = []  # [pos] each
        self._dense: list[Tensor] = []  # [predictions, vocab] each, float16
        module: Any = model.network.module
        with torch.inference_mode(False), torch.no_grad():  # so that gradients can be taken on them
            for batch in corpus.batches(model, context, 1, tokens, seed):
                content = batch.content[0]
                if bool(content.any()):
                    logits = module(input_ids=batch.tokens, use_cache=False).logits[0, content]
                    self._windows.append(batch.tokens)
                    self._content.append(content)
                    self._dense.append(logits.float().log_softmax(-1).half())
        if not self._windows:
            raise CorpusError(f"{corpus.name} holds no token to calibrate on.")

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self._windows)

    @property
    def window_tokens(self) -> float:
        """Positions of a window, on average."""
        return sum(window.shape[1] for window in self._windows) / len(self._windows)

    def tokens_of(self, window: int) -> int:
        """Positions of one window."""
        return self._windows[window].numel()

    @torch.inference_mode()
    def on(self, module: Any, window: int) -> tuple[float, int]:
        """Sum of KL(dense ‖ changed) in nats over the predictions of one window, and how many these are."""
        total, count = self._loss(module, window)
        return float(total), count

    def gradient(self, module: Any, window: int, of: Tensor) -> tuple[float, Tensor, int]:
        """That sum, its gradient by a tensor that the module uses, and how many predictions there are.

        The way back counts as one run more: weights get no gradient, so it takes as much arithmetic as the way there.
        """
        with taking_gradients():
            total, count = self._loss(module, window)
            (gradient,) = torch.autograd.grad(total, of)
        self.token_forwards += self._windows[window].numel()
        return float(total.detach()), gradient, count

    def _loss(self, module: Any, window: int) -> tuple[Tensor, int]:
        tokens = self._windows[window]
        self.token_forwards += tokens.numel()
        logits = module(input_ids=tokens, use_cache=False).logits[0, self._content[window]]
        return kl_divergence(self._dense[window], logits).sum(), len(logits)

    def __call__(self, module: Any, windows: Sequence[int] | None = None) -> float:
        """KL(dense ‖ changed) in nats, mean over the predictions of some windows, by number; None for all."""
        sums = [self.on(module, window) for window in (range(len(self)) if windows is None else windows)]
        return sum(total for total, _ in sums) / sum(count for _, count in sums)

    @torch.inference_mode()
    def costs(self, module: Any = None) -> Costs:
        """What a changed model costs on all windows; without one, the perplexity of the dense model."""
        kl, count, losses = 0.0, 0, []
        for number, tokens in enumerate(self._windows):
            logits, content = self._dense[number], self._content[number]
            if module is not None:
                self.token_forwards += tokens.numel()
                logits = module(input_ids=tokens, use_cache=False).logits[0, content]
                kl += float(kl_divergence(self._dense[number], logits).sum())
            at = content.nonzero()[:, 0]  # of each row of the logits
            followed = torch.isin(at + 1, at)
            losses.append(cross_entropy(logits[followed], tokens[0, at[followed] + 1]))
            count += len(at)
        return Costs(kl / count, perplexity(torch.cat(losses)), count)
