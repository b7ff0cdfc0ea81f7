"""The operations that `bake` carries out: a list of edits, and parts of the model that are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.core.arguments import Argument
from workbench.dictionaries.features import Feature
from workbench.interventions.kinds import AblateDirection, RemoveHead, RemoveLayer, RemoveSublayer, Scale, Steer
from workbench.model.language_model import LanguageModel
from workbench.surgery.bake.bake import bake
from workbench.surgery.bake.direction import direction_of
from workbench.surgery.child import Child, SurgeryError
from workbench.surgery.registry import Operation, register


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


SOME = "something has to be taken out"
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
        neutral=({"edits": [Scale(Feature("neurons.0.post", 0), 1.0), Steer(Feature("neurons.1.post", 2), 0.0)]},),
    )
)
register(
    Operation(
        "remove_layers",
        "Remove layers",
        "Whole layers are gone: the model is smaller.",
        (LAYERS,),
        _layers,
        neutral=SOME,
    )
)
register(
    Operation(
        "remove_sublayers",
        "Remove attention or MLPs",
        "The attention or the MLP of layers writes nothing any more; their matrices stay, and are zero.",
        (LAYERS, Argument("part", "Part", "attention", "choice", choices=("attention", "mlp"))),
        _sublayers,
        neutral=SOME,
    )
)
register(
    Operation(
        "remove_heads",
        "Remove attention heads",
        "Heads of a layer write nothing any more.",
        (Argument("layer", "Layer", 0, "whole", low=0), Argument("heads", "Heads", (), "heads", help="From 0.")),
        _heads,
        neutral=SOME,
    )
)
register(
    Operation(
        "ablate_direction",
        "Take out a direction",
        "Nothing writes along the direction that a feature writes in: no embedding, no attention, no MLP.",
        (Argument("feature", "Feature", "neurons.0.post:0", "feature", help="Such as neurons.29.post:808."),),
        _direction,
        neutral=SOME,
    )
)
