"""Single neurons and tokens: a neuron's scores, the neurons that write a token, the neurons nearest to one."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from workbench.core.checks import Positive, Raises, checked
from workbench.dictionaries.features import Feature
from workbench.interventions.features import dictionary_of
from workbench.model.language_model import LanguageModel
from workbench.model.sampling import PromptError
from workbench.model.weights import ModelError
from workbench.neurons.table import NeuronError, Scale, Weights
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
    return model.network.unembedding() @ adjustment(model, scale)(vector[None])[0]


@checked(NeuronError)
def neurons_writing(
    model: LanguageModel,
    text: Annotated[str, Raises(PromptError)],
    weights: Annotated[Weights, Raises(ModelError)] = "down",
    *,
    scale: Scale = "raw",
    top: Positive = 20,
) -> list[tuple[Feature, float]]:
    """The neurons whose vectors have the highest scores for a token, over all neurons and at any rank.

    Args:
        model: any model with MLPs.
        text: one token, " dog" with its space, or a text whose first token is taken.
        weights: `down` gives the neurons that write the token; `gate` and `up` those that read it.
        scale: as in `decode_neurons`.
        top: number of neurons.

    Returns:
        Neurons with their scores, best first.

    Raises:
        PromptError: an empty text, or a model without a tokenizer.
        ModelError: the model lacks these weights.
        NeuronError: an unknown scale.
    """
    token = int(model.to_tokens(text, start=False)[0, 0])
    adjust, row = adjustment(model, scale), model.network.unembedding()[token]
    scores = torch.cat(
        [adjust(model.network.neuron_directions(n, weights)) @ row for n in range(model.network.n_layers)]
    )
    site, d_mlp = "post" if weights == "down" else weights, len(scores) // model.network.n_layers
    best = scores.topk(min(top, len(scores)))
    return [
        (Feature(f"neurons.{place // d_mlp}.{site}", place % d_mlp), value)
        for place, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@checked(NeuronError)
def nearest_neurons(model: LanguageModel, feature: Feature, top: Positive = 10) -> list[tuple[Feature, float]]:
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
    return [
        (Feature(f"neurons.{place // every.shape[1]}.{site}", place % every.shape[1]), value)
        for place, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _place(model: LanguageModel, feature: Feature) -> tuple[int, Weights]:
    """Layer and weights of a neuron, checked against the model."""
    dictionary_of(model, feature)
    _, layer, site = feature.dictionary.split(".")
    weights: dict[str, Weights] = {"gate": "gate", "up": "up", "post": "down"}
    return int(layer), weights[site]
