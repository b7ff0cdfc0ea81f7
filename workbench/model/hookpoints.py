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

_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""The number of the layer in a name; that of `ln2` is none."""
ON_DEMAND: dict[str, tuple[str, ...]] = {
    "hook_mlp_in": ("ln2.hook_in", "mlp.hook_in"),
    "hook_attn_in": ("ln1.hook_in", "attn.hook_in"),
    "hook_q_input": ("ln1.hook_in", "attn.hook_in"),
    "hook_k_input": ("ln1.hook_in", "attn.hook_in"),
    "hook_v_input": ("ln1.hook_in", "attn.hook_in"),
    "attn.hook_result": (),
}
"""Names in a block under which TransformerLens computes nothing unless a setting asks for it, and names of what they
would hold, the nearest first."""
OF_SOME = (
    *("hook_resid_mid", "hook_attn_out", "hook_mlp_out", "ln1.hook_in", "ln1.hook_out", "ln1.hook_normalized"),
    *("ln1.hook_scale", "ln2.hook_in", "ln2.hook_out", "ln2.hook_normalized", "ln2.hook_scale", "attn.hook_q"),
    *("attn.hook_k", "attn.hook_v", "attn.hook_z", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_pattern"),
    *("attn.hook_attn_scores", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post"),
)
"""Names in a block that architectures have or lack: without one, a name that is like it holds something else."""


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
        """The existing name most like `name`: same words before same layer, so `blocks.99.…` finds a real layer.

        A right name of something that this architecture does not compute gets the name of the same tensor, or None.
        """
        if len(name) > LONGEST:
            return None
        layer = _layer_of(name)
        wanted = _without_layer(name)
        known = {_without_layer(point) for point in self._points}
        if wanted not in known and _in_block(name) in ON_DEMAND:
            same = [f"blocks.#.{other}" for other in ON_DEMAND[_in_block(name)]]
            close = [other for other in same if other in known]
        elif self._is_absent(name):
            close = []
        else:
            close = difflib.get_close_matches(wanted, sorted(known), n=1, cutoff=0.3)
        if not close:
            return None
        fitting = [point for point in self._points if _without_layer(point) == close[0]]
        if layer is None:
            return fitting[0]
        return min(fitting, key=lambda point: abs((_layer_of(point) or 0) - layer))

    def _is_absent(self, name: str) -> bool:
        """Whether a name is right, but of something that no layer of this model computes."""
        known = {_without_layer(point) for point in self._points}
        return _in_block(name) in (*ON_DEMAND, *OF_SOME) and _without_layer(name) not in known

    def _complaint(self, name: str) -> str:
        nearest = self.nearest(str(name))
        if nearest:
            return f"The model has no hook point {shown(name)}; did you mean {nearest!r}?"
        if self._is_absent(str(name)):
            return f"The model has no hook point {shown(name)}, which it does not compute; see model.hook_points."
        return f"The model has no hook point {shown(name)}."


def _in_block(name: str) -> str:
    """The name inside its block; empty for other names."""
    match = re.fullmatch(r"blocks\.\d+\.(.+)", name)
    return match[1] if match else ""


def _without_layer(name: str) -> str:
    return _LAYER.sub("#", name, count=1)


def _layer_of(name: str) -> int | None:
    number = _LAYER.search(name)
    return int(number[0]) if number else None
