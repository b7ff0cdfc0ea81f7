"""Hook points that can't be edited: the model computes without them, or TransformerLens fails on an edit there.

One pass with a zero added at every hook point shows it: a zero that the logits do not depend on has no gradient. What
lies in a part without gradients is nudged instead.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.model.bridge import Bridged, bridge_hook
from workbench.model.edits import Edit, Group, Run, running
from workbench.model.grad_mode import taking_gradients
from workbench.model.hookpoints import HookPoint
from workbench.model.hooks import attach

Change = Callable[[Tensor], Tensor]


def uneditable(plain: Any, bridged: Bridged, points: Iterable[HookPoint], probe: Tensor) -> dict[str, str]:
    """Why hook points can't be edited, by the keys of those at which no edit changes a logit, or fails.

    Args:
        plain: the plain model.
        bridged: TransformerLens's bridge over the same weights.
        points: hook points, of which those without positions are left out.
        probe: token ids, `[batch, pos]`.
    """
    reasons: dict[str, str] = {}
    for on_bridge in (False, True):
        some = {p.key: p for p in points if p.positional and (p.module is None) == on_bridge}
        if some:
            hooks = bridged.hooks if on_bridge else None
            host = _Host(bridged.bridge.original_model if on_bridge else plain, hooks, some, probe)
            reasons |= host.reasons()
    return reasons


class _Host:
    """One tree of modules, and the hook points that are edited in it."""

    def __init__(self, module: Any, hooks: Mapping[str, Any] | None, points: Mapping[str, HookPoint], probe: Tensor):
        self.module, self.hooks, self.points, self.probe = module, hooks, points, probe

    def reasons(self) -> dict[str, str]:
        """See `uneditable`."""
        with self._hooked(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bridge's, that a pass with edits is rounded otherwise
            reasons = self._failing()
            keys = {*self.points} - {*reasons}
            try:
                loose = self._without_gradient(keys)
            except Exception:  # noqa: BLE001 - the bridge computes otherwise with gradients, and may fail in 16 bits
                loose = keys
            if not loose:
                return reasons
            base, idle = self._run({}), set[str]()
            for some in _kinds(loose):
                if torch.equal(base, self._run(dict.fromkeys(some, _nudged))):
                    idle |= some
                elif loose is not keys:
                    idle |= {key for key in some if torch.equal(base, self._run({key: _nudged}))}
            return reasons | dict.fromkeys(idle, "no logit of this model depends on it")

    def _failing(self) -> dict[str, str]:
        """The error of an edit, by the keys of hook points where there is one: those of all layers fail together."""
        if self._error_at({*self.points}) is None:
            return {}
        reasons: dict[str, str] = {}
        for some in _kinds(self.points):
            error = self._error_at(some)
            reasons |= {} if error is None else dict.fromkeys(some, f"an edit there fails ({error})")
        return reasons

    def _error_at(self, keys: set[str]) -> str | None:
        try:
            self._run(dict.fromkeys(keys, _copied))
        except Exception as error:  # noqa: BLE001 - the library may raise anything on a form that it does not know
            return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
        return None

    def _without_gradient(self, keys: set[str]) -> set[str]:
        """Those of the hook points by which the logits have no gradient."""
        zeros: list[tuple[str, Tensor]] = []

        def adding(key: str) -> Change:
            def add(value: Tensor) -> Tensor:
                zeros.append((key, torch.zeros_like(value, requires_grad=True)))
                return value + zeros[-1][1]

            return add

        with taking_gradients():
            logits = self._run({key: adding(key) for key in keys})
        gradients = [None] * len(zeros)
        if logits.requires_grad:
            gradients = torch.autograd.grad(logits.sum(), [zero for _, zero in zeros], allow_unused=True)
        return keys - {key for (key, _), one in zip(zeros, gradients, strict=True) if one is not None}

    def _run(self, changes: Mapping[str, Change]) -> Tensor:
        """Logits with changes by the keys of hook points."""
        batch, length = self.probe.shape
        run = Run([Group([Edit(key, change) for key, change in changes.items()])])
        positions = torch.arange(length, device=self.probe.device).expand(batch, -1)
        run.enter(positions)
        extra = {"position_ids": positions} if any(key.startswith("pos_embed.") for key in changes) else {}
        with running(run):
            return self.module(input_ids=self.probe, use_cache=False, **extra).logits

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        """With a hook at each of the hook points, for as long as the block lasts."""
        handles = []
        try:
            for key, point in self.points.items():
                if self.hooks is None:
                    handles.append(attach(self.module.get_submodule(point.module or ""), key, point))
                else:
                    self.hooks[key].add_hook(bridge_hook(key))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for key in self.points if self.hooks is not None else ():
                self.hooks[key].remove_hooks("fwd")  # type: ignore[index]


def _kinds(keys: Iterable[str]) -> list[set[str]]:
    """Keys in groups that differ in their layer alone."""
    groups: dict[str, set[str]] = {}
    for key in keys:
        groups.setdefault(re.sub(r"\d+", "#", key), set()).add(key)
    return list(groups.values())


def _nudged(value: Tensor) -> Tensor:
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    return value + (0.1 + 0.5 * value.abs().mean()) * noise


def _copied(value: Tensor) -> Tensor:
    return value.clone()
