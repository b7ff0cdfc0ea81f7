"""Reading neurons through the LM head: which tokens does each neuron's weight vector point to?

Davies, "Decoding specialised feature neurons in LLMs with the final projection layer" (2025, arXiv 2501.02688):
multiply a neuron's weight vector in the residual space with the LM head, `scores = W_U @ w`; the top tokens name it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.core.checks import Positive, checked
from workbench.core.products import memory
from workbench.core.progress import Progress
from workbench.model.language_model import LanguageModel
from workbench.model.lm_head import LMHead, merged
from workbench.model.score_search import ScoreSearch, searched, strips
from workbench.neurons.table import NeuronError, NeuronTable, Scale, Weights
from workbench.neurons.table_file import FORMAT, read_table, table_file, write_table

CHUNK = 768
"""Neurons per matrix product: 768 × 49,152 scores are 144 MiB."""
SIGNS = (1, -1)
"""The highest scores, and the lowest."""
RANDOM_DIRECTIONS = 1024
"""Random vectors whose top scores `excess` compares with."""
TINY = 1e-12
"""Least norm to divide by, for vectors of zeros, such as a pruned neuron's."""


@checked(NeuronError)
def decode_neurons(
    model: LanguageModel,
    weights: Weights | None = None,
    top_k: Positive = 10,
    *,
    scale: Scale = "raw",
    progress: Progress | None = None,
) -> NeuronTable:
    """The top tokens of every MLP neuron, decoded through the LM head.

    Args:
        model: any model with MLPs.
        weights: the vectors that are read: rows of the `gate` or the `up` projection, or columns of `down`,
            times what lies between the MLP and the stream: a norm's gain, a residual multiplier. None for `gate`, or
            `up` where the MLPs are not gated.
        top_k: tokens kept per neuron and sign, at most 1,000.
        scale: `raw`: the weights themselves; `unit`: each divided by its norm; `norm`: sent through the final norm, as
            if the residual stream held nothing but this vector.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.

    Returns:
        A `NeuronTable`, from the cache on disk where it holds this one.

    Raises:
        ModelError: the model lacks these weights.
        NeuronError: weights, top_k or scale out of range.
    """
    weights = weights or ("gate" if "gate" in model.network.neuron_sites else "up")
    most = min(1000, model.network.vocab_size)
    if top_k > most:
        raise NeuronError(f"top_k is a whole number from 1 to {most:,}, not {top_k!r}.")
    # tables of `down` had other names while they left out what lies between the MLP and the stream
    vectors = "down-added" if weights == "down" else weights
    owner = model.hash  # not of the weights alone: a multiplier of the residual stream is a setting
    file = table_file(f"{owner}-{vectors}-{scale}-{top_k}")
    vocabulary = model.token_texts(torch.arange(model.network.vocab_size))
    widths = {model.network.neuron_hook_point(layer, "post").width for layer in range(model.network.n_layers)}
    if len(widths) > 1:
        raise NeuronError(
            f"The layers of {model.name} have {min(widths):,} to {max(widths):,} neurons; a table needs one."
        )
    d_mlp = widths.pop()
    about = {"format": FORMAT, "model": owner, "weights": weights, "scale": scale, "d_mlp": d_mlp}
    tensors = read_table(file, about)
    if tensors is None:
        tensors = decode_all(model, weights, top_k, scale, progress)
        write_table(file, tensors, about)
    return NeuronTable(tensors, about, vocabulary)


def decode_all(
    model: LanguageModel, weights: Weights, top_k: int, scale: Scale, progress: Progress | None = None
) -> dict[str, Tensor]:
    """The tensors of a `NeuronTable`, decoded anew; see `decode_neurons` for the arguments.

    Returns:
        `tokens` int32 and `scores` `[2, rows, top_k]`, and `excess` `[2, rows]`.
    """
    head = model.network.lm_head
    adjust = adjustment(model, scale)
    chance = torch.Generator().manual_seed(0)
    drawn = torch.randn(RANDOM_DIRECTIONS, head.width, generator=chance).to(head.device)
    random = torch.nn.functional.normalize(drawn, dim=-1)
    room = memory(drawn, CHUNK * head.piece)
    random_top = _decode_layer(head, random, adjust, 1, room)[0][0, :, 0]  # [RANDOM_DIRECTIONS]

    kept: dict[str, list[Tensor]] = {"tokens": [], "scores": [], "norms": []}
    n_layers = model.network.n_layers
    for layer in range(n_layers):
        if progress:
            progress(layer / n_layers, f"Decoding neurons, layer {layer} of {n_layers}")
        vectors = model.network.neuron_directions(layer, weights).to(head.device)  # [d_mlp, d_model]
        scores, tokens = _decode_layer(head, vectors, adjust, top_k, room)  # [2, d_mlp, top_k]
        kept["tokens"].append(tokens.int())
        kept["scores"].append(scores)
        kept["norms"].append(vectors.norm(dim=-1))
    tokens, scores = torch.cat(kept["tokens"], 1), torch.cat(kept["scores"], 1)
    size = torch.cat(kept["norms"]) if scale == "raw" else scores.new_ones(scores.shape[1])
    excess = (scores[:, :, 0] / size.clamp(min=TINY) - random_top.mean()) / random_top.std()
    return {
        "tokens": tokens.cpu().contiguous(),
        "scores": scores.cpu().contiguous(),
        "excess": excess.cpu().contiguous(),
    }


def _decode_layer(
    head: LMHead, vectors: Tensor, adjust: Callable[[Tensor], Tensor], top_k: int, room: Tensor
) -> tuple[Tensor, Tensor]:
    """The scores and the tokens of `top_both` for vectors `[rows, d_model]`, `[2, rows, top_k]`.

    A piece of the head meets all vectors before the next one is converted.

    Args:
        head: the LM head.
        vectors: of the neurons of a layer.
        adjust: from `adjustment`.
        top_k: scores kept, of each sign.
        room: memory for `CHUNK` rows of scores with a piece of the head.
    """
    parts = vectors.split(CHUNK)
    best: list[tuple[Tensor, Tensor] | None] = [None] * len(parts)
    for start, rows in head.pieces():
        for number, part in enumerate(parts):
            out = room[: len(part) * len(rows)].view(len(part), len(rows))
            search = searched(adjust(part), rows, out, SIGNS)
            scores, tokens = _both(search, out, top_k)  # [2, chunk, top_k]
            best[number] = merged(best[number], (scores, tokens + start), top_k)
    scores, tokens = zip(*(one for one in best if one is not None), strict=True)
    return torch.cat(scores, 1), torch.cat(tokens, 1)


def top_both(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The highest and the lowest entries of each row, best first; of equal ones those of the lowest columns.

    Args:
        scores: `[rows, vocab]`.
        top_k: number of entries, of each kind; all of them where a row has fewer.

    Returns:
        Values `[2, rows, top_k]`, the second of `-scores`, and their columns of the same shape.
    """
    search = ScoreSearch(len(scores), strips(scores.shape[1], scores.device), scores.device, SIGNS)
    for at in search.strips:
        search.see(scores[:, at], at)
    return _both(search, scores, top_k)


def _both(search: ScoreSearch, scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """As `top_both`, of scores that a search has seen."""
    values, columns = zip(*(search.best(scores, top_k, sign) for sign in SIGNS), strict=True)
    return torch.stack(values), torch.stack(columns)


@checked(NeuronError)
def adjustment(model: LanguageModel, scale: Scale) -> Callable[[Tensor], Tensor]:
    """The function that a scale applies to weight vectors `[..., d_model]` before the product with the LM head."""
    if scale == "raw":
        return lambda vectors: vectors
    if scale == "unit":
        return lambda vectors: torch.nn.functional.normalize(vectors, dim=-1)
    gain, centred = model.network.final_norm()

    def through_norm(vectors: Tensor) -> Tensor:
        if centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors / vectors.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=TINY) * gain

    return through_norm
