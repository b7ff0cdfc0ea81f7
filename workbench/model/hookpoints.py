"""Hook points: the places in a model where a tensor can be read or changed, under the names of TransformerLens.

`hookpoint_table.py` determines which ones a model has; this file holds their description, and the search for the
name nearest to a wrong one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from workbench.core.errors import WorkbenchError
from workbench.core.type_words import shown

LONGEST = 200
"""Characters of a name that others are compared with."""


class HookPointError(WorkbenchError, KeyError):
    """A hook point that the model does not have."""

    def __str__(self) -> str:  # KeyError would print the sentence in quotes
        return str(self.args[0])


@dataclass(frozen=True)
class HookPoint:
    """One place in the model.

    The tensor there is `[batch, pos, *shape]`, except where `positional` is False (attention patterns, rotary tables).
    """

    name: str
    shape: tuple[int, ...]
    """Sizes behind batch and position: `(d_model,)`, `(d_mlp,)`, `(n_heads, d_head)`."""
    module: str | None = None
    """Path of the plain Hugging Face module that carries it; None if only the TransformerLens bridge has it."""
    side: str = "out"
    """`in`: the module's input; `out`: its output."""
    key: str = ""
    """The name that its edits run under: the same for two names of one place."""
    positional: bool = True
    """Whether the tensor has the form `[batch, pos, *shape]`, so that edits can address positions in it."""
    refusal: str = ""
    """Why it can't be edited, such as that no logit depends on it; empty where it can."""

    @property
    def width(self) -> int:
        """Number of values per position."""
        width = 1
        for size in self.shape:
            width *= size
        return width


class HookPoints(Mapping[str, HookPoint]):
    """All hook points of one model, by name, in the order in which the model computes them."""

    def __init__(self, points: Iterable[HookPoint]):
        self._points = {point.name: point for point in points}

    def __getitem__(self, name: str) -> HookPoint:
        try:
            return self._points[name]
        except KeyError:
            raise HookPointError(self._complaint(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def nearest(self, name: str) -> str | None:
        """The existing name most like `name`: same words before same layer, so `blocks.99.…` finds a real layer."""
        if len(name) > LONGEST:
            return None
        layer = re.search(r"\d+", name)
        wanted = re.sub(r"\d+", "#", name)
        shapes = {re.sub(r"\d+", "#", known) for known in self._points}
        close = difflib.get_close_matches(wanted, sorted(shapes), n=1, cutoff=0.3)
        if not close:
            return None
        fitting = [known for known in self._points if re.sub(r"\d+", "#", known) == close[0]]
        if layer is None:
            return fitting[0]
        return min(fitting, key=lambda known: abs(_first_number(known) - int(layer[0])))

    def _complaint(self, name: str) -> str:
        nearest = self.nearest(str(name))
        return f"The model has no hook point {shown(name)}" + (f"; did you mean {nearest!r}?" if nearest else ".")


def _first_number(text: str) -> int:
    number = re.search(r"\d+", text)
    return int(number[0]) if number else 0
