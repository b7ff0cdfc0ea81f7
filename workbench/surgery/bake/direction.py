"""The direction that a feature writes in."""

from __future__ import annotations

from torch import Tensor

from workbench.core.checks import checked
from workbench.dictionaries.features import Feature, FeatureError
from workbench.dictionaries.sites import places
from workbench.interventions.features import dictionary_of
from workbench.model.language_model import LanguageModel
from workbench.surgery.child_building import SurgeryError


@checked(SurgeryError)
def direction_of(model: LanguageModel, feature: Feature | str) -> Tensor:
    """The direction in which a feature writes into the residual stream, `[d_model]`.

    For a neuron it is its column of the down projection. A norm between the place and the stream multiplies it by its
    gain, and so does a factor, such as a residual multiplier or the scale of embeddings.

    Raises:
        FeatureError: there is no such feature, it writes elsewhere, or its dictionary `rescales`.
        ModelError: what is written there changes on its way into the stream by more than that.
        DictionaryError: it belongs to a dictionary that is not loaded.
    """
    feature = Feature.parse(feature) if isinstance(feature, str) else feature
    dictionary = dictionary_of(model, feature)
    if dictionary.mlp_site is not None:
        layer, _ = dictionary.mlp_site
        return model.network.neuron_directions(layer, "down")[feature.index]
    if dictionary.n_writes > 1:
        raise FeatureError(f"{feature} writes at {dictionary.n_writes} hook points, in no one direction; name another.")
    if dictionary.rescales:
        raise FeatureError(
            f"{feature} has no one direction: {dictionary.name} multiplies what it writes by the size of each "
            "activation; name a feature of another dictionary."
        )
    _, writes = places(dictionary, model)
    streams = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed")
    if not writes.name.endswith(streams):
        raise FeatureError(f"{feature} writes at {writes.name}, which is not the residual stream; name another.")
    return model.network.written(writes, dictionary.direction(feature.index).detach())
