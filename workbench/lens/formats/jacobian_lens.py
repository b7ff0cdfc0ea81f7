"""Files of the Jacobian lens's project and of TransformerLens: one `.pt` with a matrix for each layer.

    {"J": {layer: [d_model, d_model]}, "n_prompts", "source_layers", "d_model", "metadata"?}       a lens
    {"jacobian_sum": {layer: ...}, "n_done", "next_idx", "source_layers", "target_layer", "skip_first"}  sums of a fit

`J[layer]` maps what block `layer` returns to what the last block returns, in front of the final norm. A folder may hold
one under the name `lens.pt`. The files state no hash of the model. Where they are not ours, the lens is compared with
what the model itself does: with gradients through its last block.

Source: https://github.com/anthropics/jacobian-lens; TransformerLens 4, `tools/analysis/jacobian_lens.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.checks import as_integer
from workbench.core.files import replacing
from workbench.core.hashing import not_finite
from workbench.core.paths import check_stays
from workbench.core.steady import read_steadily
from workbench.core.torch_files import read_torch, write_torch
from workbench.core.type_words import shown
from workbench.interventions.features import REFERENCE_TEXTS
from workbench.lens.errors import LensError
from workbench.lens.jacobian import JacobianLens
from workbench.lens.jacobian_streams import streams_of
from workbench.lens.transports import Lens, LensRecord
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel
from workbench.model.widened import in_float32

TITLE = "jacobian-lens"
FILE = "lens.pt"
ESTIMATOR = "jacobian_lens"
"""What TransformerLens records of fits of this kind; it has others."""
ALIKE = 0.3
"""The least cosine between what a lens and its model add to random gradients on their way through the last block."""
DRAWS, FIRST = 4, 4
"""Random gradients that are compared, and the first position of a text that counts there."""


def matches(path: Path) -> bool:
    """Whether it is a `.pt`, or a folder with one under the project's name."""
    return path.suffix == ".pt" if path.is_file() else (path / FILE).is_file()


def read(path: Path) -> Lens:
    """The lens in a file, or the mean of the sums in one.

    Raises:
        LensError: the file is damaged, holds something else, or a lens for another layer than the last.
    """
    file = path if path.is_file() else path / FILE
    if file != path:
        check_stays(file, path, LensError)
    try:
        content = read_steadily(lambda: read_torch(file, LensError, "it"), (file,), LensError)
        return _lens_of(content)
    except LensError as error:
        raise LensError(f"{file} can't be read as a Jacobian lens: {str(error).rstrip('.')}.") from error


def _lens_of(content: Any) -> JacobianLens:
    if not isinstance(content, Mapping) or not {"J", "jacobian_sum"} & content.keys():
        raise LensError("it has neither J nor jacobian_sum")
    sums = "J" not in content
    matrices = content["jacobian_sum" if sums else "J"]
    count = as_integer(content.get("n_done" if sums else "n_prompts", 0))
    if count is None or count < (1 if sums else 0):
        raise LensError(f"it states {shown(count)} texts")
    metadata = content.get("metadata") or {}
    if not isinstance(matrices, Mapping) or not matrices or not isinstance(metadata, Mapping):
        raise LensError("it holds no matrices by layer")
    if metadata.get("estimator", ESTIMATOR) != ESTIMATOR:
        raise LensError(f"it was fitted by {shown(metadata['estimator'])}, which is another lens")
    layers = sorted(matrices, key=str) if not all(type(one) is int for one in matrices) else sorted(matrices)
    if not all(type(one) is int and one >= 0 for one in layers):
        raise LensError(f"its layers are not numbered from 0: {shown(layers)}")
    stated = content.get("source_layers", layers)
    if not isinstance(stated, list | tuple) or sorted(stated) != layers:
        raise LensError("its source_layers are not those of its matrices")
    width = _width(matrices, content.get("d_model"))
    weight = torch.stack([matrices[layer].detach().reshape(width, width) for layer in layers])
    target = content.get("target_layer", metadata.get("target_layer", layers[-1] + 1))
    if target != layers[-1] + 1:
        raise LensError(f"it maps to layer {shown(target)}, and its last matrix is that of layer {layers[-1]}")
    own = metadata.get("workbench", {})
    own = own if isinstance(own, Mapping) else {}
    name, hash, fitted_on = (
        own.get("model_name", metadata.get("model_name")),
        own.get("model_hash"),
        own.get("fitted_on"),
    )
    about = {**fitted_on} if isinstance(fitted_on, Mapping) else {"format": TITLE, "prompts": count}
    record = LensRecord(_text(name), _text(hash), tuple(layers), about)
    return JacobianLens(weight.float() / count if sums else weight, record)


def _width(matrices: Mapping[int, Any], stated: Any) -> int:
    """Width of the stream; raises `LensError` unless each matrix is square, that wide and finite."""
    first = next(iter(matrices.values()))
    width = first.shape[0] if isinstance(first, Tensor) and first.ndim == 2 else 0
    for layer, one in matrices.items():
        if not isinstance(one, Tensor) or one.shape != (width, width) or not width or not one.is_floating_point():
            raise LensError(f"its matrix of layer {layer} is no tensor of floating-point numbers [{width}, {width}]")
    if stated is not None and stated != width:
        raise LensError(f"it states a d_model of {shown(stated)}, and its matrices are {width} wide")
    if wrong := not_finite({str(layer): one for layer, one in matrices.items()}):
        raise LensError(f"its matrix of layer {wrong} holds values that are not finite")
    return width


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def check(lens: Lens, model: LanguageModel) -> None:
    """Raise `LensError` unless the model is the one that our files state, or does what the lens says it does."""
    assert lens.about is not None
    if lens.about.model_hash:
        lens.check_model(model)
        return
    alike = _likeness(lens, in_float32(model))
    if not alike >= ALIKE:
        raise LensError(
            f"This lens of {shown(lens.about.model_name) if lens.about.model_name else 'a model without a name'} was "
            f"not fitted to {model.name}: random gradients go through its last block in another way (cosine "
            f"{alike:.2f}); open the model that it belongs to."
        )


def _likeness(lens: Lens, model: LanguageModel) -> float:
    """The cosine of what a lens and the model add to random gradients on their way through the last block."""
    last, width = model.network.n_layers - 1, model.network.d_model
    upon = torch.randn(DRAWS, 1, width, generator=torch.Generator().manual_seed(0))
    added = torch.zeros(DRAWS, width)
    for text in REFERENCE_TEXTS:
        ids = torch.arange(24)[None] % model.network.vocab_size
        tokens = model.as_tokens(ids) if model.tokenizer is None else model.to_tokens(text)
        tokens = tokens[:, : model.network.n_ctx].expand(DRAWS, -1)
        with taking_gradients():
            streams = streams_of(model, tokens, apart=True)
            target, source = streams[last].value, streams[last - 1].leaf
            first = min(FIRST, tokens.shape[1] - 1)
            whole = upon.to(target).expand_as(target).clone()
            whole[:, :first] = 0
            (gradient,) = torch.autograd.grad(target, source, whole)
        added += gradient[:, first:].mean(1).cpu() - upon[:, 0]
    carried = lens.transport(last - 1, torch.eye(width)).T.cpu()  # J, whose rows are those of the last stream
    ours = upon[:, 0] @ carried - upon[:, 0]
    return float(torch.nn.functional.cosine_similarity(ours.flatten(), added.flatten(), dim=0))


def write(lens: Lens, folder: Path) -> None:
    """Write a Jacobian lens as the project does: to a path that ends in `.pt`, or to `lens.pt` in a folder.

    Raises:
        LensError: another kind, a place that holds something else, or one that can't be written.
    """
    about = lens.about
    if not isinstance(lens, JacobianLens) or about is None:
        raise LensError(f"{TITLE} has no place for a {lens.kind} lens; save it with format='workbench'.")
    file = folder if folder.suffix == ".pt" else folder / FILE
    prompts, corpus = about.fitted_on.get("prompts"), about.fitted_on.get("corpus")
    own = {"model_name": about.model_name, "model_hash": about.model_hash, "fitted_on": dict(about.fitted_on)}
    metadata: dict[str, Any] = {"target_layer": about.layers[-1] + 1, "estimator": ESTIMATOR, "workbench": own}
    content: dict[str, Any] = {
        "J": dict(zip(about.layers, lens.weight.unbind(), strict=True)),
        "n_prompts": prompts if type(prompts) is int else 0,
        "source_layers": [*about.layers],
        "d_model": lens.d_model,
        "metadata": metadata | ({"corpus": corpus} if isinstance(corpus, str) else {}),
    }
    if file.exists():
        read(file)  # what another program wrote is not replaced
    with replacing(file, LensError, owned=file.exists()) as temporary:
        write_torch(temporary, content)
