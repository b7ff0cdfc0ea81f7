"""Children that plain transformers can't hold: other activations, layers without the causal mask.

They run, learn and are measured like all models, but they are never saved: their checkpoint would load as another
model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.hashing import hash_of, values_fingerprint
from workbench.model.hookpoints import HookPoints
from workbench.model.language_model import LanguageModel
from workbench.model.weights import state_of
from workbench.surgery.child import CUSTOM, Child, make_child
from workbench.surgery.child_building import SurgeryError


@dataclass(eq=False)
class CustomChild(Child):
    """A child that can't be saved; `why` is the reason, in one sentence."""

    why: str = ""

    def save_pretrained(self, folder: str | Path) -> None:
        """Refuse.

        Raises:
            SurgeryError: always, with `why`.
        """
        raise SurgeryError(self.why)


class _Refuses:
    """Replaces a module's `save_pretrained`."""

    def __init__(self, why: str):
        self.why = why

    def __call__(self, *_: Any, **__: Any) -> None:
        raise SurgeryError(self.why)


def make_custom(
    parent: LanguageModel, change: Callable[[Any], None], step: Mapping[str, Any], why: str, seed: int | None = None
) -> CustomChild:
    """A child whose modules are changed, beside or instead of its weights.

    Args:
        parent: stays as it is; it may be the model of such a child itself.
        change: takes the child's own tree of plain modules and changes it in place. It may replace modules, but must
            not write to the parent's tensors.
        step: the change as plain data, as in `make_child`.
        why: what plain transformers can't hold, in one sentence.
        seed: recorded with the step.

    Raises:
        SurgeryError: as `make_child`.
    """
    plain = copy.copy(parent)
    plain.about = {key: value for key, value in parent.about.items() if key != CUSTOM}
    child = make_child(plain, {}, step, seed=seed)
    model = child.model
    if CUSTOM in parent.about:  # its modules are not what its configuration says
        model = LanguageModel(parent.network.module, parent.tokenizer, child.model.name, "")
    change(model.network.module)
    return _finished(parent, model, child.history, why)


def make_custom_from(
    parent: LanguageModel, model: LanguageModel, step: Mapping[str, Any], seed: int | None = None
) -> CustomChild:
    """A child of a custom parent: a model of the same modules with other weights.

    Raises:
        SurgeryError: as `make_child`.
    """
    unchanged = make_custom(parent, lambda _: None, step, parent.about[CUSTOM], seed)
    model.name, model.about = unchanged.model.name, dict(parent.about)
    return _finished(parent, model, unchanged.history, parent.about[CUSTOM])


def _finished(parent: LanguageModel, model: LanguageModel, history: list[dict[str, Any]], why: str) -> CustomChild:
    """The child, with a hash over the plain model and its steps."""
    module = model.network.module
    points = HookPoints(point for point in model.hook_points.values() if point.module is not None)
    model.network.hook_points = model.hook_points = points  # the bridge's modules would not be the changed ones
    module.save_pretrained = _Refuses(why)
    own = state_of(module)
    model.take_hash(values_fingerprint(own), parent)
    edits = [step["edit_hash"] for step in history]
    model.hash, model.former_hash = hash_of([model.plain_hash, edits]), hash_of([model.weights_hash, edits])
    history[-1]["hash"] = model.hash
    shared = {tensor.data_ptr() for tensor in state_of(parent.network.module).values()}
    names = tuple(name for name, tensor in own.items() if tensor.data_ptr() not in shared)
    history[-1]["own_tensors"] = len(names)
    model.about = parent.about | {"surgery": history, CUSTOM: why}
    return CustomChild(model, parent, names, history, why=why)
