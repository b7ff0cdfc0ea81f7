"""Force: a code of a codebook is active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from workbench.core.arguments import Argument
from workbench.dictionaries.codebook import Codebook
from workbench.dictionaries.codes import Codes, Rewrite
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.protocol import FeatureIntervention, Variant
from workbench.model.language_model import LanguageModel

TITLES = {"least": "Force for the least", "all": "Force for all", "none": "Force beside all"}
"""By what makes way."""


@dataclass(frozen=True)
class Force(FeatureIntervention):
    """Activate a code of a codebook.

    `replaces` says what makes way for it in its group: "least", the least similar of the chosen codes; "all" of them;
    or "none" (Tamkin et al. 2023, arXiv 2310.17230). On a model that runs through the codebook the code is forced in
    what is decoded; on one that does not, the difference of the decodings is added, as for every feature.
    """

    title: ClassVar[str] = "Force"
    about: ClassVar[str] = (
        "**Force** activates a code in place of the least similar one chosen, of all, or beside them."
    )
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("replaces", "In place of", "least", "choice", choices=tuple(TITLES)),
    )
    rank: ClassVar[int] = 0
    not_affine: ClassVar[str] = "it depends on the input: which code makes way differs from token to token"

    replaces: str = "least"

    @classmethod
    def example(cls, model: LanguageModel) -> Self:
        """On a code of a random codebook on the first layer's residual stream."""
        book = Codebook(d_in=model.network.d_model, n_codes=8, k=2)
        book.reads = book.writes = "blocks.0.hook_resid_post"
        return cls(book.feature(3))

    @classmethod
    def fits(cls, dictionary: Dictionary) -> bool:
        """Codebooks."""
        return dictionary.discrete

    @classmethod
    def variants(cls, dictionary: Dictionary) -> tuple[Variant, ...]:
        """One for each thing that makes way."""
        return tuple(Variant(title, {"replaces": replaces}) for replaces, title in TITLES.items())

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Rewrite:
        """All codes of an activation are rewritten together.

        Raises:
            DictionaryError: the dictionary's features are not discrete.
        """
        index, replaces, nothing = self.feature.index, self.replaces, torch.zeros(0)
        dictionary.force(Codes(nothing, nothing.long(), dictionary.n_features), index, replaces)
        return Rewrite(lambda codes: dictionary.force(codes, index, replaces), self.positions, str(self))
