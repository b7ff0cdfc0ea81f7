"""What `network.py` does with TransformerLens's bridge: components by path, hooks, and its failures in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.type_words import reason_of
from workbench.model.edits import Run, current_run, running
from workbench.model.modules import sharing_copy
from workbench.model.weights import ModelError


@dataclass(frozen=True)
class BridgeTensor:
    """A tensor that the bridge computes at one of its hook points in a probe."""

    name: str
    """The hook point."""
    key: str
    """The first name of the same place."""
    path: str | None
    """The plain module that the bridge's component stands for; None if there is none."""
    side: str
    """`in` or `out` for the component's input or output, empty for a tensor inside it."""
    value: Tensor


class Bridged:
    """TransformerLens's bridge over a plain model, whose weights it shares.

    Attributes:
        bridge: the `TransformerBridge`.
        hooks: its hooks by name.

    Args:
        module: the plain model; the bridge takes over the modules of a copy.
        build: the bridge over a module.
    """

    def __init__(self, module: Any, build: Callable[[Any], Any]):
        self._module: Any = sharing_copy(module)
        self._twins = {id(inner): path for path, inner in self._module.named_modules() if path}
        self.bridge = build(self._module)
        self.hooks: dict[str, Any] = self.bridge.hook_dict  # the bridge builds a new one at each access

    def observe(self, probe: Tensor) -> list[BridgeTensor]:
        """The tensors at the bridge's hook points for token ids `[batch, pos]`, in the order of computation.

        Raises:
            ModelError: the bridge fails on this architecture.
        """
        places: dict[str, str] = {}
        for hook in self.hooks.values():
            owner = (hook.name or "").rpartition(".")[0]
            twin = self._twins.get(id(getattr(component_at(self.bridge, owner), "original_component", None)))
            if twin is not None:
                places[owner] = twin
        try:
            _, cache = self.bridge.run_with_cache(probe)
        except Exception as error:  # the library may raise anything on a form that it does not know
            raise unopened(self._module, error) from error
        tensors, keys = [], {}
        for name, value in cache.items():
            hook = self.hooks.get(name)
            if hook is None or not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            owner, _, word = (hook.name or "").rpartition(".")
            side = {"hook_in": "in", "hook_out": "out"}.get(word, "")
            tensors.append(BridgeTensor(name, keys.setdefault(id(hook), name), places.get(owner), side, value))
        return tensors

    def fault(self, tokens: Tensor) -> str:
        """Why the bridge can't run on token ids `[batch, pos]` at all; empty where it can."""
        try:
            with running(None), torch.no_grad():
                self.bridge.original_model(input_ids=tokens, use_cache=False)
        except Exception as error:  # noqa: BLE001 - the library may raise anything on a form that it does not know
            return reason_of(error)
        return ""


def unread(run: Run | None, reason: str, dtype: torch.dtype) -> ModelError:
    """The error for hook points that TransformerLens fails to compute in a type, such as one where it mixes types."""
    names = sorted(run.at) if run is not None else []
    kind = str(dtype).removeprefix("torch.")
    advice = 'open the model in float32 (dtype="float32")' if dtype != torch.float32 else "choose other hook points"
    return ModelError(
        f"TransformerLens can't compute {names[0] if names else 'this'} of this model in {kind} ({reason}); {advice}."
    )


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
