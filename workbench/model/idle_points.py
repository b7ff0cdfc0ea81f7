"""Hook points that a model computes without: an edit there would be accepted and change nothing.

One pass with a zero added at every hook point shows it: a zero that the logits do not depend on has no gradient. What
lies in a part without gradients is nudged instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.model.bridge import bridge_hook
from workbench.model.edits import Edit, Group, Run, running
from workbench.model.hookpoints import HookPoint
from workbench.model.hooks import attach

Change = Callable[[Tensor], Tensor]


def idle_keys(
    plain: Any, bridge: Any, hooks: Mapping[str, Any], points: Iterable[HookPoint], probe: Tensor
) -> set[str]:
    """The keys of hook points at which no edit changes a logit.

    Args:
        plain: the plain model.
        bridge: TransformerLens's bridge over the same weights.
        hooks: the bridge's hooks by name.
        points: hook points, of which those without positions are left out.
        probe: token ids, `[batch, pos]`.
    """
    idle: set[str] = set()
    for on_bridge in (False, True):
        some = {p.key: p for p in points if p.positional and (p.module is None) == on_bridge}
        if some:
            host = _Host(bridge.original_model if on_bridge else plain, hooks if on_bridge else None, some, probe)
            idle |= host.idle()
    return idle


class _Host:
    """One tree of modules, and the hook points that are edited in it."""

    def __init__(self, module: Any, hooks: Mapping[str, Any] | None, points: Mapping[str, HookPoint], probe: Tensor):
        self.module, self.hooks, self.points, self.probe = module, hooks, points, probe

    def idle(self) -> set[str]:
        """See `idle_keys`."""
        with self._hooked():
            loose = self._without_gradient()
            if not loose:
                return set()
            base, moved = self._run({}), self._run(dict.fromkeys(loose, _nudged))
            if torch.equal(base, moved):
                return loose
            return {key for key in loose if torch.equal(base, self._run({key: _nudged}))}

    def _without_gradient(self) -> set[str]:
        """Keys of the hook points of which the logits have no gradient."""
        zeros: list[tuple[str, Tensor]] = []

        def adding(key: str) -> Change:
            def add(value: Tensor) -> Tensor:
                zeros.append((key, torch.zeros_like(value, requires_grad=True)))
                return value + zeros[-1][1]

            return add

        with torch.enable_grad():
            logits = self._run({key: adding(key) for key in self.points})
        gradients = [None] * len(zeros)
        if logits.requires_grad:
            gradients = torch.autograd.grad(logits.sum(), [zero for _, zero in zeros], allow_unused=True)
        reached = {key for (key, _), gradient in zip(zeros, gradients, strict=True) if gradient is not None}
        return {*self.points} - reached

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


def _nudged(value: Tensor) -> Tensor:
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    return value + (0.1 + 0.5 * value.abs().mean()) * noise
