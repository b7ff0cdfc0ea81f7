"""What SAELens keeps beside the weights of a dictionary goes into the weights, which stay the same function.

Source: SAELens 6.54, `sae_lens/saes/`: `fold_activation_norm_scaling_factor`, `fold_activation_whitening`,
`fold_W_dec_norm`, `GatedSAE.encode`; `sae_lens/training/activation_scaler.py` for the files of a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Number
from workbench.core.forms import parse_json
from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError, check_finite
from workbench.dictionaries.saelens_fields import EXPECTED, RESCALED, WHITENED

SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
"""Files that a checkpoint of SAELens's training has beside the dictionary."""
Tensors = dict[str, Tensor]


@with_config(ConfigDict(extra="allow"))
class Scaler(TypedDict):
    """The content of `activation_scaler.json`."""

    scaling_factor: Number | None
    has_whitening: NotRequired[bool]


def folded(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path | None, factor: float | None = None
) -> Tensors:
    """A foreign dictionary's tensors such that its encoder, activation function and decoder are all that it needs.

    Args:
        config: of `saelens_fields.declared`.
        tensors: in float32 or float64, by SAELens's names.
        folder: where the files of a training may lie.
        factor: of the inputs, where it is known; else a file of the training says it.

    Raises:
        DictionaryError: something that the configuration names is missing, or has another shape.
    """
    tensors = dict(tensors)
    fold_finetuning(config, tensors)
    if config["architecture"] == "gated":
        fold_gate(tensors)
    rule = config.get("normalize_activations")
    if rule in (EXPECTED, WHITENED) and "transcoder" in config["architecture"]:
        raise DictionaryError(f"it normalises what it reads ({rule}) and does not say how what it writes is scaled")
    if rule == EXPECTED:
        fold_scale(config, tensors, _scaling_factor(folder) if factor is None else checked_factor(factor))
    rescale(config, tensors)
    if rule == WHITENED:
        _fold_whitening(config, tensors, folder)
    return tensors


def threshold_of_training(tensors: Tensors) -> None:
    """The one threshold that BatchTopK learns `[]` becomes one threshold per latent `[width]`."""
    if "topk_threshold" in tensors and "b_enc" in tensors:
        if not bool(tensors["topk_threshold"].isfinite().all()):
            raise DictionaryError("its topk_threshold is not finite, so that no latent would ever be active")
        tensors["threshold"] = tensors.pop("topk_threshold").to(tensors["b_enc"]).expand_as(tensors["b_enc"]).clone()


def fold_gate(tensors: Tensors) -> None:
    """A gate and a magnitude become an encoder of magnitudes and the threshold at which the gate opens.

    The gate opens where x W_enc + b_gate > 0, and the magnitude is x W_enc e^r_mag + b_mag; so it opens where the
    magnitude is above b_mag - e^r_mag b_gate.
    """
    for name in ("b_gate", "b_mag", "r_mag", "W_enc"):
        if name not in tensors:
            raise DictionaryError(f"its weights lack {name}")
    gain, bias, gate = tensors["r_mag"].exp(), tensors.pop("b_mag"), tensors.pop("b_gate")  # [width]
    if {gain.shape, bias.shape, gate.shape} != {tensors["W_enc"].shape[1:]}:
        raise DictionaryError("its b_gate, b_mag and r_mag are not one number per latent")
    tensors["threshold"] = bias - gain * gate
    tensors["W_enc"] = tensors["W_enc"] * gain
    tensors["b_enc"] = bias


def unfolded_gate(tensors: Mapping[str, Tensor]) -> Tensors:
    """The inverse of `fold_gate`."""
    gain = tensors["r_mag"].exp()
    own = {"W_enc": tensors["W_enc"] / gain, "b_mag": tensors["b_enc"], "r_mag": tensors["r_mag"]}
    own["b_gate"] = (tensors["b_enc"] - tensors["threshold"]) / gain
    return own | {name: tensors[name] for name in ("W_dec", "b_dec")}


def fold_scale(config: Mapping[str, Any], tensors: Tensors, factor: float) -> None:
    """The dictionary of `factor` times the activations becomes one of the activations themselves."""
    for name, weight in (("W_enc", factor), ("W_dec", 1 / factor), ("b_dec", 1 / factor)):
        tensors[name] = tensors[name] * weight
    if config.get("rescale_acts_by_decoder_norm") and "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"] / factor  # in units of pre-activations times the decoder's norms


def rescale(config: Mapping[str, Any], tensors: Tensors) -> None:
    """Decoder norms with which pre-activations are multiplied go into the encoder."""
    if not config.get("rescale_acts_by_decoder_norm"):
        return
    if config["architecture"] not in RESCALED:
        raise DictionaryError(
            f"rescale_acts_by_decoder_norm is known for {', '.join(RESCALED)}, not for {config['architecture']}"
        )
    norms = tensors["W_dec"].norm(dim=-1)  # [width]
    tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
    tensors["W_dec"] = tensors["W_dec"] / norms.clamp(min=torch.finfo(norms.dtype).tiny)[:, None]


def fold_finetuning(config: Mapping[str, Any], tensors: Tensors) -> None:
    """Factors `[width]` that multiply the latents' values before they are decoded go into the decoder.

    Before SAELens 3 there is no switch for them; later the switch decides.
    """
    names = ("scaling_factor", "finetuning_scaling_factor")
    if config.get("finetuning_scaling_factor") is True and not any(name in tensors for name in names):
        raise DictionaryError("its cfg.json says that it has a fine-tuned scaling factor, and its weights have none")
    for name in names:
        factor = tensors.pop(name, None)
        if factor is None or bool((factor == 1).all()):
            continue
        if config.get("finetuning_scaling_factor") is False:
            raise DictionaryError(
                f"its weights have a fine-tuned {name}, and its cfg.json says that there is none; fold it into W_dec "
                "or set finetuning_scaling_factor"
            )
        if factor.shape != tensors["W_dec"].shape[:1]:
            raise DictionaryError(f"{name} has the shape {tuple(factor.shape)}, which is not one number per latent")
        tensors["W_dec"] = tensors["W_dec"] * factor[:, None]


def _scaling_factor(folder: Path | None) -> float:
    """The factor that SAELens's training measured: √d_in / the activations' mean norm."""
    file = None if folder is None else folder / SCALER
    if file is None or not file.is_file():
        raise DictionaryError(
            f"it was made for inputs of a mean norm of √d_in ({EXPECTED}), and no {SCALER} beside it says by which "
            "factor; fold that into the weights with SAELens's fold_activation_norm_scaling_factor and save it again"
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DictionaryError(f"its {SCALER} can't be read ({error})") from error
    factor = parse_json(content, Scaler, DictionaryError, f"its {SCALER} is damaged")["scaling_factor"]
    return checked_factor(factor)


def checked_factor(factor: Any) -> float:
    """A factor of inputs; raises `DictionaryError` where it is no number above 0."""
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise DictionaryError(f"the factor of its inputs is {shown(factor)}, which is no number above 0")
    return float(factor)


def _fold_whitening(config: Mapping[str, Any], tensors: Tensors, folder: Path | None) -> None:
    """The dictionary of (x - mean) @ matrix becomes one of x."""
    file = None if folder is None else folder / WHITENING
    if file is None or not file.is_file():
        raise DictionaryError(f"it was made for whitened inputs ({WHITENED}), and there is no {WHITENING} beside it")
    try:
        given = load_file(file)
        mean, matrix, inverse = (given[name].float() for name in ("mean", "matrix", "inverse_matrix"))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DictionaryError(f"its {WHITENING} is damaged ({error}); copy it again") from error
    check_finite({"mean": mean, "matrix": matrix, "inverse_matrix": inverse})
    width = tensors["W_enc"].shape[0]
    if {mean.shape, matrix.shape[:1], matrix.shape[1:], inverse.shape[:1], inverse.shape[1:]} != {(width,)}:
        raise DictionaryError(f"its {WHITENING} is of another width than {width}")
    apart = (matrix.double() @ inverse.double() - torch.eye(width)).abs().max()
    if float(apart) > 1e-2:
        raise DictionaryError(f"in its {WHITENING} the two matrices are not each other's inverse")
    tensors["W_enc"] = matrix @ tensors["W_enc"]
    if not config.get("apply_b_dec_to_input"):
        tensors["b_enc"] = tensors["b_enc"] - mean @ tensors["W_enc"]
    tensors["W_dec"] = tensors["W_dec"] @ inverse
    tensors["b_dec"] = tensors["b_dec"] @ inverse + mean
