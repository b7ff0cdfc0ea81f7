"""De-embeddings: the tokens that drive a latent and those that it promotes, from weights alone.

Dunefsky, Chlenski and Nanda (2024), arXiv 2406.11944, section 4. The encoder row is multiplied with the token
embeddings, directly (the token is at the latent's position) or through the OV circuit of a head (the token is where the
head attends). Norms enter by their gains; their scales depend on a prompt and are left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.attribution.sources import encoder, transcoders_by_layer
from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.features import Feature
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class TokenScores:
    """Tokens with the highest or the lowest scores, the strongest first."""

    ids: list[int]
    tokens: list[str]
    scores: list[float]


@dataclass(frozen=True)
class HeadDrive:
    """The tokens that drive a latent through one head."""

    layer: int
    head: int
    strength: float
    """Standard deviation of the scores over the vocabulary."""
    drives: TokenScores
    opposes: TokenScores


@dataclass(frozen=True)
class DeEmbedding:
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

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {"feature": str(self.feature)}


@checked(AttributionError)
def deembed(
    model: LanguageModel, transcoder: SparseCoder, index: Integer, *, top: Positive = 10, heads: Natural = 5
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
    written = transcoder.direction(index).detach().float()
    written = (written - written.mean() if centres else written) * gain
    table = model.network.unembedding()
    logits = table @ written
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
def token_drives(model: LanguageModel, transcoder: SparseCoder, index: int) -> Tensor:
    """Each token's contribution to a latent's pre-activation at its own position, per unit of the norm's scale.

    Returns:
        `[vocab]`.
    """
    return _embeddings(model) @ _reader(model, transcoder, index)[1]


@checked(AttributionError)
def head_drives(model: LanguageModel, transcoder: SparseCoder, index: int) -> Tensor:
    """The same through each head up to the latent's layer, where the head attends to the token with weight 1.

    Returns:
        `[layers, heads, vocab]`.
    """
    layer, reader = _reader(model, transcoder, index)
    parallel = f"blocks.{layer}.hook_resid_mid" not in model.hook_points
    vectors = []
    with torch.no_grad():
        for below in range(layer if parallel else layer + 1):
            value, _, out, _ = model.network.attention_weights(below)
            value = value.repeat_interleave(len(out) // len(value), 0)  # [heads, d_model, d_head]
            through = (value @ (out @ reader)[..., None])[..., 0]  # [heads, d_model]
            vectors.append(_normed(model, f"blocks.{below}.ln1.hook_out", through))
        if not vectors:
            return torch.zeros(0, model.network.n_heads, model.network.vocab_size)
        return torch.stack(vectors) @ _embeddings(model).T


def _reader(model: LanguageModel, transcoder: SparseCoder, index: int) -> tuple[int, Tensor]:
    (layer,) = transcoders_by_layer(model, [transcoder])
    transcoder.check(index)
    return layer, _normed(model, f"blocks.{layer}.ln2.hook_out", encoder(transcoder, index)[0])


def _normed(model: LanguageModel, name: str, vectors: Tensor) -> Tensor:
    """The vectors that read the stream as `vectors` `[..., d_model]` read a norm's output, without its scale."""
    gain, _, centres = model.network.norm_weights(name)
    vectors = vectors * gain
    return vectors - vectors.mean(-1, keepdim=True) if centres else vectors


def _embeddings(model: LanguageModel) -> Tensor:
    """`[vocab, d_model]`."""
    return model.network.module.get_input_embeddings().weight.detach().float()


def _best(model: LanguageModel, scores: Tensor, top: int, sign: int = 1) -> TokenScores:
    best = scores.topk(min(top, len(scores)))
    ids = best.indices.tolist()
    texts = [str(one) for one in ids] if model.tokenizer is None else model.token_texts(ids)
    return TokenScores(ids, texts, [sign * value for value in best.values.tolist()])
