"""Which features stand behind one prediction: transcoder attribution graphs.

Dunefsky, Chlenski and Nanda, "Transcoders find interpretable LLM feature circuits" (2024), arXiv 2406.11944: with
attention patterns and norm scales as they are on the prompt, what a latent reads is a sum over all that has written
into the residual stream before it, an activation times a product of weights for each earlier latent. What a transcoder
does not explain is a source too (an error node), so that the sum is exact and what is missing is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.attribution.frozen import AttributionError, FrozenModel, freeze
from workbench.attribution.gradient import full_gradient
from workbench.attribution.graph import KINDS, Graph, Node, effects, influences
from workbench.attribution.sources import Sources, by_layer
from workbench.attribution.target import Reader, Target, latent_reader, read_target
from workbench.core.progress import Progress
from workbench.dictionaries.coder import SparseCoder
from workbench.model.language_model import LanguageModel, uninterrupted


def attribute(
    model: LanguageModel,
    transcoders: Sequence[SparseCoder] | Mapping[Any, SparseCoder],
    prompt: str | Tensor,
    target: Target = None,
    *,
    position: int | None = None,
    max_latents: int = 256,
    rest: float = 0.01,
    mlps: Literal["linear", "frozen"] = "linear",
    first: int = 1,
    batch: int = 32,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Graph:
    """The graph of features behind one prediction.

    The model runs as it is; transcoders only say how what its MLPs write is made up. An edge's weight is

        (what the source is worth on this prompt) * (what one unit of it adds to what the target reads),

    for a latent its activation z_i times W_dec[i] · path · f_j. The path is the sum of all ways along the residual
    stream, through attention (A'[dst, src] W_V W_O, pattern A' as on the prompt) and along linear paths past latents,
    through norms with the prompt's scale. f_j is the target's encoder row (or LM head row) behind the norm's gain.
    Along the residual stream alone the factor is `scale * invariant`, and `invariant` depends on weights only.

    Sources are latents, errors, what MLPs without a transcoder write, embeddings and biases. They are traced further
    only through latents: the most influential first, until `max_latents` were traced or the others have too little
    influence. Interventions and splices in force around the call are set aside.

    Args:
        model: the model.
        transcoders: dictionaries that read `blocks.L.mlp.hook_in` and write `blocks.L.hook_mlp_out`, at most one for
            each layer; a list, or a mapping with them as values.
        prompt: a text, or token ids `[pos]`.
        target: the text or id of the token whose logit is explained, less the mean over all tokens (a constant that
            no probability depends on); two tokens for the difference of their logits; a latent with a position, for its
            pre-activation; None for the likeliest next token.
        position: where the logit is read, or the latent; the last position if None.
        max_latents: trace the sources of so many latents at most.
        rest: stop once latents that were not traced have no more of the influence than this together.
        mlps: what gradients do at MLPs without a transcoder that come after the first one with: "linear" lets them
            pass by the MLP's Jacobian on the prompt, its node is what that leaves over, and effects of latents on the
            target through such MLPs are part of the latents' weights. "frozen" stops them: the node is all that the MLP
            writes, and a weight is what a latent adds if no such MLP responds.
        first: before this position MLP outputs are nodes as they are: a first token is an attention sink, on which
            transcoders are not trained.
        batch: latents traced at once.
        progress: told the share done.
        cancel: asked after each batch; once it says True, the graph is that of the latents traced until then.

    Raises:
        AttributionError: a target, transcoder or setting that can't be used, or a model that is built in another way.
        PromptError: an empty prompt, or one that does not fit into the context.
    """
    _check_settings(model, max_latents, rest, mlps, first=first, batch=batch)
    coders = by_layer(model, transcoders)
    with uninterrupted(), torch.no_grad():
        tokens, _ = model.prompt_batch([prompt], 1)
        reader = read_target(model, coders, tokens, target, position)
        linear_from = min(coders) if coders and mlps == "linear" else model.network.n_layers
        frozen = freeze(model, tokens, coders, first=first, linear_from=linear_from)
        texts = [str(one) for one in tokens[0].tolist()] if model.tokenizer is None else model.token_texts(tokens[0])
        value = _value(model, frozen, reader, tokens)
        node = Node(0, "target", reader.layer, reader.position, value, reader.feature, reader.label)
        sources = Sources(model, frozen, coders, target=node, first=first, texts=texts)
        free = torch.zeros(1, len(sources.nodes))
        full_gradient(model, tokens, reader, sources.visitor(free))
        traced = _Traced(len(sources.nodes))
        traced.add(frozen, sources, [0], [reader])
        while traced.more(sources, max_latents, rest, progress) and not (cancel is not None and cancel()):
            best = traced.next(sources, min(batch, max_latents - len(traced.ids) + 1))
            nodes = [sources.nodes[id] for id in best]
            readers = [latent_reader(coders, one.layer, one.feature, one.position) for one in nodes if one.feature]
            traced.add(frozen, sources, best, readers)
    made = {
        "model": model.name,
        "model_hash": model.hash,
        "transcoders": [{"name": one.name, "hash": one.hash} for one in coders.values()],
        "target_tokens": list(reader.tokens),
        "mlps": mlps,
        "first": first,
        "max_latents": max_latents,
        "rest": rest,
    }
    return _graph(frozen, sources, traced, free[0], prompt=texts, tokens=tokens[0].tolist(), made=made)


class _Traced:
    """Rows of the graph, as they come."""

    def __init__(self, columns: int):
        self.readers: list[Reader] = []
        self.ids: list[int] = []
        self.weights = torch.zeros(0, columns)

    def add(self, frozen: FrozenModel, sources: Sources, ids: list[int], readers: list[Reader]) -> None:
        """Trace what these readers read, all in one pass through the layers."""
        out = torch.zeros(len(readers), len(sources.nodes))
        vectors = torch.stack([one.vector for one in readers])
        layers, positions = [one.layer for one in readers], [one.position for one in readers]
        bias = frozen.pull_back(vectors, layers, positions, sources.visitor(out))
        out[:, sources.BIAS] += bias + torch.tensor([one.constant for one in readers])
        self.ids += ids
        self.readers += readers
        self.weights = torch.cat([self.weights, out])

    def waiting(self, sources: Sources) -> Tensor:
        """The influence of latents that were not traced yet: `[columns]`."""
        ids, _, weights = self.sorted()
        latents = torch.tensor([node.kind == "latent" for node in sources.nodes])
        return influences(weights, ids)[1] * latents

    def more(self, sources: Sources, most: int, rest: float, progress: Progress | None) -> bool:
        """Whether there are latents to trace, after telling how many were."""
        done = len(self.ids) - 1
        if progress is not None:
            progress(done / max(most, 1), f"{done:,} of up to {most:,} latents traced")
        return done < most and float(self.waiting(sources).sum()) > rest

    def next(self, sources: Sources, count: int) -> list[int]:
        """The most influential latents that were not traced yet."""
        waiting = self.waiting(sources)
        return waiting.topk(min(count, int((waiting > 0).sum()))).indices.tolist()

    def sorted(self) -> tuple[list[int], list[Reader], Tensor]:
        """The target, then latents from late layers to early ones."""
        order = [0, *sorted(range(1, len(self.ids)), key=lambda row: -self.readers[row].layer)]
        return [self.ids[row] for row in order], [self.readers[row] for row in order], self.weights[order]


def _graph(frozen: FrozenModel, sources: Sources, traced: _Traced, free: Tensor, **about: Any) -> Graph:
    """The graph of what was traced; `free` are the free effects `[columns]`."""
    ids, readers, weights = traced.sorted()
    values = torch.tensor([1.0, *(node.value for node in sources.nodes[1:])])
    through, ending = influences(weights, ids)
    added = effects(weights, ids, values)
    free[sources.BIAS] = 0
    nodes = [
        replace(node, influence=share, effect=effect, gradient_effect=full)
        for node, share, effect, full in zip(
            sources.nodes, through.tolist(), added.tolist(), free.tolist(), strict=True
        )
    ]
    nodes[0] = replace(nodes[0], effect=nodes[0].value, gradient_effect=nodes[0].value)
    shares = {kind: sum(float(ending[node.id]) for node in nodes if node.kind == kind) for kind in KINDS[1:]}
    streams = [frozen.norm(one.layer).reader(one.vector) for one in readers]
    return Graph(
        nodes=nodes,
        rows=ids,
        weights=weights,
        invariants=sources.invariants(torch.stack(streams)),
        scales=[float(frozen.norm(one.layer).scale[one.position]) for one in readers],
        totals=[nodes[0].value, *(float(_read(frozen, one)) for one in readers[1:])],
        shares=shares,
        counts=dict(Counter(node.kind for node in nodes)),
        **about,
    )


def _value(model: LanguageModel, frozen: FrozenModel, reader: Reader, tokens: Tensor) -> float:
    """The target's value in the model itself."""
    if not reader.tokens:
        return float(_read(frozen, reader))
    return float(reader.of_logits(model(tokens)[0, reader.position].float()))


def _read(frozen: FrozenModel, reader: Reader) -> Tensor:
    """What a reader makes of the normed stream that the model had at its place."""
    stream = frozen.ending if reader.layer == len(frozen.layers) else frozen.read[reader.layer]
    return stream[reader.position] @ reader.vector + reader.constant


def _check_settings(model: LanguageModel, max_latents: int, rest: float, mlps: str, **counts: int) -> None:
    if model.splices:
        raise AttributionError(f"{model.name} runs through dictionaries; features are attributed in models that don't.")
    for what, value in {"max_latents": max_latents, **counts}.items():
        least = 1 if what == "batch" else 0
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise AttributionError(f"{what} is a whole number from {least}, not {value!r}.")
    if isinstance(rest, bool) or not isinstance(rest, int | float) or not 0 <= rest < 1:
        raise AttributionError(f"rest is a share of the influence from 0 to below 1, not {rest!r}.")
    if mlps not in ("linear", "frozen"):
        raise AttributionError(f"mlps is 'linear' or 'frozen', not {mlps!r}.")
