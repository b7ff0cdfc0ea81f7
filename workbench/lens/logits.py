"""Direct logit attribution: a logit as the sum of what each part of the model adds to the residual stream.

The final norm divides by a number that the whole stream decides. With that number as it is on the prompt, the norm is
affine, and a logit is the sum over parts of their product with one vector. Elhage et al. (2021), "A Mathematical
Framework for Transformer Circuits".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch

from workbench.core.checks import Integer, Natural, Positive, Raises, checked
from workbench.core.precision import in_float64
from workbench.dictionaries.protocol import Dictionary
from workbench.lens.errors import LensError
from workbench.lens.latents import Explained, explain, merged, points_of
from workbench.lens.logit_sum import (
    END,
    Reader,
    Share,
    Stream,
    Token,
    added,
    part_shares,
    reader_of,
)
from workbench.lens.readout import Readout
from workbench.lens.tokens import one_row
from workbench.model.edits import EditError, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt
from workbench.model.weights import ModelError

Detail = Literal["parts", "heads", "neurons", "latents"]


@dataclass(frozen=True, eq=False)
class LogitAttribution:
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
    def largest(self) -> list[Share]:
        """The parts from the largest absolute share to the smallest."""
        return sorted(self.shares, key=lambda share: -abs(share.value))

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
    dictionaries: Sequence[Dictionary] = (),
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
            "neurons" for the `top` neurons with the largest shares too; "latents" for the latents of `dictionaries`.
            What a layer adds beside these is a "rest".
        dictionaries: for "latents". Each takes the place of what it explains: the attention or the MLP of a layer, or
            the stream with all that was written into it before. Its latents, its bias and its error, which is what it
            leaves out, sum to that.
        top: neurons that are kept, or latents.
        interventions: act in the run that is read, beside those in force here.

    Raises:
        LensError: a target of several tokens, a position that the text lacks, a model whose logits are not the sum, or
            dictionaries that explain nothing of the sum, or the same part twice.
        DictionaryError: a dictionary that does not fit the model.
        PromptError: an empty text, or one longer than the context.
    """
    if (detail == "latents") != bool(len(dictionaries)):
        raise LensError('Latents are those of dictionaries: give dictionaries=[...] together with detail="latents".')
    readout = Readout(model)
    tokens = one_row(model, text, "A logit is attributed on")
    length = tokens.shape[1]
    if not -length <= position < length:
        raise LensError(f"The text has positions 0 to {length - 1}; there is no position {position}.")
    more = [name for one in dictionaries for name in points_of(model, one)]
    stream = Stream(model, tokens, position % length, interventions, more)
    reader = reader_of(readout, stream, target)
    explained = explain(stream, reader, dictionaries)
    shares = _before(explained) or [
        Share("embedding", "embedding", None, reader.of(stream.at("blocks.0.hook_resid_pre")))
    ]
    for layer in range(model.network.n_layers):
        shares += _layer(stream, reader, layer, detail, explained)
    shares += _between(stream, reader, explained)
    shares.append(Share("bias", "bias", None, reader.constant))
    shares = _kept(shares, top) if detail == "neurons" else merged(shares, top)
    if not abs(sum(share.value for share in shares) - reader.logit) <= reader.exact * reader.largest:
        raise LensError(f"The parts of {model.name} don't sum to the logit, so none of it is attributed.")
    return LogitAttribution(reader.name, reader.logit, shares, reader.probability)


def _before(explained: Sequence[Explained]) -> list[Share]:
    """The shares of the dictionary that explains the stream; none without one."""
    return [share for one in explained if one.part == "stream" for share in one.shares]


def _layer(stream: Stream, reader: Reader, layer: int, detail: Detail, explained: Sequence[Explained]) -> list[Share]:
    """The shares of a layer: its attention, its heads or latents and a rest, and its MLP, its neurons or latents and a
    rest; without what lies in front of a stream that is explained."""
    block = f"blocks.{layer}."
    before, after = stream.at(f"{block}hook_resid_pre"), stream.at(f"{block}hook_resid_post")
    if stream.has(f"{block}hook_resid_mid"):
        attention = in_float64(stream.at(f"{block}hook_resid_mid")) - in_float64(before)
    else:
        attention = in_float64(added(stream, f"{block}hook_attn_out"))
    of_attention = reader.of(attention)
    of_mlp = reader.of(in_float64(after) - in_float64(before)) - of_attention
    shares: list[Share] = []
    for part, value in (("attention", of_attention), ("mlp", of_mlp)):
        if any(one.contains(part, layer) for one in explained):
            continue
        own = next((one for one in explained if (one.part, one.layer) == (part, layer)), None)
        if own is not None:
            shares += [*own.shares, own.rest(value, reader)]
        elif part == "attention":
            shares += _attention(stream, reader, layer, detail, value)
        else:
            shares += _mlp(stream, reader, layer, detail, value)
    return shares


def _attention(stream: Stream, reader: Reader, layer: int, detail: Detail, value: float) -> list[Share]:
    """The share of a layer's attention, or of its heads and a rest."""
    if detail not in ("heads", "neurons") or not stream.has(f"blocks.{layer}.attn.hook_z"):
        return [Share(f"attention {layer}", "attention", layer, value)]
    heads = _heads(stream, reader, layer)
    shares = [Share(f"head {layer}.{head}", "head", layer, one) for head, one in enumerate(heads)]
    return [*shares, Share(f"attention {layer}, rest", "rest", layer, value - sum(heads))]


def _mlp(stream: Stream, reader: Reader, layer: int, detail: Detail, value: float) -> list[Share]:
    """The share of a layer's MLP, or of its neurons and a rest."""
    if detail != "neurons":
        return [Share(f"MLP {layer}", "mlp", layer, value)]
    neurons = _neurons(stream, reader, layer)
    shares = [Share(f"neurons.{layer}.post:{n}", "neuron", layer, one) for n, one in enumerate(neurons)]
    return [*shares, Share(f"MLP {layer}, rest", "rest", layer, value - sum(neurons))]


def _heads(stream: Stream, reader: Reader, layer: int) -> list[float]:
    """The share of each head of a layer."""
    name = f"blocks.{layer}.attn.hook_z"
    z = stream.at(name)  # [heads, d_head]
    parts = torch.diag_embed(z.T).permute(1, 2, 0)  # [heads, heads, d_head], one head each
    return part_shares(stream, reader, name, parts.flatten(1))


def _neurons(stream: Stream, reader: Reader, layer: int) -> list[float]:
    """The share of each neuron of a layer."""
    try:
        point = stream.model.network.neuron_hook_point(layer, "post")
        path = stream.model.network.into_stream(point)
    except ModelError as error:
        raise LensError(f"Layer {layer} of {stream.model.name} has no neurons of its own: {error}") from error
    x = stream.at(f"blocks.{layer}.mlp.hook_post")
    units = path.units().to(x.device)  # [d_mlp, d_model]
    scales = path.scales(x[None])
    values = x.float() * (units @ reader.vector.float().to(x.device))
    return (values if scales is None else values * scales.to(units.device).squeeze()).tolist()


def _between(stream: Stream, reader: Reader, explained: Sequence[Explained]) -> list[Share]:
    """What is added to the stream between layers and behind the last, where it is not 0."""
    ends = [f"blocks.{layer}.hook_resid_post" for layer in range(stream.model.network.n_layers)]
    starts = [f"blocks.{layer}.hook_resid_pre" for layer in range(1, stream.model.network.n_layers)] + [END]
    shares: list[Share] = []
    for layer, (one, other) in enumerate(zip(ends, starts, strict=True)):
        value = reader.of(in_float64(stream.at(other)) - in_float64(stream.at(one)))
        if value and not any(part.contains("behind", layer) for part in explained):
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
