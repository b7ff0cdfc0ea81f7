"""Features on a model: the dictionary that a feature belongs to, and a feature's mean over fixed texts."""

from __future__ import annotations

import torch

from workbench.core.checks import Natural, checked
from workbench.core.type_words import shortened, shown
from workbench.dictionaries.features import Feature, FeatureError
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.neurons import SITES, Neurons, layer_and_site
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import gather, sites
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.weights import ModelError

REFERENCE_TEXTS = (
    "The river was high after three days of rain, and the old bridge had been closed to traffic since Monday morning.",
    "To bake a simple loaf, mix flour, water, salt and yeast; let it rise for an hour; then bake it until it is brown.",
    "Dear Anna, thank you for your letter. We arrived safely, the children are well, and the garden is full of roses.",
    "In 1969 two astronauts walked on the Moon, while a third circled above them and waited for their return.",
    "def mean(numbers):\n    if not numbers:\n        raise ValueError('none')\n    return sum(numbers) / len(numbers)",
    "The committee will meet on Thursday to discuss the budget, the new school and the town hall's roof.",
    "A triangle with sides of 3, 4 and 5 has a right angle, because 9 plus 16 is 25.",
    '"Where have you been?" asked her brother. "I was looking for the dog," she said, "but he slept under my bed."',
)
"""The texts over which `Ablate(feature, "mean")` takes its mean where none is stated; fixed, so that the mean is."""


@checked(FeatureError)
def dictionary_of(model: LanguageModel, feature: Feature | str) -> Dictionary:
    """The dictionary that a feature belongs to, on this model; the feature is checked against it.

    Raises:
        FeatureError: the model has no such feature.
        DictionaryError: the feature belongs to a trained dictionary that is not loaded.
    """
    feature = Feature.parse(feature) if isinstance(feature, str) else feature
    if isinstance(feature.source, Dictionary):
        feature.source.check(feature.index)
        return feature.source
    if feature.dictionary.split(".")[0] != "neurons":
        raise DictionaryError(
            f"{shortened(feature.dictionary)} is not loaded; load_dictionary() it and use its "
            f".feature({feature.index})."
        )
    stated = check_named(feature)
    assert stated is not None
    try:
        point = model.network.neuron_hook_point(*stated)
    except ModelError as error:
        raise FeatureError(f"{feature}: {error}") from error
    neurons = Neurons(feature.dictionary, point.name, point.width)
    neurons.check(feature.index)
    return neurons


def check_named(feature: Feature) -> tuple[int, str] | None:
    """The layer and the site that the name of a neuron states; None for the feature of a trained dictionary.

    Raises:
        FeatureError: no model has neurons of this name.
    """
    if isinstance(feature.source, Dictionary) or feature.dictionary.split(".")[0] != "neurons":
        return None
    stated = layer_and_site(feature.dictionary)
    if stated is None:
        raise FeatureError(
            f"{shown(feature.dictionary)} is not a layer's neurons: write neurons.LAYER.SITE, such as neurons.29.gate."
        )
    if stated[1] not in SITES:
        raise FeatureError(f"{feature}: there are no {shown(stated[1])} neurons; write one of {', '.join(SITES)}.")
    return stated


@checked(FeatureError)
def mean_value(model: LanguageModel, dictionary: Dictionary, index: Natural) -> float:
    """A feature's mean over the tokens of `REFERENCE_TEXTS`, with no intervention or splice in force.

    For a trained dictionary the first token of each text does not count: it is the model's attention sink, with
    activations a hundred times larger than elsewhere, on which dictionaries are not trained.
    """
    reads = [point.name for point in sites(dictionary, model).reads]
    first = 0 if dictionary.of_model else 1
    total, count = 0.0, 0
    with uninterrupted(), torch.inference_mode():
        for text in REFERENCE_TEXTS:
            tokens = model.to_tokens(text)[:, : model.network.n_ctx]
            seen = {name: x[0, first:].flatten(1) for name, x in model.capture(tokens, reads).items()}
            value = dictionary.encode(gather(seen, reads)).value_of(index)
            total, count = total + float(value.sum()), count + len(value)
    return total / count
