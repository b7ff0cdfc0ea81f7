"""Folders of the tuned-lens project: `config.json` and `params.pt`, a linear map with a bias for each layer.

The map called `i` takes what transformers calls `hidden_states[i]`: 0 is the embedding, i stands behind layer i - 1.
Its result is added to the stream. The files do not state the model but for its name and `unembed_hash`: SHA-256 of the
LM head as NumPy prints it, its corners to one place after the point. Our own files state the model's hash beside it,
under `workbench`, which the project's reader passes over.

Source: https://github.com/AlignmentResearch/tuned-lens, `tuned_lens/nn/lenses.py`, `tuned_lens/utils.py` (0.2.0).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import torch
from pydantic import ConfigDict, with_config
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Positive
from workbench.core.files import replacing
from workbench.core.forms import read_json
from workbench.core.hashing import not_finite
from workbench.core.steady import read_steadily
from workbench.core.torch_files import read_torch, write_torch
from workbench.core.type_words import shown
from workbench.lens.errors import LensError
from workbench.lens.transports import Lens, LensRecord
from workbench.lens.tuned import TunedLens
from workbench.model.language_model import LanguageModel
from workbench.model.lm_head import LMHead

TITLE = "tuned-lens"
CONFIG, PARAMS = "config.json", "params.pt"
TYPE = "linear_tuned_lens"
KNOWN = {
    "base_model_name_or_path",
    "d_model",
    "num_hidden_layers",
    "bias",
    "base_model_revision",
    "unembed_hash",
    "lens_type",
    "workbench",
}
"""Fields that this reader understands; older versions have others, such as `include_input`, which change the maps."""
PRINTED_WHOLE, EDGE = 1000, 3
"""NumPy prints arrays of more values by the first and last so many of each axis."""


class Own(TypedDict):
    """What our files state beside the project's fields."""

    model_name: str
    model_hash: str
    fitted_on: dict[str, Any]


@with_config(ConfigDict(extra="allow"))
class Config(TypedDict):
    """`config.json`."""

    base_model_name_or_path: str
    d_model: Positive
    num_hidden_layers: Positive
    bias: NotRequired[bool]
    base_model_revision: NotRequired[str | None]
    unembed_hash: NotRequired[str | None]
    lens_type: NotRequired[str]
    workbench: NotRequired[Own]


def matches(path: Path) -> bool:
    """Whether a folder has the two files."""
    return (path / CONFIG).is_file() and (path / PARAMS).is_file()


def read(path: Path) -> Lens:
    """The lens in a folder.

    Raises:
        LensError: a file is damaged, a field is unknown, or the maps are not those of the configuration.
    """
    return read_steadily(lambda: _read(path), (path, path / CONFIG, path / PARAMS), LensError)


def _read(path: Path) -> Lens:
    config = read_json(path / CONFIG, Config, LensError, "the configuration of a tuned lens")
    if unknown := sorted({*config} - KNOWN):
        raise LensError(f"{path / CONFIG} has {shown(unknown[0])}, which this reader of tuned-lens 0.2 does not know.")
    if config.get("lens_type", TYPE) != TYPE:
        raise LensError(f"{path / CONFIG} states the lens type {shown(config.get('lens_type'))}; read is {TYPE}.")
    try:
        maps = read_torch(path / PARAMS, LensError, PARAMS)
        weight, bias = _stacked(maps, config)
    except LensError as error:
        raise LensError(f"{path} can't be read as a tuned lens: {str(error).rstrip('.')}.") from error
    layers = tuple(range(-1, config["num_hidden_layers"] - 1))
    own = config.get("workbench")
    if own and not own["model_hash"]:
        raise LensError(f"{path / CONFIG} states an empty hash of its model; save the lens again.")
    if own:
        return TunedLens(weight, bias, LensRecord(own["model_name"], own["model_hash"], layers, own["fitted_on"]))
    stated = {"format": TITLE, "unembed_hash": config.get("unembed_hash")}
    stated["base_model_revision"] = config.get("base_model_revision")
    return TunedLens(weight, bias, LensRecord(config["base_model_name_or_path"], "", layers, stated))


def _stacked(maps: Any, config: Config) -> tuple[Tensor, Tensor]:
    """Weights `[layers, d_model, d_model]` and biases `[layers, d_model]`; without biases these are 0."""
    count, width, biased = config["num_hidden_layers"], config["d_model"], config.get("bias", True)
    fits = isinstance(maps, dict) and len(maps) == count * (2 if biased else 1)  # a stated number may be of any size
    shapes: dict[str, tuple[int, ...]] = {}
    for place in range(count if fits else 0):
        shapes[f"{place}.weight"] = (width, width)
        if biased:
            shapes[f"{place}.bias"] = (width,)
    if not fits or {*maps} != {*shapes}:
        raise LensError(f"its {PARAMS} does not hold {count:,} maps {'with' if biased else 'without'} biases")
    for name, shape in shapes.items():
        one = maps[name]
        if not isinstance(one, Tensor) or tuple(one.shape) != shape or not one.is_floating_point():
            raise LensError(f"{shown(name)} in its {PARAMS} is no tensor of floating-point numbers {list(shape)}")
    if wrong := not_finite(maps):
        raise LensError(f"{shown(wrong)} in its {PARAMS} holds values that are not finite")
    weight = torch.stack([maps[f"{place}.weight"].detach() for place in range(count)])
    if not biased:
        return weight, weight.new_zeros(count, width)
    return weight, torch.stack([maps[f"{place}.bias"].detach() for place in range(count)])


def check(lens: Lens, model: LanguageModel) -> None:
    """Raise `LensError` unless the model is the one that our files state, or has the LM head of the project's."""
    assert lens.about is not None
    if lens.about.model_hash:
        lens.check_model(model)
        return
    stated = lens.about.fitted_on["unembed_hash"]
    if stated is None:
        raise LensError(
            f"This lens of {shown(lens.about.model_name)} states no unembed_hash, by which its model is known; save it "
            "again with tuned-lens 0.2."
        )
    if stated != unembed_hash(model.network.lm_head):
        raise LensError(
            f"This lens was fitted to {shown(lens.about.model_name)}, whose LM head is not that of {model.name}; open "
            "the model that it belongs to."
        )


def write(lens: Lens, folder: Path) -> None:
    """Write a tuned lens as the project saves it; the folder changes places whole.

    Raises:
        LensError: another kind, a lens that leaves layers out, or a folder that can't be written.
    """
    about = lens.about
    if not isinstance(lens, TunedLens) or about is None:
        raise LensError(f"tuned-lens has no place for a {lens.kind} lens; save it with format='workbench'.")
    if about.layers[0] != -1:
        raise LensError(f"tuned-lens has a map for the embedding, and this lens begins behind layer {about.layers[0]}.")
    config: dict[str, Any] = {
        "base_model_name_or_path": about.model_name,
        "d_model": lens.d_model,
        "num_hidden_layers": len(about.layers),
        "bias": True,
        "base_model_revision": about.fitted_on.get("base_model_revision"),
        "unembed_hash": about.fitted_on.get("unembed_hash"),
        "lens_type": TYPE,
        "workbench": {
            "model_name": about.model_name,
            "model_hash": about.model_hash,
            "fitted_on": dict(about.fitted_on),
        },
    }
    maps = {f"{place}.weight": one for place, one in enumerate(lens.weight.unbind())}
    maps |= {f"{place}.bias": one for place, one in enumerate(lens.bias.unbind())}
    with replacing(folder, LensError, note=PARAMS) as temporary:
        temporary.mkdir()
        write_torch(temporary / PARAMS, {name: one.clone() for name, one in maps.items()})
        (temporary / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def unembed_hash(head: LMHead) -> str:
    """The project's hash of an LM head, from the rows that NumPy prints of it."""
    rows = len(head)
    if rows * head.width > PRINTED_WHOLE:
        kept = min(rows, max(2 * EDGE + 1, PRINTED_WHOLE // head.width + 1))
        first = kept - EDGE
        places = [*range(first), *range(rows - EDGE, rows)]
    else:
        places = [*range(rows)]
    printed = np.array_str(head.rows(places).cpu().numpy(), precision=1)
    return hashlib.sha256(printed.encode()).hexdigest()
