"""Merges of several models by the recipes of mergekit, checked against its version 0.1.5.

Tensors are read from safetensors files one by one, in the types that the files have, and merged as mergekit does: to
the bit on one version of torch, random masks included. The child's type is that of the opened base, so its values are
mergekit's wherever that type is as wide as the merged tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from workbench.core.checks import Natural, checked
from workbench.core.hashing import combined
from workbench.core.progress import Progress
from workbench.interventions.opening import load_model
from workbench.model.language_model import LanguageModel
from workbench.model.weights import state_of
from workbench.surgery.child import Child, make_child
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.inputs import as_model
from workbench.surgery.merging.checkpoints import folder_of, in_folder, in_memory, layout_of
from workbench.surgery.merging.methods import METHODS, Draws
from workbench.surgery.merging.plan import Opened, layers_of, merged, plan
from workbench.surgery.merging.recipe import Recipe, check_recipe, read_recipe
from workbench.surgery.merging.vocabulary import check_alike, child_tokenizer, common_rows
from workbench.surgery.registry import Argument, Cancelled, Operation, register

SINGLE_STACK = frozenset({"gpt2", "gpt_neox", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3", "gemma", "gemma2"})
"""Architectures whose tensors mergekit divides into those before and those after the layers as the model does."""


PathOrYaml = Annotated[str, "a path, or YAML"]
"""No path alone, which would have no line breaks."""
BASE = "the model itself"
"""The base of a merge that has no recipe."""
JOINING = tuple(name for name, method in METHODS.items() if method.models[1] > 1)
"""Methods that merge several models."""


@checked(SurgeryError)
def merge(
    recipe: PathOrYaml | Path | Mapping[str, Any],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Child:
    """The child of a recipe of mergekit; its parent is the base model, or the first one where there is none.

    Tensors of the models are read one at a time, and each merged one is at once in the child's type.

    Args:
        recipe: a YAML file, a YAML text, or the same as a mapping. Methods are linear, slerp, ties, dare_ties,
            dare_linear, task_arithmetic and passthrough. Models are local folders or names on Hugging Face.
        device, dtype: of the parent, as for `load_model`; the child has its type.
        seed: of DARE's random masks: mergekit's `--random-seed`.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: a recipe that can't be read, a field of it that is not read, models that can't be merged.
        ModelError: the parent can't be opened.
        Cancelled: `cancel` returned True.
    """
    read = read_recipe(recipe)
    folder_of(read.base)
    parent = as_model(load_model(read.base, device=device, dtype=dtype))
    layout = layout_of(parent)
    models = {name: in_folder(name, parent, layout) for name in read.models}
    return _merge(Opened(read, models, layout), parent, seed, _Teller(progress, cancel))


def _merge(opened: Opened, parent: LanguageModel, seed: int, tell: _Teller) -> Child:
    """The child of a recipe whose models are open."""
    recipe, models = opened.recipe, opened.models
    check_alike(models)
    rows = common_rows(recipe, models)
    targets = plan(opened)
    _check_ends(recipe, parent)
    unread = [one for one in models.values() if not one.weights_hash]
    tell.steps = len(targets) + sum(len(one.places) for one in unread)
    for one in unread:
        one.weights_hash = combined({place: digest for place, digest in one.digests() if tell(f"{one.name}: {place}")})
    if models[recipe.base].weights_hash not in (parent.weights_hash, parent.held_hash):
        raise SurgeryError(f"The weights of {recipe.base} in its files are not those that were opened; copy it again.")
    old, draws = state_of(parent.network.module), Draws(torch.Generator().manual_seed(seed))
    like, tensors = next(iter(old.values())), dict[str, Tensor]()
    for target in targets:  # each in the parent's type as soon as it is merged
        tell(target.name)
        made = merged(target, opened, draws, rows if target.name in opened.layout.rows else None)
        tensors[target.name] = made.to(old.get(target.name, like))
    step: dict[str, Any] = {"operation": "merge", "method": recipe.method.name, "recipe": recipe.content}
    step["of"] = [{"name": one.name, "weights_hash": one.weights_hash} for one in models.values()]
    step |= {"kept": draws.kept / draws.total} if draws.total else {}
    unlike = {one.name: one.unlike for one in models.values() if one.unlike}
    step |= {"unlike": unlike} if unlike else {}
    config, tokenizer = _config(opened, parent, rows), child_tokenizer(recipe, models)
    return make_child(parent, tensors, step, config=config, tokenizer=tokenizer, seed=seed)


class _Teller:
    """Counts steps, reports them, and stops where it is told to."""

    def __init__(self, progress: Progress | None, cancel: Callable[[], bool] | None):
        self.steps = 1
        self._progress: Progress | None = progress
        self._done, self._cancel = 0, cancel

    def __call__(self, what: str) -> bool:
        """Begin a step; True."""
        if self._progress:
            self._progress(self._done / self.steps, what)
        if self._cancel is not None and self._cancel():
            raise Cancelled("Merging was stopped; nothing has changed.")
        self._done += 1
        return True


def _check_ends(recipe: Recipe, parent: LanguageModel) -> None:
    """Refuse several slices of models whose tensors outside of the layers mergekit may take from another slice."""
    first, last = recipe.slices[0], recipe.slices[-1]
    kind = parent.network.config.model_type
    if first != last and kind not in SINGLE_STACK:
        raise SurgeryError(
            f"Slices of a {kind} are not read: it is not known from which of them its tensors outside of the layers "
            f"come; there are {', '.join(sorted(SINGLE_STACK))}."
        )


def _config(opened: Opened, parent: LanguageModel, rows: int | None) -> dict[str, Any]:
    """The values of the configuration that the merge changes."""
    sizes = parent.network.config.get_text_config()
    config: dict[str, Any] = {}
    layers, number = layers_of(opened), parent.network.n_layers
    if layers != list(range(number)):
        config["num_hidden_layers"] = len(layers)
        for key, value in sizes.to_dict().items():  # such as layer_types
            if isinstance(value, list | tuple) and len(value) == number and hasattr(sizes, key):
                config[key] = _per_layer(opened, key)
    if rows is not None and rows != sizes.vocab_size:
        config["vocab_size"] = rows
    return config


def _per_layer(opened: Opened, key: str) -> list[Any]:
    """A list of a configuration with a value for each layer, from the first input of each slice."""
    found = []
    for one in (part.inputs[0] for part in opened.recipe.slices):
        value = opened.models[one.model].config.get_text_config().to_dict()[key]
        found += value[slice(*one.layers)] if one.layers else value
    return found


def _run(
    model: LanguageModel,
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    **how: Any,
) -> Child:
    """The model itself is the base; folders are separated by line breaks or semicolons."""
    folders = [one.strip() for one in how["others"].replace("\n", ";").split(";") if one.strip()]
    if not folders:
        raise SurgeryError("Name the folder of at least one model to merge with this one.")
    missing = [one for one in folders if not Path(one).is_dir()]
    if missing:
        raise SurgeryError(f"There is no folder {missing[0]!r}.")
    method, model = how["method"], as_model(model)
    known = METHODS[method].parameters
    own = {"weight": 1.0} if method == "linear" else {}
    each = {name: how[name] for name in ("weight", "density") if name in known}
    content = {"merge_method": method, "base_model": BASE, "dtype": "float32"}
    content["models"] = [{"model": BASE, "parameters": own}, *({"model": one, "parameters": each} for one in folders)]
    content["parameters"] = {"t": how["t"]} if "t" in known else {}
    layout = layout_of(model)
    models = {BASE: in_memory(model)} | {one: in_folder(one, model, layout) for one in folders}
    opened = Opened(check_recipe(content), models, layout)
    return _merge(opened, model, how["seed"], _Teller(progress, cancel))


register(
    Operation(
        "merge",
        "Merge with other models",
        "Joins the weights of models of one architecture, as mergekit does; recipes are for wb.surgery.merge.",
        (
            Argument("others", "Folders of other models", "", "text", help="Several are separated by semicolons."),
            Argument(
                "method", "Method", "linear", "choice", choices=tuple(one for one in METHODS if one != "passthrough")
            ),
            Argument("weight", "Weight of each", 1.0, help="Beside 1 of this model where they are averaged."),
            Argument("density", "Share of each difference that stays", 0.5, low=0.0, high=1.0),
            Argument("t", "Share of the way to the other (slerp)", 0.5, low=0.0, high=1.0),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
        neutral="a merge with another model is another one, and a merge with none is refused",
    )
)
