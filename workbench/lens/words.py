"""A text as a weighted list of words, through the LM head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.core.checks import Positive, checked
from workbench.core.display import Tabular, columns
from workbench.lens.errors import LensError
from workbench.lens.readout import NORM, Readout
from workbench.lens.tokens import one_row
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt

if TYPE_CHECKING:
    from workbench.figures.common import Figure


@dataclass(frozen=True, eq=False)
class TextWords(Tabular):
    """A text as a sparse vector over the vocabulary; `read_words` returns one."""

    ids: Tensor
    """Tokens, the heaviest first, `[n]`."""
    weights: Tensor
    """Theirs, above 0, `[n]`."""
    words: list[str] = field(repr=False)
    """The texts of the tokens."""
    vocabulary: int = field(repr=False)

    @checked(LensError)
    def similarity(self, other: TextWords) -> float:
        """The cosine of two texts' vectors, from 0 to 1; both of one model.

        Raises:
            LensError: vectors over different vocabularies.
        """
        if self.vocabulary != other.vocabulary:
            raise LensError("The two texts were read by models with different vocabularies.")
        one, two = (part.ids.new_zeros(self.vocabulary, dtype=torch.float32) for part in (self, other))
        one[self.ids], two[other.ids.to(two.device)] = self.weights, other.weights.to(two)
        return float(torch.nn.functional.cosine_similarity(one, two.to(one.device), dim=0))

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each word, the heaviest first."""
        return columns(word=self.words, weight=self.weights.tolist())

    def figure(self) -> Figure:
        """The 30 heaviest words as bars."""
        from workbench.figures.tokens import token_bars

        return token_bars(self.words[:30], self.weights[:30].tolist())

    def _facts(self) -> Mapping[str, object]:
        return {"words": self.words}

    def to_dict(self) -> dict[str, Any]:
        """The words and their weights."""
        return {"words": self.words, "weights": self.weights.tolist()}


@checked(LensError)
def read_words(model: LanguageModel, text: Prompt, top: Positive = 100) -> TextWords:
    """The words that a text says through the LM head: each token's largest log(1 + max(0, logit)) of any position.

    Args:
        model: the model.
        text: a text, a `chat_prompt`, or token ids `[pos]`.
        top: tokens that are kept.

    Raises:
        LensError: a model whose final norm or LM head can't be read alone.
        PromptError: an empty text, or one longer than the context.

    Source: Formal et al. 2021, arXiv 2109.10086 (SPLADE); Doshi et al. 2024, arXiv 2408.11119 (Mistral-SPLADE).
    """
    tokens = one_row(model, text, "Words are read of")
    readout = Readout(model)
    with torch.no_grad():
        normed = model.capture(tokens, [NORM])[NORM][0].float().to(readout.head.device)  # [pos, d_model]
        heaviest = normed.new_zeros(len(readout.head))
        for at in readout.blocks(len(normed)):
            torch.maximum(heaviest, readout.logits(normed[at]).amax(0), out=heaviest)
        weights, ids = heaviest.log1p().topk(min(top, len(heaviest)))
    kept = weights > 0
    ids, weights = ids[kept], weights[kept]
    return TextWords(ids, weights, model.token_labels(ids), len(heaviest))
