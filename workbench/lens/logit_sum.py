"""One run of a model read at one position: the stream and its parts, and a logit as an affine function of the stream.

The final norm divides by a number that the whole stream decides. With that number as it is on the prompt, the norm is
affine, and a logit is the sum over parts of their product with one vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.precision import in_float64
from workbench.lens.errors import LensError
from workbench.lens.readout import NORM, Readout
from workbench.lens.tokens import texts_of, token_id
from workbench.model.edits import BoundEdit, Edit, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.stream import StreamPath
from workbench.model.weights import ModelError

END = "ln_final.hook_in"
EXACT, EXACT_16_BITS = 1e-4, 0.03
"""The largest difference between the logit and the sum of its parts, as a share of the largest logit."""
Token = str | int


@dataclass(frozen=True)
class Share:
    """What one part adds to the logit."""

    label: str
    """Such as "embedding", "attention 12", "head 12.3", "MLP 12", "neurons.12.post:7", "my-sae:7", "bias"."""
    kind: str
    """ "embedding", "attention", "head", "mlp", "neuron", "latent", "error", "rest" or "bias"."""
    layer: int | None
    value: float


class Stream:
    """The stream, and what is added to it, at one position of one run.

    Args:
        model: the model.
        tokens: `[1, pos]`.
        place: the position.
        interventions: act in the run.
        more: further hook points to keep.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tensor,
        place: int,
        interventions: Sequence[Intervention],
        more: Sequence[str] = (),
    ):
        self.model = model
        self._seen: dict[str, Tensor] = {}
        self.device = model.device
        layers = range(model.network.n_layers)
        words = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "attn.hook_z", "hook_attn_out", "mlp.hook_post")
        names = [name for layer in layers for word in words if (name := f"blocks.{layer}.{word}") in model.hook_points]
        kept = dict.fromkeys([*names, END, NORM, *more])
        edits: list[BoundEdit] = [Edit(name, self._keep(name, place), reads_only=True) for name in kept]
        with torch.no_grad():
            logits = model.run(
                tokens, [*model.bind(interventions), *model.network.prepare(edits)], last=tokens.shape[1] - place
            )
        self.logits = logits[0, 0].float()  # [vocab]

    def _keep(self, name: str, place: int) -> Any:
        def keep(x: Tensor) -> Tensor:
            self._seen[name] = x[0, place].detach().clone()
            return x

        return keep

    def has(self, name: str) -> bool:
        """Whether the model has this hook point."""
        return name in self._seen

    def at(self, name: str) -> Tensor:
        """The tensor at a hook point, `[*shape]`."""
        return self._seen[name].to(self.device)


@dataclass(frozen=True, eq=False)
class Reader:
    """The logit as an affine function of the stream: `stream @ vector + constant`."""

    name: str
    vector: Tensor
    """`[d_model]`."""
    constant: float
    logit: float
    probability: float
    largest: float
    """The largest absolute logit."""
    exact: float
    """The largest difference of a sum that comes out, as a share of `largest`."""

    def of(self, part: Tensor) -> float:
        """What a part of the stream `[d_model]` adds."""
        return float(in_float64(part) @ self.vector)


def reader_of(readout: Readout, stream: Stream, target: Any) -> Reader:
    """The reader of a target, checked against the model's own logit.

    Raises:
        LensError: a wrong target, or a norm or logits that are not as the sum needs them.
    """
    model = stream.model
    logits = stream.logits.to(readout.head.device)
    chosen = [int(logits.argmax())] if target is None else [token_id(model, one) for one in _several(target)]
    if len(set(chosen)) < len(chosen):
        raise LensError("The two tokens are the same, so their difference is always 0; name two others.")
    readout.check(stream.at(NORM).float().to(readout.head.device)[None], logits[None])
    gain, bias, centres = (
        in_float64(one.to(readout.head.device)) if isinstance(one, Tensor) else one
        for one in model.network.norm_weights(NORM)
    )
    end = in_float64(stream.at(END))
    shape = (end - end.mean() if centres else end) * gain
    normed = in_float64(stream.at(NORM))
    scale = (normed - bias) @ shape / shape.square().sum().clamp(min=1e-30)
    exact = EXACT if model.dtype == torch.float32 else EXACT_16_BITS
    if not float((scale * shape + bias - normed).abs().max()) <= exact * float(normed.abs().max()):
        raise LensError(f"The final norm of {model.name} does more than scale by a gain, so no logit is a sum.")
    vector, constant = torch.zeros_like(end), 0.0
    for token, sign in zip(chosen, (1.0, -1.0), strict=False):
        row = in_float64(readout.head.rows(token))
        own = 0.0 if readout.bias is None else float(readout.bias[token])
        product = float(row @ normed) + own
        # a factor or a cap behind the head, as it is here
        factor = sign * (1.0 if readout.map.factor == 1 and readout.map.cap is None else float(logits[token]) / product)
        vector += factor * row
        constant += factor * own
    read = vector * gain * scale
    read = read - read.mean() if centres else read
    logit = sum(float(logits[token]) * sign for token, sign in zip(chosen, (1.0, -1.0), strict=False))
    name = " − ".join(texts_of(model, torch.tensor(chosen)))
    probability = float(logits.softmax(-1)[chosen[0]])
    return Reader(name, read, constant + float(vector @ bias), logit, probability, float(logits.abs().max()), exact)


def _several(target: Any) -> Sequence[Token]:
    return [target] if isinstance(target, str | int) else list(target)


def path_of(stream: Stream, name: str) -> StreamPath:
    """The way from a hook point into the stream; raises `LensError` where what stands there can't be read alone."""
    model = stream.model
    try:
        return model.network.into_stream(model.hook_points[name])
    except (ModelError, KeyError) as error:
        raise LensError(f"What stands at {name} of {model.name} can't be read alone: {error}") from error


def added(stream: Stream, name: str) -> Tensor:
    """What a hook point adds to the stream, biases behind it included, `[d_model]`; errors as `path_of`."""
    return path_of(stream, name).added(stream.at(name).flatten()[None])[0]


def part_shares(stream: Stream, reader: Reader, name: str, parts: Tensor) -> list[float]:
    """The shares of parts `[n, width]` of the tensor at a hook point; errors as `path_of`."""
    path, whole = path_of(stream, name), stream.at(name).flatten()[None]
    parts = parts.to(whole.dtype)
    change = path.output(parts) - path.output(torch.zeros_like(parts[:1]))
    scales = path.scales(whole)
    written = path.directions(change) * (1.0 if scales is None else scales)
    return (in_float64(written) @ reader.vector).tolist()
