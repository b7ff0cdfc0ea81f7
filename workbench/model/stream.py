"""What a place in a model adds to the residual stream: the linear map, the norm and the factor that lie between.

Nudges decide it: the stream behind a layer, or behind the embeddings, is compared with and without one. Names of hook
points and fields of configurations do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.precision import in_float64
from workbench.model.hookpoints import HookPoint
from workbench.model.mlp import linear_shape
from workbench.model.modules import is_conv1d, through
from workbench.model.sharded import in_one_piece
from workbench.model.stream_probe import Place, Region, StreamProbe, nudge
from workbench.model.weights import ModelError, whole

NEARLY = 0.999
"""Least cosine of a nudge with what it moves; a norm or a nonlinearity between stays well below."""
COARSE = 0.98
"""The same where the stream itself is rounded to 16 bits."""
EXACT = 1e-5
"""A factor that is nearer to 1 than this is 1: the rounding of a measurement in float32 is smaller."""
EXACT_16_BITS = 2e-3
"""The same for a measurement in 16 bits."""
Read = Callable[[Sequence[str], Mapping[str, Tensor]], dict[str, Tensor]]
"""From hook points to their tensors in a pass, where changes are added to the tensors at some."""


@dataclass(frozen=True, eq=False)
class StreamPath:
    """The way from a place into the residual stream: `factor * norm(before * y)`, or `factor * y` without a norm.

    `y` `[..., d_model]` is the tensor at the place, behind the place's linear map where it has one. With the scale of
    the norm on a prompt as a constant, the norm is `scale * gain * centre(y) + bias`.
    """

    factor: float
    """The stream's change for one unit of what is in front of it, such as a residual multiplier."""
    linear: nn.Module | None = None
    """The linear map whose input the place is; None where the place is as wide as the stream itself."""
    norm: nn.Module | None = None
    """In float32."""
    before: float = 1.0
    gain: Tensor | None = None
    """`[d_model]`; None without a norm."""
    bias: Tensor | None = None
    centres: bool = False
    """Whether the norm subtracts the mean."""

    def directions(self, vectors: Tensor) -> Tensor:
        """What vectors `[..., d_model]` add to the stream, from weights alone: the norm's scale is taken as 1.

        Returns `vectors` themselves where nothing lies between.
        """
        if self.gain is not None:
            centred = vectors - vectors.mean(-1, keepdim=True) if self.centres else vectors
            vectors = centred * self.gain.to(vectors.device)
        return vectors if self.factor == 1 else vectors * self.factor

    def matrix(self) -> Tensor:
        """The linear map's weight, `[width, d_model]` in float32: what one unit of each coordinate adds to `y`."""
        linear: Any = self.linear
        weight = whole(linear.weight).detach().float()
        return weight if is_conv1d(linear) else weight.T

    def units(self) -> Tensor:
        """What one unit of each coordinate adds to the stream, from weights alone: `[width, d_model]`."""
        return self.directions(self.matrix())

    def output(self, x: Tensor) -> Tensor:
        """`y` `[..., d_model]` in float32 for the tensor `x` `[..., width]` at the place."""
        with torch.no_grad():
            return (x if self.linear is None else through(in_one_piece(self.linear), x)).float()

    def added(self, x: Tensor) -> Tensor:
        """What the tensor at the place `[..., width]` adds to the stream, biases included: `[..., d_model]`."""
        with torch.no_grad():
            return self._behind(self.output(x))

    def changed(self, x: Tensor, change: Tensor) -> Tensor:
        """The change of what is added where `y` changes, with the norm's scale before and after: exact.

        Args:
            x: the tensor at the place `[..., width]`.
            change: of `y`, `[..., d_model]`.
        """
        if self.norm is None:
            return change if self.factor == 1 else self.factor * change
        with torch.no_grad():
            y = self.output(x)
            return self._behind(y + change) - self._behind(y)

    def slope(self, x: Tensor, change: Tensor) -> Tensor:
        """The same to first order in the change; `y` is expanded to its shape."""
        if self.norm is None:
            return change if self.factor == 1 else self.factor * change
        y = self.output(x).expand_as(change).contiguous()
        return torch.func.jvp(self._behind, (y,), (change,))[1]

    def scales(self, x: Tensor) -> Tensor | None:
        """The norm's scale on a prompt, `[..., 1]` for the tensor at the place `[..., width]`; None without a norm.

        `scales(x) * directions(part)`, summed over parts of `y`, is `added(x)` without the norm's bias.
        """
        if self.norm is None or self.gain is None or self.bias is None:
            return None
        y = self.output(x)
        with torch.no_grad():
            shape = (y - y.mean(-1, keepdim=True) if self.centres else y) * self.gain.to(y.device)
            out = through(self.norm, self.before * y) - self.bias.to(y.device)
            return (out * shape).sum(-1, keepdim=True) / shape.square().sum(-1, keepdim=True).clamp(min=1e-30)

    def _behind(self, y: Tensor) -> Tensor:
        return self.factor * (y if self.norm is None else through(self.norm, self.before * y))


def stream_path(probe: StreamProbe, point: HookPoint) -> StreamPath:
    """The way from a hook point into the residual stream.

    Args:
        probe: of the model.
        point: carried by a plain module; as wide as the stream, or the input of a linear map that is.

    Raises:
        ModelError: a tensor that does not arrive in the stream, or changes on its way by more than a norm and a factor.
    """
    assert point.module is not None
    region = probe.region(point.module)
    place, linear = (region.inside(point.module), point.side), None
    if point.side == "in":
        own = probe.module.get_submodule(point.module)
        if linear_shape(own) == (point.width, probe.d_model):
            place, linear = (place[0], "out"), own
    if linear is None and point.width != probe.d_model:
        raise ModelError(f"{point.name} is {point.width:,} wide and no input of a linear map into the residual stream.")
    here = _Nudged(probe, region, place, point.name)
    norm = here.norm_between()
    if norm is None:
        return StreamPath(_factor(here.moved, here.push, point.name), linear)
    return here.through(norm, linear)


class _Nudged:
    """One place under a nudge, with all matrices held that are not its own.

    Args:
        probe: of the model.
        region: the place's region.
        place: the place, as wide as the stream.
        name: its hook point.
    """

    def __init__(self, probe: StreamProbe, region: Region, place: Place, name: str):
        self.probe, self.region, self.place, self.name = probe, region, place, name
        self.held = probe.hold_matrices(region, place[0])
        self.seen: dict[Place, Tensor] = {}
        self.base = probe.run(
            region, self.held, keep=[place, *((path, "out") for path in region.norms)], into=self.seen
        )
        if place not in self.seen:
            raise ModelError(f"{name} lies behind the last layer, so nothing there is added to the residual stream.")
        self.push = nudge(self.seen[place])
        self.nudged = {place: self.seen[place] + self.push}
        self.moved = self._moved(self.nudged)
        if float(self.moved.abs().max()) <= 1e-4 * float(self.push.abs().max()):
            raise ModelError(f"What stands at {name} is not added to the residual stream, so it has no direction.")

    def norm_between(self) -> str | None:
        """The norm that alone lies between the place and the stream: with its output held, no nudge passes."""
        for path in self.region.norms:
            at = (path, "out")
            if at == self.place or at not in self.seen:
                continue
            passed = self._moved({**self.nudged, at: self.seen[at]})
            if float(passed.abs().max()) < 1e-3 * float(self.moved.abs().max()):
                return path
        return None

    def through(self, norm: str, linear: nn.Module | None) -> StreamPath:
        """The way through a norm: a factor before it and one behind it, each from a nudge of its own."""
        behind, entered = (norm, "out"), (norm, "in")
        push = nudge(self.seen[behind])
        plain: dict[Place, Tensor] = {}
        moved: dict[Place, Tensor] = {}
        self.probe.run(self.region, self.held, keep=[entered], into=plain)
        self.probe.run(self.region, self.held, self.nudged, keep=[entered], into=moved)
        module = copy.deepcopy(self.region.module.get_submodule(norm)).float()
        gain, bias, centres = norm_parts(module, self.probe.d_model)
        after = _factor(self._moved({behind: self.seen[behind] + push}), push, self.name)
        before = _factor(moved[entered] - plain[entered], self.push, self.name)
        path = StreamPath(after, None, module, before, gain, bias, centres)
        y = self.seen[self.place].float()
        scales = path.scales(y)
        assert scales is not None
        parts, whole = scales * path.directions(y) + path.factor * bias.to(y.device), path.added(y)
        if float((parts - whole).abs().max()) > 1e-3 * float(whole.abs().max()):
            raise ModelError(f"The norm behind {self.name} does more than scale by a gain, so no direction is known.")
        return replace(path, linear=linear)

    def _moved(self, changes: dict[Place, Tensor]) -> Tensor:
        return self.probe.run(self.region, self.held, changes) - self.base


def stream_path_of_passes(read: Read, point: HookPoint, d_model: int, streams: Sequence[str]) -> StreamPath:
    """The way from a hook point that only the bridge has, from whole passes; nothing but a factor can be between.

    Args:
        read: the tensors at hook points in a pass where a change is added at one of them.
        point: as wide as the stream.
        d_model: width of the stream.
        streams: hook points of the stream behind it, the nearest first.

    Raises:
        ModelError: as `stream_path`.
    """
    if point.width != d_model:
        raise ModelError(f"{point.name} is {point.width:,} wide and no module of the model itself carries it.")
    base = read([point.name, *streams], {})
    push = nudge(base[point.name])
    moved = read(streams, {point.name: push})
    for name in streams:
        change = (moved[name] - base[name]).float()
        if float(change.abs().max()) > 1e-4 * float(push.abs().max()):
            coarse = push.dtype != torch.float32  # the stream is rounded to 16 bits at every step
            return StreamPath(_factor(change, push.expand_as(change), point.name, COARSE if coarse else NEARLY))
    raise ModelError(f"What stands at {point.name} is not added to the residual stream, so it has no direction.")


def _factor(moved: Tensor, pushed: Tensor, name: str, least: float = NEARLY) -> float:
    """The factor between a nudge and what it moves; a `ModelError` where they are not parallel."""
    one, other = in_float64(moved.flatten()), in_float64(pushed.flatten())
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    if not abs(cosine) > least:
        raise ModelError(f"What stands at {name} changes on its way into the residual stream, so it has no direction.")
    factor = float(one @ other / other.square().sum())
    exact = EXACT if pushed.dtype == torch.float32 else EXACT_16_BITS
    return 1.0 if abs(factor - 1) < exact else factor


def norm_parts(norm: Any, d_model: int) -> tuple[Tensor, Tensor, bool]:
    """Gain and bias `[d_model]` of a norm, and whether it subtracts the mean, from its outputs for three inputs."""
    like = next(iter(norm.parameters()), torch.empty(0))
    flips = torch.ones(d_model, dtype=like.dtype, device=like.device)
    flips[1::2] = -1.0
    with torch.no_grad():
        zero, ones, alternating = norm(torch.stack([torch.zeros_like(flips), torch.ones_like(flips), flips]))
    return ((alternating - zero) * flips).float(), zero.float(), bool(((ones - zero).abs() < 1e-3).all())
