"""Dictionaries with an encoder, a decoder and an activation function between them: all that their kinds share.

    codes = activation((x - b_dec) W_enc + b_enc)      x_hat = codes W_dec + b_dec

for a sparse autoencoder. A transcoder reads at one hook point and writes at another, such as an MLP's two ends; as in
SAELens it does not subtract `b_dec`, which has the width of what it writes (a shift of the input is the same as one of
`b_enc`). One with a skip path adds x W_skip^T (Paulo, Shabalin, Belrose, "Transcoders beat sparse autoencoders for
interpretability", 2025, arXiv 2501.18823). Parameters have SAELens's names and shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize, pad

from workbench.core.checks import Natural, Positive, checked
from workbench.core.hashing import HALVES
from workbench.core.products import WHOLE, form_of, memory, product
from workbench.core.type_words import shown
from workbench.dictionaries import learning
from workbench.dictionaries.activations import Activation
from workbench.dictionaries.codes import Codes, check_activations, check_codes
from workbench.dictionaries.folder import SAELENS, DictionaryError, check_fit
from workbench.dictionaries.normalising import NONE, normalised, restored, rule_of
from workbench.dictionaries.remembered import keeping_hash
from workbench.dictionaries.settings import Width
from workbench.dictionaries.trainable import Step, Trainable

PLACES = ("hook_point", "reads", "writes", "name")
"""Arguments of constructors that are no settings; what a file says under these names is read elsewhere."""
ROWS = 1024
"""Activations encoded at a time: bounds the `[rows, width]` matrix of pre-activations."""


class SparseCoder(Trainable):
    """An encoder, an activation function and a decoder.

    Matrices that are mapped from a file in 16 bits keep its type until they are used: the first use of the encoder
    brings it into memory in float32, and decoder rows become float32 where they are read. All that is computed, and the
    hash, is in float32.

    Args:
        d_in: width of the activations that are read.
        width: number of latents.
        activation: what makes the codes sparse.
        d_out: width of the activations that are written; None for `d_in`.
        reads, writes: hook points; empty until they are known.
        name: what features call it.
        seed: of the starting weights; None leaves them to be filled.

    Attributes:
        W_enc_T: `[width, d_in]`, the encoder as it is learned: its gradient comes latent by latent.
        W_enc: `[d_in, width]`, the same memory seen the other way round.
        b_enc: `[width]`.
        W_dec: `[width, d_out]`; rows of unit norm in training.
        b_dec: `[d_out]`.
        W_skip: `[d_out, d_in]`, or None.
        normalises: see `Dictionary`; codes are of normalised activations, and such a dictionary does not learn.
    """

    architecture: str = ""
    """What SAELens calls it, where that is not `kind`."""
    centred: bool = True
    """Whether `b_dec` is subtracted from what is read."""
    skip: bool = False
    """Whether a linear path leads past the codes."""

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        activation: Activation,
        *,
        d_out: Positive | None = None,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        super().__init__(name)
        d_out = d_in if d_out is None else d_out
        self.d_in, self.d_out, self.n_features = d_in, d_out, width
        self.reads, self.writes = reads, writes
        self.activation = activation
        self.resamples = activation.resamples
        self._room: tuple[Tensor, Tensor, Tensor] | None = None
        self._packed: frozenset[str] = frozenset()  # the matrices that have their file's 16 bits
        self.W_enc_T = nn.Parameter(torch.empty(width, d_in), requires_grad=False)
        self.b_enc = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.W_dec = nn.Parameter(torch.empty(width, d_out), requires_grad=False)
        self.b_dec = nn.Parameter(torch.zeros(d_out), requires_grad=False)
        self.W_skip = nn.Parameter(torch.zeros(d_out, d_in), requires_grad=False) if self.skip else None
        if seed is not None:
            self._randomise(torch.Generator().manual_seed(seed))

    @property
    def W_enc(self) -> Tensor:
        """See `SparseCoder`; the first use of an encoder that is mapped from a file brings it into memory."""
        if not self.W_enc_T.is_contiguous() or "W_enc_T" in self._packed:
            self._bring_encoder()
        return self.W_enc_T.T

    def _bring_encoder(self) -> None:
        """Lay an encoder that is mapped from a file, where it is `[d_in, width]`, out latent by latent in memory."""
        if "W_enc_T" in self._packed:
            self._widen("W_enc_T")
            return
        with torch.inference_mode(False), keeping_hash(self):
            self.W_enc_T.data = self.W_enc_T.detach().contiguous()

    def _widen(self, *names: str) -> None:
        """Bring matrices in 16 bits into memory in float32."""
        with torch.inference_mode(False), keeping_hash(self):
            for name in self._packed.intersection(names):
                parameter = self.get_parameter(name)
                parameter.data = parameter.detach().to(torch.float32, memory_format=torch.contiguous_format)
            self._packed = self._packed.difference(names)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What moves is laid out before."""
        self._widen(*self._packed)
        if not self.W_enc_T.is_contiguous():
            self._bring_encoder()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *how: Any) -> None:
        """As torch's; values that are loaded are not rounded to 16 bits that a file had."""
        self._widen(*self._packed)
        super()._load_from_state_dict(*how)

    @torch.no_grad()
    def _randomise(self, generator: torch.Generator) -> None:
        """Random unit vectors; an autoencoder's encoder begins as the decoder's transpose."""
        self.W_dec.copy_(normalize(torch.randn(self.W_dec.shape, generator=generator), dim=1))
        if self.centred:
            self.W_enc_T.copy_(self.W_dec)
        else:
            self.W_enc.copy_(normalize(torch.randn(self.W_enc.shape, generator=generator), dim=0))

    @classmethod
    def example(cls) -> Self:
        """d_in 8, width 24."""
        return cls(8, 24, **({"k": 4} if "k" in inspect.signature(cls).parameters else {}))  # type: ignore[call-arg]

    def centre(self, x: Tensor) -> Tensor:
        """What the encoder's product sees: `[..., d_in]`."""
        check_activations(x, self.d_in, self.name, self.b_dec.device)
        x = normalised(x.to(self.W_enc.dtype), self.normalises)
        return x - self.b_dec if self.centred else x

    def encode(self, x: Tensor) -> Codes:
        """Activations as codes: `[..., columns]`."""
        rows = self.centre(x).reshape(-1, self.d_in)  # [rows, d_in]
        learns = torch.is_grad_enabled() and (rows.requires_grad or self.W_enc_T.requires_grad)
        encoder = self.W_enc.T  # as it is used, in memory
        room = None if learns else memory(encoder, min(ROWS, len(rows)), self.n_features)
        parts = []
        for part in rows.split(ROWS):
            if room is None:
                pre = torch.addmm(self.b_enc, part, encoder.T)
            else:
                pre = product(part, encoder, room[: len(part)]).add_(self.b_enc)
            parts.append(self.activation.codes(pre))
        columns = max(values.shape[1] for values, _ in parts)
        values, latents = (
            torch.cat([pad(part, (0, columns - part.shape[1])) for part in kind]) for kind in zip(*parts, strict=True)
        )
        shape = (*x.shape[:-1], columns)
        return Codes(values.view(shape), latents.view(shape), self.n_features)

    def decode(self, codes: Codes) -> Tensor:
        """Codes as activations: `[..., d_out]`."""
        check_codes(codes, self.n_features, self.name, self.b_dec.device)
        values = codes.values.reshape(-1, codes.values.shape[-1]).to(self.b_dec.dtype)
        latents, weight = codes.indices.reshape(values.shape), self.W_dec
        if "W_dec" in self._packed:
            used, latents = latents.unique(return_inverse=True)
            weight = weight[used].float()
        out = embedding_bag(latents, weight, mode="sum", per_sample_weights=values) + self.b_dec
        return out.view(*codes.values.shape[:-1], self.d_out)

    def reconstruct(self, x: Tensor, codes: Codes | None = None) -> Tensor:
        """`decode` in the activations' own units, and x W_skip^T where there is a skip path: `[..., d_out]`."""
        out = super().reconstruct(x, codes)
        if self.rescales:
            out = restored(out, x.to(out.dtype), self.normalises)
        return out if self.W_skip is None else out + x.to(self.W_skip.dtype) @ self.W_skip.T

    def pre_activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder's product sees `[batch, d_in]`, and the pre-activations `[batch, width]`, for training.

        Both are in memory that the next batch of this size uses again: fresh memory for the pre-activations costs a
        sixth of the product that is written to it. The biases are one more input, which is 1: torch would copy them
        to each row of the result first.
        """
        there = None if self._room is None else (len(self._room[0]), self._room[0].dtype, self._room[0].device)
        if self._room is None or there != (len(x), self.W_enc.dtype, self.W_enc.device):
            sizes, new = (self.d_in + 1, 16 * (self.d_in // 16 + 1)), self.W_enc.new_ones  # rows begin at cache lines
            inputs, weights = (new(rows, sizes[1])[:, : sizes[0]] for rows in (len(x), self.n_features))
            self._room = inputs, weights, memory(weights, len(x), self.n_features)
        inputs, weights, pre = self._room
        torch.sub(x, self.b_dec if self.centred else 0, out=inputs[:, :-1])
        weights[:, :-1] = self.W_enc_T
        weights[:, -1] = self.b_enc
        if self.product_form == WHOLE:
            return inputs[:, :-1], torch.mm(inputs, weights.T, out=pre)
        for rows, out in zip(inputs.split(ROWS), pre.split(ROWS), strict=True):
            self.product_form = self.product_form or form_of(rows, weights, out)
            product(rows, weights, out, self.product_form)
        return inputs[:, :-1], pre

    def direction(self, index: int) -> Tensor:
        """The latent's decoder row: `[d_out]`."""
        self.check(index)
        return self.W_dec[index].float() if "W_dec" in self._packed else self.W_dec[index]

    def initialise(self, x: Tensor, target: Tensor | None = None) -> None:
        """`b_dec` becomes the target's geometric median, and the encoder's size such that reconstructions have the
        target's; see `Trainable`."""
        self._check_units()
        self._widen(*self._packed)
        learning.initialise(self, x, target)

    def adopt(self, x: Tensor, target: Tensor | None = None) -> None:
        """Units where no file states them, and decoder rows of norm 1; see `Trainable`."""
        self._check_units()
        self._widen(*self._packed)
        learning.adopt(self, x, target)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """The activation function's; see `Trainable`."""
        rows = self.centre(x)
        self.activation.calibrate((torch.addmm(self.b_enc, part, self.W_enc) for part in rows.split(ROWS)), len(rows))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group for each parameter; see `Trainable`."""
        self._widen(*self._packed)
        ratio = self.unit_out / self.unit_in
        sizes = {"W_enc_T": ratio, "W_dec": 1.0, "W_skip": ratio}  # all others have the unit of what is written
        return [
            {"params": [parameter], "lr": lr * sizes.get(name, self.unit_out), "name": name}
            for name, parameter in ((_short(name), parameter) for name, parameter in self.named_parameters())
        ]

    def loss_and_gradients(
        self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None, sparsity: float = 1.0
    ) -> Step:
        """Squared error, penalty and auxiliary loss; see `Trainable`."""
        self._check_units()
        return learning.loss_and_gradients(self, x, target, dead, sparsity)

    @property
    def prefixes(self) -> Sequence[int]:
        """How many of the first latents reconstruct alone, in kinds that learn so; their losses count as auxiliary."""
        return ()

    def _check_units(self) -> None:
        """Refuse to learn where activations are normalised first: losses are in the activations' own units."""
        if self.normalises != NONE:
            raise DictionaryError(
                f"{self.name} normalises each activation ({self.normalises}) and does not learn here; train a new one."
            )

    @torch.no_grad()
    def constrain(self) -> None:
        """Decoder rows of unit norm; the activation function's parameters in their range."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12))
        self.activation.constrain()

    def resample(
        self,
        x: Tensor,
        dead: Tensor,
        target: Tensor | None = None,
        *,
        optimiser: torch.optim.Optimizer | None = None,
        generator: torch.Generator | None = None,
    ) -> int:
        """Bricken et al. 2023; see `learning.resample`."""
        return learning.resample(self, x, dead, target, optimiser=optimiser, generator=generator)

    def tensors(self) -> dict[str, Tensor]:
        """The weights by SAELens's names."""
        tensors = {_short(name): tensor for name, tensor in self.state_dict().items()}
        tensors |= {name: tensors[name].float() for name in self._packed}
        return {"W_enc": tensors.pop("W_enc_T").T.contiguous()} | tensors

    def deciding_settings(self) -> dict[str, Any]:
        """Without those that only learning uses; see `Dictionary`."""
        learns = self.activation.only_learns
        settings = {name: value for name, value in super().deciding_settings().items() if name not in learns}
        stated = {} if self.normalises == NONE else {"normalises": self.normalises}
        return settings | {"centred": self.centred} | stated

    def config(self) -> dict[str, Any]:
        """SAELens's fields, and ours under `workbench`."""
        settings = self.activation.settings()
        transcodes = not self.centred
        config = {
            "architecture": self.architecture or self.kind,
            "d_in": self.d_in,
            "d_sae": self.n_features,
            "dtype": str(self.b_dec.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": self.centred,
            "normalize_activations": self.normalises,
            "reshape_activations": "hook_z" if self.reads.endswith("hook_z") and not transcodes else "none",
            "metadata": {"sae_lens_version": SAELENS, "sae_lens_training_version": None, "hook_name": self.reads},
            "workbench": {"settings": settings} | self.origin(),
        }
        if "k" in settings:
            config |= {"k": settings["k"], "rescale_acts_by_decoder_norm": False}
        if transcodes:
            config["d_out"] = self.d_out
            config["metadata"]["hook_name_out"] = self.writes
        if "model_name" in self.provenance:
            config["metadata"]["model_name"] = self.provenance["model_name"]
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """See `Dictionary`."""
        own = config.get("workbench") or {}
        known = {name: config[name] for name in config if name not in PLACES} | own.get("settings", {})
        accepted = {name: known[name] for name in inspect.signature(cls).parameters if name in known}
        accepted |= {"seed": None, "d_in": config["d_in"], "width": config["d_sae"]}
        with torch.device("meta"):  # the weights take their places below; what cfg.json says takes no memory
            coder = cls(**accepted)
        for name in coder.activation.settings():
            if name not in known and name not in coder.activation.only_learns:
                raise DictionaryError(
                    f"it is a dictionary of the kind {cls.kind}, and its cfg.json does not say {name}"
                )
        coder.centred = _is_centred(config, cls)
        coder.normalises = rule_of(config)
        coder.take_origin(own)
        check_fit(coder.tensors(), tensors)
        by_name = {"W_enc_T": tensors["W_enc"].T} | dict(tensors)  # as it is in memory, until it is used
        coder.load_state_dict({name: by_name[_short(name)] for name in coder.state_dict()}, assign=True)
        if coder.b_dec.dtype == torch.float32:
            halves = (name for name in ("W_enc_T", "W_dec") if coder.get_parameter(name).dtype in HALVES)
            coder._packed = frozenset(halves)
        return coder


def _is_centred(config: Mapping[str, Any], kind: type[SparseCoder]) -> bool:
    """Whether `b_dec` is subtracted from what is read, as a configuration states it."""
    stated = config.get("apply_b_dec_to_input", False if kind.transcodes else None)
    if not isinstance(stated, bool):
        raise DictionaryError(f"apply_b_dec_to_input is true or false, not {shown(stated)}")
    if stated and kind.transcodes:
        raise DictionaryError("apply_b_dec_to_input is for what writes where it reads, which a transcoder does not")
    return stated


def _short(name: str) -> str:
    """`activation.threshold` → `threshold`."""
    return name.rsplit(".", 1)[-1]
