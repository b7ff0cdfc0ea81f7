"""Features: one coordinate of a dictionary, written `dictionary:index`.

`neurons.29.gate:808` is neuron 808 of the gate projection in layer 29; `runs/my-sae:123` is latent 123 of
the SAE called `runs/my-sae`. A feature is only a name here: what it reads and writes is its dictionary's matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from workbench.core.checks import Natural, checked
from workbench.core.errors import WorkbenchError
from workbench.core.type_words import shown
from workbench.model.identity import is_hashed

_FEATURE = re.compile(r"(?P<dictionary>\S(?:.*\S)?):(?P<index>[0-9]{1,18})")


class FeatureError(WorkbenchError):
    """A feature id that can't be read, or that the model or the dictionary does not have."""


@checked(FeatureError)
@dataclass(frozen=True, order=True)
class Feature:
    """One coordinate of a dictionary.

    Two features are equal when dictionary name and index are, unless each brings a dictionary of its own and these
    differ: two that have not been saved yet may have one name.
    """

    dictionary: str
    """Name of the dictionary, e.g. `neurons.29.gate`."""
    index: Natural
    """Coordinate in the dictionary, from 0."""
    source: object = field(default=None, compare=False, repr=False)
    """The dictionary itself, where the feature came from one that is loaded (a trained one, say)."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Feature):
            return NotImplemented
        return (self.dictionary, self.index) == (other.dictionary, other.index) and self._shares_source(other)

    def __hash__(self) -> int:
        return hash((self.dictionary, self.index))

    def _shares_source(self, other: Feature) -> bool:
        one, two = self.source, other.source
        if one is two or not (is_hashed(one) and is_hashed(two)):
            return True
        return one.hash == two.hash

    def __post_init__(self) -> None:
        if not self.dictionary:
            raise FeatureError("A feature needs the name of its dictionary, such as neurons.29.gate.")

    def __str__(self) -> str:
        return f"{self.dictionary}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> Feature:
        """Read `dictionary:index`, the inverse of `str(feature)`.

        Raises `FeatureError` when the text has another form.
        """
        match = _FEATURE.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise FeatureError(f"{shown(text)} is not a feature: write dictionary:index, such as neurons.29.gate:808.")
        return cls(match["dictionary"], int(match["index"]))
