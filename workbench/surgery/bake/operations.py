"""The operations that `bake` carries out: a list of edits, and parts of the model that are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from workbench.core.arguments import Argument
from workbench.dictionaries.acting import places
from workbench.dictionaries.features import Feature, FeatureError
from workbench.dictionaries.neurons import Neurons
from workbench.interventions.features import dictionary_of
from workbench.interventions.kinds import AblateDirection, RemoveHead, RemoveLayer, RemoveSublayer
from workbench.model.language_model import LanguageModel
from workbench.surgery.bake.bake import bake
from workbench.surgery.child import Child, SurgeryError
from workbench.surgery.registry import Operation, register


def direction_of(model: LanguageModel, feature: Feature | str) -> Tensor:
    """The direction in which a feature writes into the residual stream, `[d_model]`.

    For a neuron it is its row of the down projection.

    Raises:
        FeatureError: there is no such feature, or it writes elsewhere.
        DictionaryError: it belongs to a dictionary that is not loaded.
    """
    feature = Feature.parse(feature) if isinstance(feature, str) else feature
    dictionary = dictionary_of(model, feature)
    if isinstance(dictionary, Neurons):
        return model.network.neuron_weights(int(feature.dictionary.split(".")[1]), "down")[feature.index]
    _, writes = places(dictionary, model.hook_points)
    streams = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed")
    if not writes.name.endswith(streams):
        raise FeatureError(f"{feature} writes at {writes.name}, which is not the residual stream; name another.")
    return dictionary.direction(feature.index).detach()


def _edits(model: LanguageModel, *, edits: Sequence[Any], beside: bool, **_: Any) -> Child:
    return bake(model, edits, beside=beside)


def _layers(model: LanguageModel, *, layers: Sequence[int], **_: Any) -> Child:
    return bake(model, [RemoveLayer(layer) for layer in _some(layers, "layer")])


def _sublayers(model: LanguageModel, *, layers: Sequence[int], part: str, **_: Any) -> Child:
    return bake(model, [RemoveSublayer(layer, part) for layer in _some(layers, "layer")])


def _heads(model: LanguageModel, *, layer: int, heads: Sequence[int], **_: Any) -> Child:
    return bake(model, [RemoveHead(layer, head) for head in _some(heads, "head")])


def _direction(model: LanguageModel, *, feature: Feature | str, **_: Any) -> Child:
    return bake(model, [AblateDirection(tuple(direction_of(model, feature).tolist()))])


def _some(chosen: Sequence[int], what: str) -> Sequence[int]:
    if not chosen:
        raise SurgeryError(f"No {what} is chosen; choose at least one.")
    return chosen


LAYERS = Argument("layers", "Layers", (), "layers", help="Counted from 0.")

register(
    Operation(
        "bake",
        "Bake edits",
        "Writes edits of neurons and latents into the weights.",
        (
            Argument("edits", "Edits", (), "edits"),
            Argument(
                "beside",
                "Keep beside the model what weights can't hold",
                False,
                "yes",
                help="Edits that depend on the input are saved as JSON in the checkpoint's folder.",
            ),
        ),
        _edits,
    )
)
register(
    Operation("remove_layers", "Remove layers", "Whole layers are gone: the model is smaller.", (LAYERS,), _layers)
)
register(
    Operation(
        "remove_sublayers",
        "Remove attention or MLPs",
        "The attention or the MLP of layers writes nothing any more; their matrices stay, and are zero.",
        (LAYERS, Argument("part", "Part", "attention", "choice", choices=("attention", "mlp"))),
        _sublayers,
    )
)
register(
    Operation(
        "remove_heads",
        "Remove attention heads",
        "Heads of a layer write nothing any more.",
        (Argument("layer", "Layer", 0, "whole", low=0), Argument("heads", "Heads", (), "heads", help="From 0.")),
        _heads,
    )
)
register(
    Operation(
        "ablate_direction",
        "Take out a direction",
        "Nothing writes along the direction that a feature writes in: no embedding, no attention, no MLP.",
        (Argument("feature", "Feature", "neurons.0.post:0", "feature", help="Such as neurons.29.post:808."),),
        _direction,
    )
)
