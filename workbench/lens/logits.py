"""Direct logit attribution: a logit as the sum of what each part of the model adds to the residual stream.

The final norm divides by a number that the whole stream decides. With that number as it is on the prompt, the norm is
affine, and a logit is the sum over parts of their product with one vector. Elhage et al. (2021), "A Mathematical
Framework for Transformer Circuits".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from workbench.core.checks import Integer, Natural, Positive, Raises, checked
from workbench.core.display import Rows, Shown, Tabular, record_of
from workbench.core.precision import in_float64
from workbench.lens.errors import LensError
from workbench.lens.readout import NORM, Readout
from workbench.lens.tokens import one_row, texts_of, token_id
from workbench.model.edits import BoundEdit, Edit, EditError, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt
from workbench.model.weights import ModelError

if TYPE_CHECKING:
    from workbench.figures.common import Figure

END = "ln_final.hook_in"
EXACT, EXACT_16_BITS = 1e-4, 0.03
"""The largest difference between the logit and the sum of its parts, as a share of the largest logit."""
Token = str | int
Detail = Literal["parts", "heads", "neurons"]


@dataclass(frozen=True)
class Share(Shown):
    """What one part adds to the logit."""

    label: str
    """Such as "embedding", "attention 12", "head 12.3", "MLP 12", "neurons.12.post:7", "bias"."""
    kind: str
    """ "embedding", "attention", "head", "mlp", "neuron", "rest" or "bias"."""
    layer: int | None
    value: float


@dataclass(frozen=True, eq=False)
class LogitAttribution(Tabular):
    """A logit as a sum; `attribute_logit` returns one."""

    target: str
    """The token, or the two tokens whose logits' difference it is."""
    logit: float
    """The model's own."""
    shares: list[Share] = field(repr=False)
    """In the order of the model; they sum to `logit`."""
    probability: float = float("nan")
    """The model's probability of the token; of the first where there are two."""

    @property
    def largest(self) -> Rows[Share]:
        """The parts from the largest absolute share to the smallest."""
        return Rows(sorted(self.shares, key=lambda share: -abs(share.value)))

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each part, the largest first."""
        return map(record_of, self.largest)

    def figure(self) -> Figure:
        """The 30 largest parts as bars."""
        from workbench.figures.predictions import logit_bars

        shown = self.largest[:30]
        return logit_bars([one.label for one in shown], [one.value for one in shown])

    def to_dict(self) -> dict[str, Any]:
        """The sum as plain data."""
        return {
            "target": self.target,
            "logit": self.logit,
            "probability": self.probability,
            "shares": [vars(share) for share in self.shares],
        }


@checked(LensError)
def attribute_logit(
    model: LanguageModel,
    text: Prompt,
    target: Token | tuple[Token, Token] | None = None,
    *,
    position: Integer = -1,
    detail: Detail = "parts",
    top: Positive = 50,
    interventions: Annotated[Sequence[Intervention], Raises(EditError)] = (),
) -> LogitAttribution:
    """The logit of a token, or the difference of two, as the sum of what the model's parts add to it.

    Args:
        model: the model.
        text: a text, a `chat_prompt`, or token ids `[pos]`.
        target: a token; two tokens for the difference of their logits; None for the likeliest token.
        position: whose prediction is read; negative from the end.
        detail: "parts" for the embedding, and the attention and the MLP of each layer; "heads" for each head too;
            "neurons" for the `top` neurons with the largest shares too. What a layer adds beside these is a "rest".
        top: neurons that are kept.
        interventions: act in the run that is read, beside those in force here.

    Raises:
        LensError: a target of several tokens, a position that the text lacks, or a model whose logits are not the sum.
        PromptError: an empty text, or one longer than the context.
    """
    readout = Readout(model)
    tokens = one_row(model, text, "A logit is attributed on")
    length = tokens.shape[1]
    if not -length <= position < length:
        raise LensError(f"The text has positions 0 to {length - 1}; there is no position {position}.")
    stream = _Stream(model, tokens, position % length, interventions)
    reader = _reader(model, readout, stream, target)
    shares = [Share("embedding", "embedding", None, reader.of(stream.at("blocks.0.hook_resid_pre")))]
    for layer in range(model.network.n_layers):
        shares += _layer(model, stream, reader, layer, detail)
    shares += _between(model, stream, reader)
    shares.append(Share("bias", "bias", None, reader.constant))
    if detail == "neurons":
        shares = _kept(shares, top)
    exact = EXACT if model.dtype == torch.float32 else EXACT_16_BITS
    if not abs(sum(share.value for share in shares) - reader.logit) <= exact * reader.largest:
        raise LensError(f"The parts of {model.name} don't sum to the logit, so none of it is attributed.")
    return LogitAttribution(reader.name, reader.logit, shares, reader.probability)


class _Stream:
    """The stream, and what is added to it, at one position of one run.

    Args:
        model: the model.
        tokens: `[1, pos]`.
        place: the position.
        interventions: act in the run.
    """

    def __init__(self, model: LanguageModel, tokens: Tensor, place: int, interventions: Sequence[Intervention]):
        self._seen: dict[str, Tensor] = {}
        self.device = model.device
        layers = range(model.network.n_layers)
        words = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "attn.hook_z", "hook_attn_out", "mlp.hook_post")
        names = [name for layer in layers for word in words if (name := f"blocks.{layer}.{word}") in model.hook_points]
        edits: list[BoundEdit] = [Edit(name, self._keep(name, place), reads_only=True) for name in [*names, END, NORM]]
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
class _Reader:
    """The logit as an affine function of the stream: `stream @ vector + constant`."""

    name: str
    vector: Tensor
    """`[d_model]`."""
    constant: float
    logit: float
    probability: float
    largest: float
    """The largest absolute logit."""

    def of(self, part: Tensor) -> float:
        """What a part of the stream `[d_model]` adds."""
        return float(in_float64(part) @ self.vector)


def _reader(model: LanguageModel, readout: Readout, stream: _Stream, target: Any) -> _Reader:
    """The reader of a target, checked against the model's own logit.

    Raises:
        LensError: a wrong target, or a norm or logits that are not as the sum needs them.
    """
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
    exact = 1e-4 if model.dtype == torch.float32 else EXACT_16_BITS
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
    return _Reader(name, read, constant + float(vector @ bias), logit, probability, float(logits.abs().max()))


def _several(target: Any) -> Sequence[Token]:
    return [target] if isinstance(target, str | int) else list(target)


def _layer(model: LanguageModel, stream: _Stream, reader: _Reader, layer: int, detail: Detail) -> list[Share]:
    """The shares of a layer: its attention, or its heads and a rest, and its MLP, or its neurons and a rest."""
    block = f"blocks.{layer}."
    before, after = stream.at(f"{block}hook_resid_pre"), stream.at(f"{block}hook_resid_post")
    if stream.has(f"{block}hook_resid_mid"):
        attention = in_float64(stream.at(f"{block}hook_resid_mid")) - in_float64(before)
    else:
        attention = in_float64(_added(model, stream, f"{block}hook_attn_out"))
    of_attention = reader.of(attention)
    of_mlp = reader.of(in_float64(after) - in_float64(before)) - of_attention
    shares: list[Share] = []
    if detail == "parts" or not stream.has(f"{block}attn.hook_z"):
        shares.append(Share(f"attention {layer}", "attention", layer, of_attention))
    else:
        heads = _heads(model, stream, reader, layer)
        shares += [Share(f"head {layer}.{head}", "head", layer, value) for head, value in enumerate(heads)]
        shares.append(Share(f"attention {layer}, rest", "rest", layer, of_attention - sum(heads)))
    if detail != "neurons":
        return [*shares, Share(f"MLP {layer}", "mlp", layer, of_mlp)]
    neurons = _neurons(model, stream, reader, layer)
    shares += [Share(f"neurons.{layer}.post:{n}", "neuron", layer, value) for n, value in enumerate(neurons)]
    return [*shares, Share(f"MLP {layer}, rest", "rest", layer, of_mlp - sum(neurons))]


def _added(model: LanguageModel, stream: _Stream, name: str) -> Tensor:
    """What a hook point adds to the stream, `[d_model]`.

    Raises:
        LensError: it can't be read alone.
    """
    try:
        return model.network.into_stream(model.hook_points[name]).added(stream.at(name)[None])[0]
    except (ModelError, KeyError) as error:
        raise LensError(f"What {name} adds to the stream of {model.name} can't be read: {error}") from error


def _heads(model: LanguageModel, stream: _Stream, reader: _Reader, layer: int) -> list[float]:
    """The share of each head of a layer."""
    name = f"blocks.{layer}.attn.hook_z"
    z = stream.at(name)  # [heads, d_head]
    parts = torch.diag_embed(z.T).permute(1, 2, 0)  # [heads, heads, d_head], one head each
    return _parts(model, reader, name, z.flatten(), parts.flatten(1))


def _neurons(model: LanguageModel, stream: _Stream, reader: _Reader, layer: int) -> list[float]:
    """The share of each neuron of a layer."""
    try:
        point = model.network.neuron_hook_point(layer, "post")
        path = model.network.into_stream(point)
    except ModelError as error:
        raise LensError(f"Layer {layer} of {model.name} has no neurons of its own: {error}") from error
    x = stream.at(f"blocks.{layer}.mlp.hook_post")
    units = path.units().to(x.device)  # [d_mlp, d_model]
    scales = path.scales(x[None])
    values = x.float() * (units @ reader.vector.float().to(x.device))
    return (values if scales is None else values * scales.to(units.device).squeeze()).tolist()


def _parts(model: LanguageModel, reader: _Reader, name: str, whole: Tensor, parts: Tensor) -> list[float]:
    """The shares of parts `[n, width]` of the tensor at a hook point, `[width]`."""
    try:
        path = model.network.into_stream(model.hook_points[name])
    except ModelError as error:
        raise LensError(f"What stands at {name} of {model.name} can't be read alone: {error}") from error
    change = path.output(parts) - path.output(torch.zeros_like(parts[:1]))
    scales = path.scales(whole[None])
    written = path.directions(change) * (1.0 if scales is None else scales)
    return (in_float64(written) @ reader.vector).tolist()


def _between(model: LanguageModel, stream: _Stream, reader: _Reader) -> list[Share]:
    """What is added to the stream between layers and behind the last, where it is not 0."""
    ends = [f"blocks.{layer}.hook_resid_post" for layer in range(model.network.n_layers)]
    starts = [f"blocks.{layer}.hook_resid_pre" for layer in range(1, model.network.n_layers)] + [END]
    shares: list[Share] = []
    for layer, (one, other) in enumerate(zip(ends, starts, strict=True)):
        value = reader.of(in_float64(stream.at(other)) - in_float64(stream.at(one)))
        if value:
            shares.append(Share(f"behind layer {layer}", "rest", layer, value))
    return shares


def _kept(shares: Sequence[Share], top: Natural) -> list[Share]:
    """The shares with the `top` largest neurons; the others of a layer are in its rest."""
    neurons = sorted((one for one in shares if one.kind == "neuron"), key=lambda one: -abs(one.value))
    kept, left = set(map(id, neurons[:top])), {}
    for one in neurons[top:]:
        left[one.layer] = left.get(one.layer, 0.0) + one.value
    return [
        Share(one.label, one.kind, one.layer, one.value + left.get(one.layer, 0.0)) if _is_mlp_rest(one) else one
        for one in shares
        if one.kind != "neuron" or id(one) in kept
    ]


def _is_mlp_rest(share: Share) -> bool:
    return share.kind == "rest" and share.label.startswith("MLP ")
