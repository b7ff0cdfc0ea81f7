"""Experts: models with those neurons of every layer that a kind of text uses most.

Cai et al., "Read-ME" (2024), arXiv 2410.19123, cut experts out of a dense model by the neurons that are most active on
each domain. A neuron adds its activation times its column of the down projection, of size |a_i| · ‖w_down_i‖ (as for
activation sparsity, arXiv 2411.02335). All layers keep equally many neurons, and the expert is an ordinary checkpoint
with narrower MLPs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.core.checks import Flags, Natural, Number, Positive, checked
from workbench.core.precision import in_float64
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.model.edits import Edit
from workbench.model.hookpoints import HookPointError
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.weights import ModelError, parameters_of, state_of
from workbench.model.widened import in_float32
from workbench.surgery.child import Child, make_child
from workbench.surgery.child_building import PROBE, SurgeryError, changed_config, parameter_shapes, tolerance
from workbench.surgery.inputs import as_model, load_calibration
from workbench.surgery.operations.matrices import as_stored, out_in
from workbench.surgery.operations.neuron_rows import neuron_matrices
from workbench.surgery.registry import Argument, Cancelled, Operation, register

WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")
"""Names of the width of an MLP in configurations that may leave it to a multiple of the stream's."""


@checked(SurgeryError)
def neuron_use(
    model: LanguageModel | Child,
    corpus: Corpus,
    tokens: Positive = 4096,
    *,
    seed: Natural = 0,
    cancel: Callable[[], bool] | None = None,
) -> Tensor:
    """The mean of |a_i| · ‖w_down_i‖ of each neuron over the tokens of a text, `[layers, d_mlp]`.

    Raises:
        SurgeryError: an architecture whose neurons have no hook point.
        CorpusError: texts without a token to measure on.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    points = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.network.n_layers)]
    try:
        lengths = torch.stack([model.network.neuron_weights(layer, "down").norm(dim=1) for layer in range(len(points))])
    except (ModelError, HookPointError) as error:
        raise SurgeryError(f"The neurons of {model.name} can't be cut: {error}") from error
    corpus.check_tokens(model)
    total, count = in_float64(torch.zeros_like(lengths)), 0
    with uninterrupted(), torch.inference_mode():
        for batch in corpus.batches(model, 256, 4, tokens, seed):
            if cancel is not None and cancel():
                raise Cancelled("Measuring was stopped; nothing has changed.")
            for layer, value in enumerate(model.capture(batch.tokens, points).values()):
                total[layer] += in_float64(value[batch.content].abs()).sum(0)
            count += int(batch.content.sum())
    return (total / count * in_float64(lengths)).float().to(lengths.device)


@checked(SurgeryError)
def masks_by_domain(uses: Mapping[str, Tensor], keep: Number) -> dict[str, Tensor]:
    """The neurons that each domain uses most, equally many in every layer.

    Args:
        uses: the output of `neuron_use`, by domain.
        keep: share of the neurons that stay.

    Returns:
        Bool `[layers, d_mlp]` for each domain.

    Raises:
        SurgeryError: a share that keeps nothing or everything.
    """
    masks = {}
    for domain, use in uses.items():
        number = round(keep * use.shape[1]) if 0 < keep < 1 else 0
        if not 0 < number < use.shape[1]:
            raise SurgeryError(
                f"keep is a number between 0 and 1 by which some of the {use.shape[1]:,} neurons stay and some go, "
                f"not {keep!r}."
            )
        best = use.topk(number, dim=1).indices
        masks[domain] = torch.zeros_like(use, dtype=torch.bool).scatter_(1, best, True)
    return masks


@checked(SurgeryError)
def keep_neurons(
    model: LanguageModel | Child, mask: Flags, *, of: str = "", about: Mapping[str, Any] | None = None
) -> Child:
    """A child with some of the neurons.

    Args:
        model: a model or a child; it stays as it is.
        mask: the neurons that stay, bool `[layers, d_mlp]`, equally many in each layer.
        of: a name for the selection, recorded.
        about: how it was made, as plain data, recorded too.

    Raises:
        SurgeryError: a mask that does not fit, or an architecture whose MLPs can't be narrower.
    """
    model = as_model(model)
    layers, width = model.network.n_layers, model.network.neuron_hook_point(0, "post").width
    if mask.dtype != torch.bool or tuple(mask.shape) != (layers, width):
        raise SurgeryError(f"The mask is bool [{layers}, {width}], not {mask.dtype} {list(mask.shape)}.")
    left = sorted(set(mask.sum(1).tolist()))
    if len(left) > 1 or left[0] == 0:
        raise SurgeryError(f"Every layer must keep equally many neurons, at least one; these keep {left}.")
    tensors: dict[str, Tensor] = {}
    mask = mask.to(model.device)
    known = parameters_of(model.network.module)
    for layer in range(layers):
        down, feeding = neuron_matrices(model, layer)
        for path, neurons in feeding.items():
            module: Any = model.network.module.get_submodule(path)
            stays = mask[layer][neurons]
            tensors[f"{path}.weight"] = as_stored(module, out_in(module)[stays])
            if f"{path}.bias" in known:
                tensors[f"{path}.bias"] = known[f"{path}.bias"][stays]
        module = model.network.module.get_submodule(down)
        tensors[f"{down}.weight"] = as_stored(module, out_in(module)[:, mask[layer]])
    chosen = [mask[layer].nonzero()[:, 0].tolist() for layer in range(layers)]
    step = {"operation": "keep_neurons", "of": of, **(about or {}), "neurons": left[0], "chosen": chosen}
    field = _width_field(model, left[0], {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    child = make_child(model, tensors, step, config={field: left[0]})
    _check_cut(model, child.model, mask)
    return child


def _width_field(model: LanguageModel, narrower: int, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """The value of the configuration with which the MLPs of all layers get another width, by the shapes that follow.

    Args:
        model: a model.
        narrower: the new width.
        wanted: the shapes of the tensors that change; all others keep theirs.

    Raises:
        SurgeryError: there is none.
    """
    points = [model.network.neuron_hook_point(layer, "post") for layer in range(model.network.n_layers)]
    before = {name: tuple(tensor.shape) for name, tensor in state_of(model.network.module).items()}
    sizes = model.network.config.get_text_config().to_dict()
    as_wide = [name for name, value in sizes.items() if value == points[0].width and not isinstance(value, bool)]
    for name in dict.fromkeys([*as_wide, *(one for one in WIDTHS if one in sizes)]):
        try:
            shapes = parameter_shapes(type(model.network.module), changed_config(model, {name: narrower}))
        except SurgeryError:  # such as a width that heads don't divide
            continue
        if shapes == {**before, **wanted}:
            return name
    raise SurgeryError(f"The configuration of {model.name} has no width of its MLPs that could change.")


@torch.no_grad()
def _check_cut(model: LanguageModel, child: LanguageModel, mask: Tensor) -> None:
    """Refuse a child that does not compute what the model does with its other neurons at 0, both in float32.

    Raises:
        SurgeryError: a logit differs.
    """
    points = [model.network.neuron_hook_point(layer, "post").name for layer in range(len(mask))]
    model, child = in_float32(model), in_float32(child)
    edits = [Edit(name, (one * 1.0).mul) for name, one in zip(points, mask, strict=True)]
    tokens = torch.arange(PROBE, device=model.device)[None] * 37 % model.network.vocab_size
    with uninterrupted():
        wanted, found = model.run(tokens, edits), child.run(tokens)
    moved = float((found - wanted).abs().max())
    if moved > tolerance(wanted, wanted.dtype):
        raise SurgeryError(
            f"The neurons of {model.name} can't be cut: without them a logit differs by {moved:.2g} from what the "
            "model computes where they are 0."
        )


@checked(SurgeryError)
def extract_expert(
    model: LanguageModel | Child,
    corpus: Corpus,
    keep: Number = 0.5,
    *,
    tokens: Positive = 4096,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Child:
    """A child with the neurons that a corpus uses most.

    Args:
        model: a model or a child; it stays as it is.
        corpus: texts of the domain.
        keep: share of each layer's neurons that stay, between 0 and 1.
        tokens: number of tokens on which use is measured.
        seed: of the choice of the texts.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: as `neuron_use`, `masks_by_domain` and `keep_neurons`.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    masks_by_domain(
        {"": torch.zeros(1, model.network.neuron_hook_point(0, "post").width)}, keep
    )  # refuses keep before the long part
    if progress:
        progress(0.0, "Measuring the use of neurons")
    use = neuron_use(model, corpus, tokens, seed=seed, cancel=cancel)
    about = {"corpus_hash": corpus.hash, "tokens": tokens, "keep": keep, "text_seed": seed}
    return keep_neurons(model, masks_by_domain({"": use}, keep)[""], of=corpus.name, about=about)


def _run(model: LanguageModel, *, corpus: str, **how: Any) -> Child:
    return extract_expert(model, load_calibration(corpus), **how)


register(
    Operation(
        "extract_expert",
        "Cut out an expert",
        "Keeps the neurons that a kind of text uses most; the MLPs get narrower.",
        (
            Argument("corpus", "Texts of the domain", "stories", "text"),
            Argument("keep", "Share of neurons that stay", 0.75, low=0.0, high=1.0),
            Argument("tokens", "Tokens to look at", 2048, "whole", low=1),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
        neutral="some neurons have to go",
    )
)
