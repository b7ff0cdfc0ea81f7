"""What `network.py` does with TransformerLens's bridge: components by path, hooks, and its failures in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from workbench.model.edits import current_run
from workbench.model.weights import ModelError


def unopened(module: Any, error: Exception) -> ModelError:
    """The error for a model on which TransformerLens fails: the architecture, and the reason."""
    reason = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
    return ModelError(f"TransformerLens can't open a {architecture_of(module)}: {reason}.")


def component_at(bridge: Any, path: str) -> Any:
    """The bridge's component at a dotted path, or None."""
    component = bridge
    for word in path.split(".") if path else []:
        component = component[int(word)] if word.isdigit() else getattr(component, word, None)
        if component is None:
            return None
    return component


def bridge_hook(name: str) -> Callable:
    """A hook for the bridge that applies the edits of the current run at a hook point."""

    def hook(value: Tensor, hook: Any) -> Tensor | None:
        run = current_run()
        return None if run is None or name not in run.at else run.apply(name, value)

    return hook


def architecture_of(module: Any) -> str:
    """The name of a plain model's class, as its configuration states it."""
    return (module.config.architectures or [type(module).__name__])[0]
