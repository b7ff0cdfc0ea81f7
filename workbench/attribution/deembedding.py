"""De-embeddings: the tokens that drive a latent and those that it promotes, from weights alone.

Dunefsky, Chlenski and Nanda (2024), arXiv 2406.11944, section 4. The encoder row is multiplied with what each token
brings into the first layer, directly (the token is at the latent's position) or through the OV circuit of a head (the
token is where the head attends). Norms enter by their gains, those behind attention and MLP among them; their scales
depend on a prompt and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.attribution.parts import Transcoder, transcoders_by_layer
from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.display import Shown, Tabular, columns
from workbench.dictionaries.features import Feature
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from workbench.figures.common import Figure

TOKENS = 4096
"""Tokens that are read at once."""


@dataclass(frozen=True)
class TokenScores(Tabular):
    """Tokens with the highest or the lowest scores, the strongest first."""

    ids: list[int]
    tokens: list[str]
    scores: list[float]

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each token."""
        return columns(id=self.ids, token=self.tokens, score=self.scores)

    def figure(self) -> Figure:
        """The scores as bars."""
        from workbench.figures.tokens import token_bars

        return token_bars(self.tokens, self.scores)


@dataclass(frozen=True)
class HeadDrive(Shown):
    """The tokens that drive a latent through one head."""

    layer: int
    head: int
    strength: float
    """Standard deviation of the scores over the vocabulary."""
    drives: TokenScores
    opposes: TokenScores


@dataclass(frozen=True)
class DeEmbedding(Tabular):
    """The tokens of a latent, from weights alone."""

    feature: Feature
    drives: TokenScores
    """Tokens at the latent's position that raise the pre-activation most."""
    opposes: TokenScores
    """Those that lower it most."""
    strength: float
    """Standard deviation of the direct scores over the vocabulary."""
    heads: list[HeadDrive]
    """The heads whose scores have the largest standard deviation."""
    promotes: TokenScores
    """Tokens whose logits the latent raises most, along the residual stream alone."""
    suppresses: TokenScores
    """Those whose logits it lowers most."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each token of the four lists."""
        for name in ("drives", "opposes", "promotes", "suppresses"):
            one: TokenScores = getattr(self, name)
            yield from ({"list": name} | record for record in one.records())

    def _facts(self) -> Mapping[str, object]:
        return {"feature": self.feature, "strength": self.strength, "heads": len(self.heads)}

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {"feature": str(self.feature)}


@checked(AttributionError)
def deembed(
    model: LanguageModel, transcoder: Transcoder, index: Integer, *, top: Positive = 10, heads: Natural = 5
) -> DeEmbedding:
    """The de-embedding of a transcoder's latent.

    Args:
        model: the model.
        transcoder: reads an MLP's normed input and writes its output.
        index: the latent.
        top: tokens in each list.
        heads: number of heads, those whose scores have the largest standard deviation; 0 for none.

    Raises:
        AttributionError: another kind of dictionary, or a number out of range.
        FeatureError: the transcoder has no such latent.
    """
    feature = transcoder.feature(index)
    top = min(top, model.network.vocab_size)
    direct = token_drives(model, transcoder, index)
    by_head = head_drives(model, transcoder, index) if heads else direct.new_zeros(0, 0, len(direct))
    spread = by_head.std(-1) if heads else by_head.sum(-1)  # [layers, heads]
    best = spread.flatten().topk(min(heads, spread.numel())).indices.tolist()
    strongest = []
    for place in best:
        layer, head = divmod(place, spread.shape[1])
        scores = by_head[layer, head]
        ends = _best(model, scores, top), _best(model, -scores, top, -1)
        strongest.append(HeadDrive(layer, head, float(spread[layer, head]), *ends))
    gain, centres = model.network.final_norm()
    each = zip(
        transcoder.write_points, transcoder.direction(index).detach().float().chunk(transcoder.n_writes), strict=True
    )
    written = torch.stack([model.network.written(model.hook_points[point], one) for point, one in each]).sum(0)
    written = (written - written.mean() if centres else written) * gain
    logits = model.network.lm_head.products(written) * model.network.logit_map.factor
    logits = logits - logits.mean()
    return DeEmbedding(
        feature,
        _best(model, direct, top),
        _best(model, -direct, top, -1),
        float(direct.std()),
        strongest,
        _best(model, logits, top),
        _best(model, -logits, top, -1),
    )


@checked(AttributionError)
def token_drives(model: LanguageModel, transcoder: Transcoder, index: int) -> Tensor:
    """Each token's contribution to a latent's pre-activation at its own position, per unit of the norm's scale.

    Returns:
        `[vocab]`.
    """
    return _over_tokens(model, _reader(model, transcoder, index)[1])


@checked(AttributionError)
def head_drives(model: LanguageModel, transcoder: Transcoder, index: int) -> Tensor:
    """The same through each head up to the latent's layer, where the head attends to the token with weight 1.

    Returns:
        `[layers, heads, vocab]`.
    """
    layer, reader = _reader(model, transcoder, index)
    parallel = f"blocks.{layer}.hook_resid_mid" not in model.hook_points
    vectors = []
    with torch.no_grad():
        for below in range(layer if parallel else layer + 1):
            value = _values(model, below)  # [heads, d_model, d_head]
            through = (value @ (_head_outputs(model, below) @ reader)[..., None])[..., 0]  # [heads, d_model]
            vectors.append(_before_norm(model, f"blocks.{below}.attn.hook_in", through))
        if not vectors:
            return reader.new_zeros(0, model.network.n_heads, model.network.vocab_size)
        return _over_tokens(model, torch.stack(vectors))


def _reader(model: LanguageModel, transcoder: Transcoder, index: int) -> tuple[int, Tensor]:
    transcoder.check(index)
    ((layer, part),) = [one for one in transcoders_by_layer(model, [transcoder]).items() if one[1].holds(index)]
    return layer, _before_norm(model, part.reads, part.encoder(index)[0])


def _before_norm(model: LanguageModel, place: str, vectors: Tensor) -> Tensor:
    """The vectors that read the stream as `vectors` `[..., d_model]` read a place, without the scale of its norm.

    Raises:
        AttributionError: neither the stream nor a norm's output stands at the place.
    """
    layer = place.split(".")[1]
    streams = [f"blocks.{layer}.hook_resid_{word}" for word in ("pre", "mid")]
    norms = [f"blocks.{layer}.{word}.hook_out" for word in ("ln2", "ln1")]
    names = [name for name in (place, *norms, *streams) if name in model.hook_points]
    tokens = torch.arange(1, 6, device=model.device)[None] % model.network.vocab_size
    with uninterrupted(), torch.inference_mode():
        seen = model.capture(tokens, names) if place in names else {}
    same = [name for name in names[1:] if place in seen and torch.equal(seen[name], seen[place])]
    if not same:
        raise AttributionError(
            f"Latents can't be read from the weights of {model.name}: the tensor at {place} is neither the residual "
            "stream nor the output of a norm on it."
        )
    if same[0] in streams:
        return vectors
    gain, _, centres = model.network.norm_weights(same[0])
    vectors = vectors * gain
    return vectors - vectors.mean(-1, keepdim=True) if centres else vectors


def _values(model: LanguageModel, layer: int) -> Tensor:
    """The value weights of each head, `[heads, d_model, d_head]`, checked on prompts of one token.

    Raises:
        AttributionError: what a head reads from a token is not the product with these weights.
    """
    weight, bias, out, _ = model.network.attention_weights(layer)
    shared = len(out) // len(weight)
    weight, bias = weight.repeat_interleave(shared, 0), bias.repeat_interleave(shared, 0)
    names = [f"blocks.{layer}.attn.{word}" for word in ("hook_in", "hook_z")]
    with uninterrupted(), torch.inference_mode():
        read, z = (x[:, 0].float() for x in model.capture(torch.arange(1, 4)[:, None], names).values())
    expected = torch.einsum("bd,hdk->bhk", read, weight) + bias
    alike = torch.nn.functional.cosine_similarity(z, expected, dim=-1) > 0.999
    silent = (z - expected).norm(dim=-1) <= 1e-6 * z.abs().max()
    if not bool((alike | silent).all()):
        raise AttributionError(
            f"Latents can't be read from the weights of {model.name}: on a single token the heads of attention {layer} "
            "give something else than its values."
        )
    return weight


def _head_outputs(model: LanguageModel, layer: int) -> Tensor:
    """What one unit of each value of each head adds to the stream: `[heads, d_head, d_model]`."""
    point = model.hook_points[f"blocks.{layer}.attn.hook_z"]
    return model.network.into_stream(point).units().to(model.device).reshape(*point.shape, -1)


def _over_tokens(model: LanguageModel, vectors: Tensor) -> Tensor:
    """The products of vectors `[..., d_model]` with what each token brings into the first layer: `[..., vocab]`."""
    ids = torch.arange(model.network.vocab_size, device=model.device)
    return torch.cat([vectors @ model.network.token_parts(some).T for some in ids.split(TOKENS)], -1)


def _best(model: LanguageModel, scores: Tensor, top: int, sign: int = 1) -> TokenScores:
    best = scores.topk(min(top, len(scores)))
    ids = best.indices.tolist()
    texts = model.token_labels(ids)
    return TokenScores(ids, texts, [sign * value for value in best.values.tolist()])
