"""`bake`: interventions become weights.

An affine change of an activation is folded into the matrix in front of the activation or behind it; a change that
depends on the input in another way is refused. Edits at one hook point act in the order of the list, those at different
ones in the order in which the model computes them, as when the model runs under them. At the end the logits of the
baked and of the intervened model are compared; a child that differs is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.checks import checked
from workbench.interventions.affine import Add, AffineChange, Silence
from workbench.interventions.parts import PARTS
from workbench.interventions.protocol import InterventionKind
from workbench.interventions.saved import to_dict
from workbench.model.conditions import ungated
from workbench.model.edits import EditError, Intervention
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.weights import state_of
from workbench.model.widened import in_float32, is_exact, widen
from workbench.surgery.bake.fold import Fold, fold
from workbench.surgery.bake.places import Places
from workbench.surgery.child import Child, SurgeryError, make_child
from workbench.surgery.child_building import changed_config, keep_layers, layers_path, parameter_shapes
from workbench.surgery.inputs import as_model

PROBE = 16
"""The least number of positions on which the baked model is compared with the intervened one."""


class BakeError(SurgeryError):
    """An edit that weights can't hold.

    Attributes:
        reasons: why, for each such edit, by its number in the list.
    """

    def __init__(self, sentence: str, reasons: dict[int, str] | None = None):
        super().__init__(sentence)
        self.reasons = reasons or {}


@dataclass(frozen=True)
class _Plan:
    """The changes of one edit with their places."""

    edit: InterventionKind
    folds: tuple[Fold, ...]
    config: dict[str, Any]
    """Values of the configuration that switch on the biases that it needs."""


@checked(SurgeryError)
def bake(
    model: LanguageModel | Child, edits: Sequence[Intervention], *, beside: bool = False, name: str | None = None
) -> Child:
    """A child of a model, with interventions written into its weights.

    Weights hold what is affine (`affine_changes`): `Clamp`, `Scale`, `Ablate` and `Steer` on a neuron at all positions;
    `Steer` on a latent of a dictionary, and `Steer.along`, on the residual stream, at the output of a sublayer, or
    beside any matrix; `AblateDirection`, `RemoveHead`, `RemoveSublayer`, `RemoveLayer`. A constant that is not zero
    needs a bias: where the architecture has none but its configuration can switch some on, the other new biases are
    zero. Tied embeddings are untied where one of the two changes.

    Args:
        model: left as it is; a child is changed further.
        edits: in the order in which they act.
        beside: keep the edits that weights can't hold in `child.beside`, to be used with the child; `save_pretrained`
            writes them to `interventions.json`.
        name: of the child.

    Returns:
        The child; `child.reference` holds the edits under which the parent computes the same.

    Raises:
        BakeError: an edit that weights can't hold.
        EditError, FeatureError, HookPointError: an edit that the model can't run under.
        SurgeryError: a model that runs through dictionaries, no edit, or no layer left.
    """
    return baked(as_model(model), edits, {}, beside=beside, name=name)


@checked(SurgeryError)
def baked(
    model: LanguageModel,
    edits: Sequence[Intervention],
    record: Mapping[str, Any],
    *,
    beside: bool = False,
    name: str | None = None,
) -> Child:
    """The child of `bake`, for edits that a search chose; its step of history holds `record`, plain data, too."""
    edits = _checked(model, edits)
    places = Places(model)
    plans, reasons = _plans(model, edits, places)
    if reasons and (not beside or not plans):
        raise BakeError(_refusal(edits, reasons, beside), reasons)
    kept = [edits[number] for number in reasons]
    _check_beside(model, plans, kept)
    by_module: dict[str, list[Fold]] = {}
    for one in (one for plan in plans for one in plan.folds):
        by_module.setdefault(one.place.module, []).append(one)
    tensors, config = _folded(model, plans, by_module)
    gone = {layer for plan in plans for layer in plan.edit.removed_layers}
    if len(gone) == model.network.n_layers:
        raise SurgeryError("All layers would be removed; keep at least one.")
    left = [n for n in range(model.network.n_layers) if n not in gone or not _is_silent(places, n, tensors)]
    if len(left) < model.network.n_layers:
        tensors, shorter = keep_layers(model, left, tensors)
        config |= shorter
    step = {
        "operation": "bake",
        "edits": [to_dict(plan.edit) for plan in plans],
        "beside": [to_dict(one) for one in kept],
        **record,
    }
    child = make_child(model, tensors, step, config=config, name=name, reference=tuple(edits), beside=tuple(kept))
    _verify(model, child, by_module, left)
    return child


def _checked(model: LanguageModel, edits: Sequence[Intervention]) -> list[InterventionKind]:
    """The edits with the values that they take from the model filled in; raises for those it can't run under."""
    if model.splices:
        raise SurgeryError(f"{model.name} runs through dictionaries, which weights can't hold; bake without them.")
    if not len(edits):
        raise SurgeryError("There is nothing to bake; give at least one edit.")
    with uninterrupted():
        model.bind(edits)  # raises here
    settled = []
    for one in edits:
        if not isinstance(one, InterventionKind):
            raise BakeError(f"{one} is of no kind that bake knows.")
        settled.append(one.settle(model))
    return settled


def _plans(
    model: LanguageModel, edits: Sequence[InterventionKind], places: Places
) -> tuple[list[_Plan], dict[int, str]]:
    """The plans of the edits that weights can hold, and the reasons why they can't hold the others."""
    plans, reasons = [], {}
    for number, edit in enumerate(edits):
        try:
            if edit.when is not None:
                raise SurgeryError(f"it acts {edit.when}, which weights can't tell")
            plans.append(_plan(edit, edit.affine_changes(model), places))
        except (SurgeryError, EditError) as error:
            reasons[number] = str(error).rstrip(".")
    return plans, reasons


def _plan(edit: InterventionKind, changes: Sequence[tuple[str, AffineChange]], places: Places) -> _Plan:
    folds, config = [], {}
    for name, op in changes:
        place = places.at(name)
        if place.through_norm and not isinstance(op, Silence):
            raise SurgeryError(f"{name} lies behind a norm, and weights can only silence what goes into that")
        if place.stage == 2 and not isinstance(op, Add):
            raise SurgeryError(f"at {name} weights can only add a constant")
        if op.shifts:
            switch = places.bias_switch(place.module)
            if switch is None:
                kind = type(places.module).__name__
                raise SurgeryError(f"it takes a bias at {place.module}, for which a {kind} has no place")
            config |= switch
        folds.append(Fold(place, op))
    return _Plan(edit, tuple(folds), config)


def _refusal(edits: Sequence[InterventionKind], reasons: dict[int, str], beside: bool) -> str:
    number, reason = next(iter(reasons.items()))
    others = f" ({len(reasons) - 1} more can't either)" if len(reasons) > 1 else ""
    hint = (
        "there is nothing else to bake, so save it as JSON by itself (save_interventions)"
        if beside or len(reasons) == len(edits)
        else "bake the others and keep it beside the model as JSON (beside=True)"
    )
    return f"{edits[number]} can't be baked: {reason}{others}; {hint}."


def _check_beside(model: LanguageModel, plans: Sequence[_Plan], kept: Sequence[InterventionKind]) -> None:
    """Raise `BakeError` for an edit beside the model at a hook point where the baked model has other values."""
    if not kept:
        return
    with uninterrupted():
        by_key = {edit.hook_point: one for one in kept for edit in model.bind([one])}
    for plan in plans:
        if plan.edit.removed_layers:
            raise BakeError(f"{kept[0]} would have to stay beside a model whose layers have other numbers; leave one.")
        hidden = [key for one in plan.folds for key in one.place.hides if key in by_key]
        if hidden:
            raise BakeError(
                f"{by_key[hidden[0]]} can't be kept beside the model: it acts where {plan.edit} is baked; leave one of "
                "them out."
            )


def _folded(
    model: LanguageModel, plans: Sequence[_Plan], by_module: Mapping[str, Sequence[Fold]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The changed tensors by name, and the changed values of the configuration."""
    module: Any = model.network.module
    config: dict[str, Any] = {}
    for plan in plans:
        config |= plan.config
    old, tensors = state_of(module), {}
    for path, folds in by_module.items():
        weight, bias = fold(module.get_submodule(path), folds)
        tensors[f"{path}.weight"] = weight
        if bias is not None:
            tensors[f"{path}.bias"] = bias
    config |= _untied(model, tensors, old)
    if config:
        shapes = parameter_shapes(type(module), changed_config(model, config))
        fresh = [name for name in shapes if name not in old and name not in tensors]
        for name in fresh:
            if not name.endswith(".bias"):
                raise SurgeryError(f"With {config} the model would have a new {name}; this can't be baked.")
            tensors[name] = next(iter(old.values())).new_zeros(shapes[name])
    return tensors, config


def _untied(model: LanguageModel, tensors: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Any]:
    """Add a tensor each for embedding and LM head, where they share one that changes; returns the change of the
    configuration."""
    module: Any = model.network.module
    paths = {id(inner): path for path, inner in module.named_modules()}
    ends = [module.get_input_embeddings(), module.get_output_embeddings()]
    names = [f"{paths[id(end)]}.weight" for end in ends]
    if ends[0].weight is not ends[1].weight or not any(name in tensors for name in names):
        return {}
    shared = next(old[name] for name in names if name in old)
    for name in names:
        tensors.setdefault(name, shared)
    return {"tie_word_embeddings": False}


def _is_silent(places: Places, layer: int, tensors: dict[str, Tensor]) -> bool:
    """Whether the matrices and biases with which a layer writes are zero."""
    paths = [places.at(f"blocks.{layer}.{name}").module for name in PARTS.values()]
    changed = [tensors.get(f"{path}.{part}") for path in paths for part in ("weight", "bias")]
    return not any(bool(one.any()) for one in changed if one is not None)


def _verify(model: LanguageModel, child: Child, by_module: Mapping[str, Sequence[Fold]], layers: Sequence[int]) -> None:
    """Raise `BakeError` for a child whose logits differ from those of its parent under the edits.

    In 16 bits rounding would hide an error, so both compute in float32, the child with what was folded before it was
    rounded. `layers` are those of the model that are left.
    """
    with uninterrupted():
        rules = [ungated(part.positions) for edit in model.bind(child.reference) for part in edit.parts]
    named = [max(rule) for rule in rules if isinstance(rule, tuple)]
    length = min(max([PROBE, *(position + 2 for position in named)]), model.network.n_ctx)
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.network.vocab_size, (2, length), generator=chance).to(model.device)
    parent, baked_model = in_float32(model), in_float32(child.model)
    if not is_exact(model):
        widen(baked_model.network.module, _exact(model, by_module, layers))
    with uninterrupted(), torch.inference_mode():
        with parent.intervening(child.reference):
            wanted = parent(tokens, prompt_length=length // 2)
        with baked_model.intervening(child.beside):
            baked_logits = baked_model(tokens, prompt_length=length // 2)
    largest = max(1.0, float(wanted.abs().max()))
    off = float((wanted - baked_logits).abs().max())
    if not off <= 1000 * torch.finfo(wanted.dtype).eps * largest:
        raise BakeError(
            f"These edits can't be baked exactly into a {type(model.network.module).__name__}: a logit is {off:.2g} "
            "away from that of the model under the edits."
        )


def _exact(
    model: LanguageModel, by_module: Mapping[str, Sequence[Fold]], layers: Sequence[int]
) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """The parameters that were folded, not rounded, by the module's path in the child; folded anew at every call."""

    def parameters(module: nn.Module, folds: Sequence[Fold]) -> dict[str, Tensor]:
        weight, bias = fold(module, folds, torch.float32)
        return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

    prefix, exact = layers_path(model), {}
    for path, folds in by_module.items():
        module, where = model.network.module.get_submodule(path), path
        if path.startswith(f"{prefix}."):
            number, _, rest = path.removeprefix(f"{prefix}.").partition(".")
            if int(number) not in layers:
                continue
            where = f"{prefix}.{layers.index(int(number))}.{rest}"
        exact[where] = functools.partial(parameters, module, folds)
    return exact
