"""Transcoder attribution graphs: the features behind one prediction.

Dunefsky, Chlenski and Nanda, "Transcoders find interpretable LLM feature circuits" (2024), arXiv 2406.11944: with
attention patterns and norm scales as constants of the prompt, a latent's pre-activation is a sum over everything
written into the residual stream before it; an earlier latent's term is its activation times a product of weights. The
reconstruction errors of transcoders are sources too (error nodes), so that the sum is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.attribution.frozen import FrozenModel, freeze
from workbench.attribution.gradient import full_gradient
from workbench.attribution.graph import KINDS, Graph, Node, effects, influences
from workbench.attribution.parts import Transcoders, owners, transcoders_by_layer
from workbench.attribution.sources import Sources
from workbench.attribution.target import Reader, Target, latent_reader, read_target
from workbench.core.checks import Integer, Natural, Number, Positive, checked
from workbench.core.progress import Progress
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.widened import in_float32


@checked(AttributionError)
def attribute(
    model: LanguageModel,
    transcoders: Transcoders,
    prompt: str | Tensor,
    target: Target = None,
    *,
    position: Integer | None = None,
    max_latents: Natural = 256,
    rest: Annotated[Number, Ge(0), Lt(1)] = 0.01,
    mlps: Literal["linear", "frozen"] = "linear",
    first: Natural = 1,
    batch: Positive = 32,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Graph:
    """The attribution graph of one prediction.

    The model runs unchanged; transcoders only decompose the outputs of its MLPs. An edge's weight is

        (the source's value on this prompt) * (the contribution of one unit of it to the target's value),

    for a latent its activation z_i times W_dec[i] · path · f_j. The path is the sum of all paths along the residual
    stream, through attention (A'[dst, src] W_V W_O, with the pattern A' of the prompt) and along transcoders' linear
    paths, through norms with the prompt's scales. f_j is the target's encoder row (or LM head row) times the norm's
    gain. Along the residual stream alone the factor is `scale * invariant`, and `invariant` depends on weights only;
    the scale of a norm between MLP and stream is one more factor. A logit's value is that of the model, with its scale
    and its cap; what the cap leaves of each token's logit on the prompt is a constant, as norm scales are.

    Sources are latents, errors, outputs of MLPs without a transcoder, embeddings and biases. Only latents are traced
    further: the most influential first, until `max_latents` are traced or the others have too little influence.
    Interventions and splices in force around the call are set aside.

    In 16 bits what is written into the stream does not sum to it, so a model in 16 bits is attributed in float32, with
    its weights as they are (`in_float32`).

    Args:
        model: the model.
        transcoders: dictionaries that read `blocks.L.mlp.hook_in` and write `blocks.L.hook_mlp_out`, at most one for
            each layer; a list, or a mapping with them as values. Where a norm or a factor stands between MLP and
            stream, they may write before it instead, at `blocks.L.mlp.hook_out`; they may read the stream in front of
            the MLP's norm, at `blocks.L.hook_resid_mid`. A cross-layer transcoder is one for each layer that it reads.
        prompt: a text, or token ids `[pos]`.
        target: the text or id of the token whose logit is explained, minus the mean over all tokens (a constant that
            no probability depends on); two tokens for the difference of their logits; a latent with a position for its
            pre-activation; None for the likeliest next token.
        position: the position of the logit or latent; the last one if None.
        max_latents: the largest number of latents whose sources are traced.
        rest: tracing stops once all latents that are not traced have at most this share of the influence together.
        mlps: what gradients do at MLPs without a transcoder after the first MLP with one. With "linear" they pass by
            the MLP's Jacobian on the prompt; its node is the remaining part of its output, and effects of latents
            through such MLPs are part of the latents' weights. With "frozen" they stop; the node is the MLP's whole
            output, and a weight is the latent's contribution where no such MLP responds.
        first: before this position MLP outputs are nodes themselves: a first token is an attention sink, which
            transcoders are not trained on.
        batch: latents traced at once.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: called after each batch; once it returns True, the graph of the latents traced so far is returned.

    Raises:
        AttributionError: a target, transcoder or setting that can't be used, or a model of another structure.
        PromptError: an empty prompt, or one that does not fit into the context.
    """
    if model.splices:
        raise AttributionError(f"{model.name} runs through dictionaries; features are attributed in models that don't.")
    coders, named = transcoders_by_layer(model, transcoders), {"model": model.name, "model_hash": model.hash}
    model = in_float32(model)
    with uninterrupted(), torch.no_grad():
        tokens, _ = model.prompt_batch([prompt], 1)
        linear_from = min(coders) if coders and mlps == "linear" else model.network.n_layers
        reader = read_target(model, coders, tokens, target, position)
        frozen = freeze(model, tokens, coders, first=first, linear_from=linear_from)
        texts = model.token_labels(tokens[0])
        value = reader.value if reader.tokens else float(_read(frozen, reader))
        node = Node(0, "target", reader.layer, reader.position, value, reader.feature, reader.label)
        sources = Sources(model, frozen, coders, target=node, first=first, texts=texts)
        gradient_effects = torch.zeros(1, len(sources.nodes), device=model.device)
        writes = [one.writes for one in frozen.layers]
        full_gradient(model, tokens, reader, writes, sources.visitor(gradient_effects))
        traced = _Traced(len(sources.nodes))
        traced.add(frozen, sources, [0], [reader])
        while traced.more(sources, max_latents, rest, progress) and not (cancel is not None and cancel()):
            best = traced.next(sources, min(batch, max_latents - len(traced.ids) + 1))
            nodes = [sources.nodes[id] for id in best]
            readers = [latent_reader(coders, one.layer, one.feature, one.position) for one in nodes if one.feature]
            traced.add(frozen, sources, best, readers)
    provenance = {
        **named,
        "transcoders": [{"name": one.name, "hash": one.hash} for one in owners(coders)],
        "target_tokens": list(reader.tokens),
        "target_probabilities": list(reader.probabilities),
        "mlps": mlps,
        "first": first,
        "max_latents": max_latents,
        "rest": rest,
    }
    if reader.likeliest is not None:
        best, chance = reader.likeliest
        text = str(best) if model.tokenizer is None else model.token_texts([best])[0]
        provenance["likeliest"] = {"token": best, "text": text, "probability": chance}
    about = {"prompt": texts, "tokens": tokens[0].tolist(), "provenance": provenance}
    return _graph(frozen, sources, traced, gradient_effects[0].cpu(), **about)


class _Traced:
    """Rows of the graph in the order in which they are traced."""

    def __init__(self, columns: int):
        self.readers: list[Reader] = []
        self.ids: list[int] = []
        self.weights = torch.zeros(0, columns)

    def add(self, frozen: FrozenModel, sources: Sources, ids: list[int], readers: list[Reader]) -> None:
        """Trace the sources of these readers, all in one pass through the layers."""
        vectors = torch.stack([one.vector for one in readers])
        out = vectors.new_zeros(len(readers), len(sources.nodes))
        layers, positions = [one.layer for one in readers], [one.position for one in readers]
        bias = frozen.pull_back(vectors, layers, positions, sources.visitor(out))
        out[:, sources.BIAS] += bias + bias.new_tensor([one.constant for one in readers])
        self.ids += ids
        self.readers += readers
        self.weights = torch.cat([self.weights, out.cpu()])

    def waiting(self, sources: Sources) -> Tensor:
        """The influence of latents that are not traced: `[columns]`."""
        ids, _, weights = self.sorted()
        latents = torch.tensor([node.kind == "latent" for node in sources.nodes])
        return influences(weights, ids)[1] * latents

    def more(self, sources: Sources, most: int, rest: float, progress: Progress | None) -> bool:
        """Whether there are latents to trace; reports the progress."""
        done = len(self.ids) - 1
        if progress:
            progress(done / max(most, 1), f"{done:,} of up to {most:,} latents traced")
        return done < most and float(self.waiting(sources).sum()) > rest

    def next(self, sources: Sources, count: int) -> list[int]:
        """Ids of the most influential latents that are not traced."""
        waiting = self.waiting(sources)
        return waiting.topk(min(count, int((waiting > 0).sum()))).indices.tolist()

    def sorted(self) -> tuple[list[int], list[Reader], Tensor]:
        """Ids, readers and weights of the target, then of latents from late layers to early ones."""
        order = [0, *sorted(range(1, len(self.ids)), key=lambda row: -self.readers[row].layer)]
        return [self.ids[row] for row in order], [self.readers[row] for row in order], self.weights[order]


def _graph(frozen: FrozenModel, sources: Sources, traced: _Traced, gradient_effects: Tensor, **about: Any) -> Graph:
    """The graph of all traced rows; `gradient_effects` are `[columns]`."""
    ids, readers, weights = traced.sorted()
    values = torch.tensor([1.0, *(node.value for node in sources.nodes[1:])])
    through, ending = influences(weights, ids)
    added = effects(weights, ids, values)
    gradient_effects[sources.BIAS] = 0
    columns = zip(sources.nodes, through.tolist(), added.tolist(), gradient_effects.tolist(), strict=True)
    nodes = [replace(node, influence=share, effect=one, gradient_effect=two) for node, share, one, two in columns]
    nodes[0] = replace(nodes[0], effect=nodes[0].value, gradient_effect=nodes[0].value)
    shares = {kind: sum(float(ending[node.id]) for node in nodes if node.kind == kind) for kind in KINDS[1:]}
    streams = [frozen.norm(one.layer).reader(one.vector) for one in readers]
    return Graph(
        nodes=nodes,
        rows=ids,
        weights=weights,
        invariants=sources.invariants(torch.stack(streams), [one.layer for one in readers]).cpu(),
        scales=[float(frozen.norm(one.layer).scale[one.position]) for one in readers],
        totals=[nodes[0].value, *(float(_read(frozen, one)) for one in readers[1:])],
        shares=shares,
        counts=dict(Counter(node.kind for node in nodes)),
        **about,
    )


def _read(frozen: FrozenModel, reader: Reader) -> Tensor:
    """A reader's value on the model's own normed stream."""
    stream = frozen.ending if reader.layer == len(frozen.layers) else frozen.read[reader.layer]
    return stream[reader.position] @ reader.vector + reader.constant
