"""The classes of dictionary_learning as dictionaries here, from the tensors of their state.

    AutoEncoder, AutoEncoderNew     standard                 GatedAutoEncoder          gated
    AutoEncoderTopK                 topk                     JumpReluAutoEncoder       jumprelu
    BatchTopKSAE                    batchtopk                MatryoshkaBatchTopKSAE    matryoshka_batchtopk

Source: https://github.com/saprmarks/dictionary_learning, `dictionary_learning/dictionary.py`, `trainers/` (0.1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.core.checks import as_integer
from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.saelens_folding import fold_gate
from workbench.dictionaries.weights_file import as_single, check_names, check_shapes, matrix_of

LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
DIRECT = {"W_enc", "b_enc", "W_dec", "b_dec"}
CLASSES: dict[str, set[str]] = {
    "AutoEncoder": LINEAR | {"bias"},
    "AutoEncoderNew": LINEAR | {"decoder.bias"},
    "GatedAutoEncoder": {"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"},
    "JumpReluAutoEncoder": DIRECT | {"threshold"},
    "AutoEncoderTopK": LINEAR | {"b_dec"},
    "BatchTopKSAE": LINEAR | {"b_dec"},
    "MatryoshkaBatchTopKSAE": DIRECT | {"threshold", "group_sizes"},
}
"""Classes, and the names of the tensors that each needs."""
COUNTED = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
"""Classes with a number k, in the state and in the configuration."""
ONE = (1.0, 1e-8, 1e-5)
"""Norm of a decoder row that counts as 1, with the tolerances of `torch.allclose`."""


def class_of(tensors: Mapping[str, Tensor]) -> str:
    """The class whose state has these names.

    Raises:
        DictionaryError: none has, or two.
    """
    names = set(tensors)
    found = [word for word, own in CLASSES.items() if own <= names and not names - own - _optional(word)]
    if not found:
        raise DictionaryError(
            "there is no config.json beside it, and its tensors are those of no class of dictionary_learning"
        )
    if len(found) > 1:
        raise DictionaryError(
            f"its tensors may be those of {' or '.join(sorted(found))}, which compute different things; put the "
            "config.json of the training beside it"
        )
    return found[0]


def read_class(word: str, tensors: dict[str, Tensor], file: str, *, k: Any, across: bool) -> Dictionary:
    """The dictionary of a class.

    Args:
        word: one of `CLASSES`.
        tensors: its state.
        file: name of the file, for errors.
        k: as the configuration states it; None where there is none.
        across: whether it reads and writes at two hook points; then the centre that it subtracts goes into `b_enc`.

    Raises:
        DictionaryError: a tensor is missing or has another shape, two numbers k contradict each other, or the class has
            no form across hook points here.
    """
    if word == "BatchTopKSAE" and "threshold" not in tensors:
        raise DictionaryError(
            f"its {file} has no threshold, so that which latents are active depends on the other activations of a batch"
        )
    check_names(tensors, file, CLASSES[word], _optional(word))
    count = _count(tensors, file, k) if word in COUNTED else None
    sizes = tensors.pop("group_sizes", None)
    for name in ("k", "threshold") if word == "AutoEncoderTopK" else ("k",):
        tensors.pop(name, None)
    tensors = as_single(tensors, file)
    own = _direct(word, tensors, file)
    width = len(own["W_dec"])
    if word == "GatedAutoEncoder":
        fold_gate(own)
        return _built("gated", own, centred=True, across=across)
    if word == "AutoEncoder":
        _normalise(own)
    if word in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        own["threshold"] = tensors["threshold"].clamp(min=0).to(own["b_enc"].dtype).expand(width).clone()
    stated: dict[str, Any] = {} if count is None else {"k": count}
    if word == "MatryoshkaBatchTopKSAE":
        stated["widths"] = _widths(sizes, width, file)
    kind = {"AutoEncoder": "standard", "AutoEncoderNew": "standard", "JumpReluAutoEncoder": "jumprelu"}.get(word)
    kind = kind or {"AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk"}.get(word, "matryoshka_batchtopk")
    return _built(kind, own, centred=word not in ("AutoEncoderNew", "JumpReluAutoEncoder"), across=across, **stated)


def _direct(word: str, tensors: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """The tensors under the names here, of the shapes that the encoder's implies."""
    direct = word in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
    first = "W_enc" if direct else "encoder.weight"
    width, d = matrix_of(tensors, first, file)
    width, d = (d, width) if direct else (width, d)
    latents = ("b_enc", "encoder.bias", "r_mag", "gate_bias", "mag_bias")
    latents += ("threshold",) if word == "JumpReluAutoEncoder" else ()
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(latents, (width,))
    shapes |= dict.fromkeys(("bias", "decoder.bias", "decoder_bias", "b_dec"), (d,))
    shapes |= {"W_dec": (width, d), "decoder.weight": (d, width)}
    if word in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        shapes["threshold"] = ()
    check_shapes(tensors, file, shapes, f"its {first} {[width, d] if not direct else [d, width]}")
    if direct:
        return dict(tensors)
    names = {"encoder.bias": "b_enc", "bias": "b_dec", "decoder.bias": "b_dec", "decoder_bias": "b_dec"}
    names |= {"gate_bias": "b_gate", "mag_bias": "b_mag"}
    own = {names.get(name, name): one for name, one in tensors.items() if not name.endswith(".weight")}
    own |= {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T.contiguous()}
    if word == "BatchTopKSAE":
        own.pop("threshold")
    return own


def _normalise(own: dict[str, Tensor]) -> None:
    """Decoder rows of norm 1, their norms in the encoder, as `AutoEncoder.from_pretrained` makes it."""
    norms = own["W_dec"].norm(dim=1)
    wanted, near, share = ONE
    if torch.allclose(norms, torch.full_like(norms, wanted), rtol=share, atol=near):
        return
    if not bool((norms > 0).all()):
        raise DictionaryError(
            "a row of its decoder is 0 and others have no norm of 1, so that they can't be brought to 1"
        )
    own["W_dec"] = own["W_dec"] / norms[:, None]
    own["W_enc"], own["b_enc"] = own["W_enc"] * norms, own["b_enc"] * norms


def _built(kind: str, own: dict[str, Tensor], *, centred: bool, across: bool, **stated: Any) -> Dictionary:
    """The dictionary of a kind, or of its transcoder."""
    width, d_out = own["W_dec"].shape
    if across:
        if kind == "gated":
            raise DictionaryError("it is a gated transcoder, and no kind here is")
        if "batchtopk" in kind:
            kind, stated = "jumprelu", {}
        if centred:
            own["b_enc"] = own["b_enc"] - own["b_dec"] @ own["W_enc"]
        kind, centred = ("transcoder" if kind == "standard" else f"{kind}_transcoder"), False
    config = {"d_in": own["W_enc"].shape[0], "d_out": d_out, "d_sae": width, "apply_b_dec_to_input": centred}
    return Dictionary.kind_called(kind).from_config(config | stated, own)


def _count(tensors: Mapping[str, Tensor], file: str, stated: Any) -> int:
    """The one number k of the state and the configuration."""
    inside = tensors.get("k")
    if inside is not None and inside.numel() != 1:
        raise DictionaryError(f"k in its {file} is one number, not {list(inside.shape)}")
    numbers = [one for one in (None if inside is None else float(inside), stated) if one is not None]
    if not numbers:
        raise DictionaryError(f"neither its {file} nor its config.json says k")
    whole = [as_integer(int(one) if isinstance(one, float) and one.is_integer() else one) for one in numbers]
    if None in whole or min(one or 0 for one in whole) < 1:
        raise DictionaryError(f"its k is {shown(numbers[-1])}, and it should be a whole number from 1")
    if len(set(whole)) > 1:
        raise DictionaryError(f"its {file} says k = {whole[0]}, and its config.json k = {whole[1]}")
    return whole[0] or 1


def _widths(sizes: Tensor | None, width: int, file: str) -> list[int]:
    """How many latents reconstruct alone at each level."""
    if sizes is None or sizes.ndim != 1 or not len(sizes) or bool((sizes < 1).any()) or int(sizes.sum()) != width:
        raise DictionaryError(f"group_sizes in its {file} are whole numbers from 1 that sum to {width:,}")
    return [int(one) for one in sizes.cumsum(0)]


def _optional(word: str) -> frozenset[str]:
    """Names that a state may have beside those that are needed."""
    names = {"AutoEncoderTopK": {"k", "threshold"}, "BatchTopKSAE": {"k", "threshold"}, "MatryoshkaBatchTopKSAE": {"k"}}
    return frozenset(names.get(word, ()))
