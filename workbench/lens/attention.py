"""What heads attend to on a text, and what behaviour they show on repeated random tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, Raises, checked
from workbench.core.display import Tabular, cells
from workbench.core.text import counted
from workbench.lens.errors import LensError
from workbench.lens.tokens import chosen_layers, one_row
from workbench.model.edits import EditError, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt
from workbench.model.weights import ModelError

if TYPE_CHECKING:
    from workbench.figures.common import Figure

Weighted = Literal["pattern", "written"]
EXACT, EXACT_16_BITS = 1e-3, 0.05
"""The largest difference between a head's output and its pattern times its values, as a share of the largest."""


@dataclass(frozen=True, eq=False)
class Attention(Tabular):
    """What each head attends to on a text; `read_attention` returns one."""

    prompt: list[str]
    """The text of each token."""
    layers: list[int]
    patterns: Tensor = field(repr=False)
    """`[layers, heads, query, key]`: probabilities, or the norm of what the head writes at the query for each key."""
    weighted: Weighted = "pattern"
    """Which of the two `patterns` holds, as `read_attention` names them."""

    @checked(LensError)
    def head(self, layer: Natural, head: Natural) -> Tensor:
        """The pattern of one head, `[query, key]`; raises `LensError` if it was not read."""
        if layer not in self.layers or head >= self.patterns.shape[1]:
            heads = self.patterns.shape[1] - 1
            layers = ", ".join(map(str, self.layers))
            if len(self.layers) > 2 and self.layers == list(range(self.layers[0], self.layers[-1] + 1)):
                layers = f"{self.layers[0]} to {self.layers[-1]}"
            raise LensError(f"There is no head {layer}.{head} here: layers {layers}, heads 0 to {heads}.")
        return self.patterns[self.layers.index(layer), head]

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each query and key of each head; keys behind the query only where they weigh anything."""
        for row in cells(("layer", "head", "query", "key"), weight=self.patterns):
            if row["key"] <= row["query"] or row["weight"]:
                yield row | {"layer": self.layers[row["layer"]]}

    def figure(self, layer: int, head: int) -> Figure:
        """The pattern of one head as a map; raises `LensError` if it was not read."""
        from workbench.figures.reading import attention_map

        return attention_map(self.prompt, self.head(layer, head).tolist(), written=self.weighted == "written")

    def to_dict(self) -> dict[str, Any]:
        """The patterns as plain data."""
        return {"prompt": self.prompt, "layers": self.layers, "patterns": self.patterns.tolist()}


@checked(LensError)
def read_attention(
    model: LanguageModel,
    text: Prompt,
    *,
    weighted: Weighted = "pattern",
    layers: Sequence[Natural] | None = None,
    interventions: Annotated[Sequence[Intervention], Raises(EditError)] = (),
) -> Attention:
    """The attention patterns of a text.

    Args:
        model: the model.
        text: a text, a `chat_prompt`, or token ids `[pos]`.
        weighted: "pattern" for the probabilities; "written" for the norm of what the head adds to the residual stream
            at the query for each key, its probability times the key's value through the output weights.
        layers: only these; None for all.
        interventions: act in the run that is read, beside those in force here.

    Raises:
        LensError: a layer that the model lacks or whose attention keeps no pattern, or values that don't make up what
            the heads return.
        PromptError: an empty text, or one longer than the context.

    Source: Kobayashi et al. (2020, arXiv 2004.10102) for the norms.
    """
    tokens = one_row(model, text, "Attention is read on")
    chosen = chosen_layers(model, layers)
    with model.intervening(interventions):
        patterns = captured(model, tokens, chosen, "hook_pattern")  # [1, heads, query, key] each
        if weighted == "written":
            written = written_norms(model, tokens, chosen, patterns)
            patterns = [
                pattern * norms[:, :, None] * (1.0 if scales is None else scales[:, None])
                for pattern, (norms, scales) in zip(patterns, written, strict=True)
            ]
    return Attention(model.token_labels(tokens[0]), chosen, torch.cat(patterns), weighted)


@dataclass(frozen=True, eq=False)
class HeadScores(Tabular):
    """Behaviours of each head on repeated random tokens, from 0 to 1; `score_heads` returns one."""

    previous: Tensor
    """`[layer, head]`: the mean probability at the token before."""
    duplicate: Tensor
    """`[layer, head]`: at the earlier occurrence of the same token, in the second half."""
    induction: Tensor
    """`[layer, head]`: at the token behind that occurrence, in the second half."""
    first: Tensor
    """`[layer, head]`: at the first position, in the second half."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each head."""
        return cells(("layer", "head"), **{name: getattr(self, name) for name in self.to_dict()})

    def figure(self) -> Figure:
        """The scores of heads as maps."""
        from workbench.figures.circuits import head_maps

        return head_maps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain data."""
        return {name: getattr(self, name).tolist() for name in ("previous", "duplicate", "induction", "first")}


@checked(LensError)
def score_heads(
    model: LanguageModel,
    *,
    length: Positive = 32,
    rows: Positive = 4,
    tokens: Sequence[Natural] | None = None,
    seed: Natural = 0,
) -> HeadScores:
    """How much each head is a previous-token, a duplicate-token, an induction and a first-token head.

    A row is what the tokenizer puts in front of a text, then random tokens without repetition, then the same again.

    Args:
        model: the model.
        length: random tokens in a row, before they are repeated.
        rows: number of rows.
        tokens: ids that are drawn from; None for all that are no special tokens.
        seed: of the draw.

    Raises:
        LensError: fewer tokens than `length`, rows that are longer than the context, or attention that keeps no
            pattern.

    Source: Elhage et al. (2021) and Olsson et al. (2022, arXiv 2209.11895).
    """
    batch, start = repeated_tokens(model, length, rows, tokens, seed)
    return HeadScores(*behaviours(model, chosen_layers(model, None), batch, start))


def repeated_tokens(
    model: LanguageModel, length: int, rows: int, tokens: Sequence[int] | None, seed: int
) -> tuple[Tensor, int]:
    """Rows of random tokens that are repeated, `[rows, pos]`, and where the first of them stands.

    Raises:
        LensError: as `score_heads`.
    """
    front, pool = _front(model), _pool(model, tokens)
    if length < 1:
        raise LensError(f"{model.name} has no token or no context for random tokens that are repeated.")
    if len(pool) < length:
        raise LensError(f"{counted(len(pool), 'token')} can be drawn from, fewer than length = {length}.")
    if len(front) + 2 * length > model.network.n_ctx:
        raise LensError(f"Rows of {len(front) + 2 * length} tokens do not fit into the context; lower length.")
    chance = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.tensor(pool)[torch.randperm(len(pool), generator=chance)[:length]] for _ in range(rows)])
    batch = torch.cat([torch.tensor(front, dtype=torch.long).expand(rows, -1), drawn, drawn], 1)
    return model.as_tokens(batch), len(front)


def longest_repeat(model: LanguageModel, tokens: Sequence[int] | None = None) -> int:
    """The largest `length` of `score_heads` on a model, 32 at most."""
    return min(32, len(_pool(model, tokens)), (model.network.n_ctx - len(_front(model))) // 2)


def _pool(model: LanguageModel, tokens: Sequence[int] | None) -> list[int]:
    """The ids that random tokens are drawn from."""
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    return [one for one in (range(model.network.vocab_size) if tokens is None else tokens) if one not in special]


def behaviours(model: LanguageModel, layers: Sequence[int], batch: Tensor, start: int) -> Tensor:
    """The scores of `HeadScores` in its order, `[4, layers, heads]`.

    Args:
        model: the model.
        layers: these only.
        batch: from `repeated_tokens`.
        start: where the repeated tokens begin.
    """
    length = (batch.shape[1] - start) // 2
    queries = torch.arange(start + length, start + 2 * length)
    keys = [*(queries - back for back in (1, length, length - 1)), torch.zeros_like(queries)]
    found = [
        torch.stack([pattern[:, :, queries, key].float().mean((0, 2)) for key in keys])
        for pattern in captured(model, batch, layers, "hook_pattern")
    ]
    return torch.stack(found, 1)


def captured(model: LanguageModel, tokens: Tensor, layers: Sequence[int], part: str) -> list[Tensor]:
    """The tensors at a hook point of the attention of each layer."""
    names = [f"blocks.{layer}.attn.{part}" for layer in layers]
    missing = next((name for name in names if name not in model.hook_points), None)
    if missing:
        raise LensError(f"{model.name} computes nothing at {missing}, so what its heads attend to can't be read.")
    with torch.no_grad():
        seen = model.capture(tokens, names)
    return [seen[name] for name in names]


def written_norms(
    model: LanguageModel, tokens: Tensor, layers: Sequence[int], patterns: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor | None]]:
    """For each layer the norms of what each key's value writes `[1, heads, key]`, and the scales of the norm behind
    the attention at each query `[1, query, 1]`, None without one.

    Raises:
        LensError: the patterns times the values are not what the heads return.
    """
    values, outputs = (captured(model, tokens, layers, part) for part in ("hook_v", "hook_z"))
    exact = EXACT if model.dtype == torch.float32 else EXACT_16_BITS
    found = []
    for layer, pattern, value, output in zip(layers, patterns, values, outputs, strict=True):
        heads = output.shape[2]
        if heads % value.shape[2]:
            raise LensError(f"The {heads} heads of layer {layer} share {value.shape[2]} values unevenly.")
        shared = value.float().repeat_interleave(heads // value.shape[2], 2)  # [1, key, heads, d_head]
        made = torch.einsum("bhqk,bkhd->bqhd", pattern.float(), shared)
        if made.shape != output.shape or not float((made - output).abs().max()) <= exact * float(output.abs().max()):
            raise LensError(f"What the heads of layer {layer} return is not their patterns times their values.")
        try:
            _, _, out, _ = model.network.attention_weights(layer)  # [heads, d_head, d_model]
            path = model.network.into_stream(model.hook_points[f"blocks.{layer}.attn.hook_z"])
        except ModelError as error:
            raise LensError(f"What the heads of layer {layer} write can't be read: {error}") from error
        written = path.directions(torch.einsum("bkhd,hdm->bhkm", shared.to(out.device), out))
        scales = path.scales(output.flatten(-2))
        found.append((written.norm(dim=-1).to(pattern.device), None if scales is None else scales.abs()))
    return found


def _front(model: LanguageModel) -> list[int]:
    """The tokens that the tokenizer puts in front of a text."""
    if model.tokenizer is None:
        return []
    some = model.token_texts(torch.arange(min(model.network.vocab_size, 200)))
    text = next((one for one in some if one.strip().isalnum()), "a")
    with_front, without = (model.to_tokens(text, start=start)[0].tolist() for start in (True, False))
    return with_front[: len(with_front) - len(without)]
