"""Single neurons and tokens: a neuron's scores, the neurons that write a token, the neurons nearest to one."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated

import torch
from torch import Tensor

from workbench.core.checks import Natural, Number, Positive, Raises, checked
from workbench.core.display import Rows
from workbench.dictionaries.features import Feature
from workbench.interventions.features import dictionary_of
from workbench.model.language_model import LanguageModel
from workbench.model.sampling import PromptError
from workbench.model.weights import ModelError
from workbench.neurons.table import NeuronError, Scale, Sign, Weights, check_layers
from workbench.neurons.unembedding import TINY, adjustment


@checked(NeuronError)
def token_scores(
    model: LanguageModel,
    feature: Feature,
    weights: Annotated[Weights | None, Raises(ModelError)] = None,
    scale: Scale = "raw",
) -> Tensor:
    """One neuron's score for every token, `[vocab]`; its softmax is the paper's "probability".

    Args:
        model: any model with MLPs.
        feature: a neuron, such as `neurons.29.gate:808`.
        weights: the weights that are read; None reads those of the feature's site: gate, up, or down for post.
        scale: as in `decode_neurons`.

    Raises:
        FeatureError: the model has no such neuron.
        ModelError: the model lacks these weights.
        NeuronError: an unknown scale.
    """
    layer, own = _place(model, feature)
    vector = model.network.neuron_directions(layer, weights or own)[feature.index]
    return model.network.lm_head.products(adjustment(model, scale)(vector[None])[0])


@checked(NeuronError)
def neurons_writing(
    model: LanguageModel,
    text: Annotated[str, Raises(PromptError)],
    weights: Annotated[Weights, Raises(ModelError)] = "down",
    *,
    scale: Scale = "raw",
    sign: Sign = 1,
    layers: Sequence[Natural] | None = None,
    min_score: Number | None = None,
    top: Positive = 20,
) -> Rows[tuple[Feature, float]]:
    """The neurons whose vectors have the highest scores for a token, at any rank among their tokens.

    Args:
        model: any model with MLPs.
        text: one token, " dog" with its space, or a text whose first token is taken.
        weights: `down` gives the neurons that write the token; `gate` and `up` those that read it.
        scale: as in `decode_neurons`.
        sign: 1 for the neurons' own directions, -1 for the opposite ones, whose scores are the negatives.
        layers: only neurons of these.
        min_score: only neurons that score the token so high.
        top: number of neurons.

    Returns:
        Neurons with their scores, best first.

    Raises:
        PromptError: an empty text, or a model without a tokenizer.
        ModelError: the model lacks these weights.
        NeuronError: an unknown scale or sign, a layer that the model lacks.
    """
    token = int(model.to_tokens(text, start=False)[0, 0])
    adjust, row = adjustment(model, scale), model.network.lm_head.rows(token)
    chosen = list(range(model.network.n_layers)) if layers is None else sorted(set(layers))
    check_layers(chosen, model.network.n_layers)
    of_each = [sign * (adjust(model.network.neuron_directions(n, weights)) @ row) for n in chosen]
    scores, starts = torch.cat([row.new_zeros(0), *of_each]), [0, *accumulate(len(one) for one in of_each)]
    site = "post" if weights == "down" else weights
    best = scores.topk(min(top, len(scores)))
    found: Rows[tuple[Feature, float]] = Rows()
    for place, value in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        which = bisect(starts, place) - 1
        if min_score is None or value >= min_score:
            found.append((Feature(f"neurons.{chosen[which]}.{site}", place - starts[which]), value))
    return found


@checked(NeuronError)
def nearest_neurons(model: LanguageModel, feature: Feature, top: Positive = 10) -> Rows[tuple[Feature, float]]:
    """The neurons of the same site, in any layer, whose weight vectors have the highest cosine with this neuron's.

    Args:
        model: any model with MLPs.
        feature: a neuron.
        top: number of neurons.

    Returns:
        Neurons with their cosines, best first.

    Raises:
        FeatureError: the model has no such neuron.
    """
    layer, weights = _place(model, feature)
    normal = torch.nn.functional.normalize
    own = normal(model.network.neuron_directions(layer, weights)[feature.index], dim=0)
    cosines = []
    for number in range(model.network.n_layers):
        vectors = model.network.neuron_directions(number, weights)
        cosines.append(vectors @ own / vectors.norm(dim=-1).clamp(min=TINY))
    every = torch.stack(cosines)  # [layers, d_mlp]
    every[layer, feature.index] = -2
    best = every.flatten().topk(min(top, every.numel() - 1))
    site = feature.dictionary.rsplit(".", 1)[1]
    return Rows(
        (Feature(f"neurons.{place // every.shape[1]}.{site}", place % every.shape[1]), value)
        for place, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )


def _place(model: LanguageModel, feature: Feature) -> tuple[int, Weights]:
    """Layer and weights of a neuron, checked against the model."""
    dictionary_of(model, feature)
    _, layer, site = feature.dictionary.split(".")
    weights: dict[str, Weights] = {"gate": "gate", "up": "up", "post": "down"}
    return int(layer), weights[site]
