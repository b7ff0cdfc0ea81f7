"""Models in GGUF files, the format of llama.cpp, as plain Hugging Face models with their tokenizers.

Weights are dequantised some rows at a time: their float32 values are hashed and rounded to the type that is asked for
before the next are read. Every tensor of the file has to be a parameter of the model in the same shape, and every
parameter has to be in the file. No code is run, and nothing of the package `gguf` reads the file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.core.hashing import Digest, combined, in_pieces, not_finite, values_digest
from workbench.core.progress import Progress
from workbench.core.steady import read_steadily
from workbench.core.type_words import reason_of, shown
from workbench.model.gguf_architectures import architecture_of, settings_of_file
from workbench.model.gguf_header import StoredTensor, read_header
from workbench.model.gguf_settings import HEAD, ROPE_FACTORS
from workbench.model.gguf_tokenizer import ends_of_turns, read_gguf_tokenizer
from workbench.model.placing import check_memory, chosen_dtype
from workbench.model.reading import GGUF, Opened
from workbench.model.weights import ModelError, building, parameters_of

FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""Types of ggml that are no blocks, by number."""
AT_ONCE = 2**18
"""Values that are dequantised at once."""
Plan = dict[str, list[tuple[str, StoredTensor]]]
"""For each parameter, the tensors that make it, each with its part of the architecture."""


def is_gguf(source: object) -> bool:
    """Whether a source of a model is the path of a GGUF file, by its name."""
    return isinstance(source, str | Path) and str(source).endswith(GGUF) and not Path(source).is_dir()


def read_gguf(
    path: Path,
    device: torch.device,
    dtype: str | torch.dtype,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Opened:
    """The plain model and tokenizer of a GGUF file.

    Args:
        path: the file, or the first one of a model in several parts.
        device: where the model goes.
        dtype: its type, as for `chosen_dtype`.
        tokenizer: in place of the file's own.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.

    Raises:
        ModelError: the file is damaged, or holds what is not read; the device can't compute in the type, or has too
            little memory for it.
    """

    def read() -> Opened:
        model = GgufModel(path)
        chosen = chosen_dtype(dtype, device, model.dtype, ModelError)
        own = tokenizer or model.tokenizer()
        check_memory(path.name, model.values * chosen.itemsize, device, chosen, ModelError)
        module, exact, held = model.module(chosen, progress)
        return Opened(module.to(device), own, exact, "" if held == exact else held, model.dtype)

    return read_steadily(read, (path,), ModelError)


class GgufModel:
    """A model in a GGUF file: what its header says, and its weights when they are asked for.

    Attributes:
        header: fields and places of tensors.
        settings: of the Hugging Face configuration.
        dtype: the type that the file was made in; bfloat16 where it holds blocks, whose values are of no type.
        values: how many weights it holds.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise ModelError(f"There is no file {str(path)!r}.")
        self.header = read_header(path)
        self._architecture = architecture_of(self.header)
        self.settings = settings_of_file(self.header)
        self._check_types()
        self._shapes = self._built_shapes()
        self._plan = self._planned()
        stored = self.header.tensors.values()
        forms = {tensor.form for tensor in stored if len(tensor.shape) > 1}
        self.dtype = FLOATS[max(forms)] if forms <= FLOATS.keys() else torch.bfloat16
        self.values = sum(math.prod(shape) for shape in self._shapes.values())

    def config(self) -> Any:
        """The Hugging Face configuration.

        Raises:
            ModelError: transformers refuses the settings.
        """
        from transformers import AutoConfig

        ends = ends_of_turns(self.header)
        numbers = {name: self._token(key) for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
        special = {f"{name}_token_id": number for name, number in numbers.items()}
        try:
            with building():
                config = AutoConfig.for_model(self._architecture.model_type, **self.settings | special)
        except Exception as error:  # what transformers raises for settings has no kind of its own
            raise ModelError(f"{self.header.path} has settings that can't be: {reason_of(error)}.") from error
        config.architectures = [self._class(config).__name__]
        if len(ends) > 1 or (ends and numbers["eos"] is None):
            config.eos_token_id = ends
        return config

    def tokenizer(self) -> Any:
        """The tokenizer, with its chat template.

        Raises:
            ModelError: as `read_gguf_tokenizer`.
        """
        length = self.settings.get("max_position_embeddings") or self.settings["n_positions"]
        return read_gguf_tokenizer(self.header, self.settings["vocab_size"], length)

    def tensors(self, dtype: torch.dtype, progress: Progress | None = None) -> tuple[dict[str, Tensor], str, str]:
        """The parameters by their names in the Hugging Face model; the fingerprints of their float32 values, and of
        the values that they are rounded to.

        Args:
            dtype: of the tensors.
            progress: called with the share done and a word on what is being done; None: a bar; False: nothing.

        Raises:
            ModelError: a tensor of another shape than the model's, or a value that is not finite.
        """
        found: dict[str, Tensor] = {}
        exact: dict[str, bytes] = {}
        held: dict[str, bytes] = {}
        for done, (name, parts) in enumerate(self._plan.items()):
            if progress:
                progress(done / len(self._plan), "Converting the weights")
            found[name], exact[name] = self._rounded(name, parts, dtype)
            held[name] = exact[name] if dtype == torch.float32 else values_digest(name, found[name])
        return found, combined(exact), combined(held)

    def module(self, dtype: torch.dtype, progress: Progress | None = None) -> tuple[nn.Module, str, str]:
        """The plain Hugging Face model in a type, and the fingerprints of `tensors`.

        Raises:
            ModelError: as `tensors`.
        """
        tensors, exact, held = self.tensors(dtype, progress)
        config, names = self.config(), set(tensors)
        with building():
            loaded: Any = self._class(config).from_pretrained(
                None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
            )
        module, info = loaded
        if wrong := {*info["missing_keys"], *info["unexpected_keys"]} or names ^ parameters_of(module).keys():
            raise ModelError(f"{self.header.path} can't be opened by this version of transformers: {min(wrong)}.")
        return module, exact, held

    def _token(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        number = self.header.whole(key) if key in self.header.fields else None
        if number is not None and number >= self.settings["vocab_size"]:
            raise self.header.fault(key, f"one of its {self.settings['vocab_size']:,} tokens")
        return number

    def _class(self, config: Any) -> Any:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]

    def _built_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the model's parameters, tied ones once; nothing is allocated."""
        config = self.config()
        try:
            with building(), torch.device("meta"):
                module = self._class(config)(config)
        except Exception as error:  # what transformers raises for settings has no kind of its own
            raise ModelError(f"{self.header.path} has settings that can't be: {reason_of(error)}.") from error
        return {name: tuple(tensor.shape) for name, tensor in parameters_of(module).items()}

    def _planned(self) -> Plan:
        """Which tensors make which parameter."""
        plan: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
        for tensor in self.header.tensors.values():
            if tensor.name == ROPE_FACTORS or (tensor.name == HEAD and self.settings["tie_word_embeddings"]):
                continue  # they stand in the settings
            place = self._architecture.place(tensor.name)
            if place is None or place[1] not in self._shapes:
                raise ModelError(
                    f"{self.header.path} holds the tensor {shown(tensor.name)}, which no part of a "
                    f"{self.header.architecture} takes, so the model would be another; open its safetensors instead."
                )
            plan[place[1]][place[0]] = tensor
        if missing := self._shapes.keys() - plan.keys():
            raise ModelError(f"{self.header.path} has no weights for {min(missing)}; fetch it again.")
        order = {part: number for number, part in enumerate(self._architecture.joined)}
        ordered = {
            name: [(part, parts[part]) for part in sorted(parts, key=lambda part: order.get(part, 0))]
            for name, parts in plan.items()
        }
        for name, parts in ordered.items():
            self._check_shape(name, parts)
        return ordered

    def _check_shape(self, name: str, parts: list[tuple[str, StoredTensor]]) -> None:
        """Refuse tensors that do not have the shape of their parameter; no value is read."""
        with torch.device("meta"):
            pieces = [self._architecture.change(part, torch.empty(one.shape), self.settings) for part, one in parts]
        shape = tuple((pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)).shape)
        if shape != self._shapes[name]:
            raise ModelError(
                f"{self.header.path} holds {parts[0][1].name} in the shape {shape}, where its settings give "
                f"{self._shapes[name]}; fetch it again."
            )

    def _rounded(self, name: str, parts: list[tuple[str, StoredTensor]], dtype: torch.dtype) -> tuple[Tensor, bytes]:
        """A parameter in a type, and what its float32 values add to a fingerprint.

        A tensor that is changed or joined is held in float32 meanwhile, and another one not.
        """
        shape = self._shapes[name]
        made, exact, done = torch.empty(math.prod(shape), dtype=dtype), Digest(name, shape, torch.float32), 0
        for values in self._pieces(parts):
            if not_finite({name: values}):
                raise ModelError(
                    f"{self.header.path} holds values in {parts[0][1].name} that are not finite; fetch it again."
                )
            exact.update(values)
            made[done : done + values.numel()] = values.reshape(-1)
            done += values.numel()
        return made.view(shape), exact.digest()

    def _pieces(self, parts: list[tuple[str, StoredTensor]]) -> Iterable[Tensor]:
        """The float32 values of a parameter, in parts that follow one another."""
        if len(parts) == 1:
            part, tensor = parts[0]
            unread = torch.empty(tensor.shape, device="meta")
            if self._architecture.change(part, unread, self.settings) is unread:
                return rows_of(tensor)
        changed = [self._architecture.change(part, dequantised(tensor), self.settings) for part, tensor in parts]
        return in_pieces((changed[0] if len(changed) == 1 else torch.cat(changed, 1)).contiguous())

    def _check_types(self) -> None:
        """Refuse a file with blocks that the package `gguf` has no rule for."""
        for form in {tensor.form for tensor in self.header.tensors.values()} - FLOATS.keys():
            kind, row = _block(form)
            try:
                _dequantise(np.zeros((1, row), np.uint8), kind)
            except NotImplementedError as error:
                name = next(tensor.name for tensor in self.header.tensors.values() if tensor.form == form)
                raise ModelError(
                    f"{self.header.path} holds {name} in {kind.name}, which the package gguf can't dequantise; take a "
                    "file in another quantisation, such as Q8_0."
                ) from error


def dequantised(tensor: StoredTensor) -> Tensor:
    """The float32 values of a tensor of a file, in the shape in which it lies there."""
    values = torch.empty(tensor.shape, dtype=torch.float32)
    rows, done = values.view(-1, tensor.shape[-1]), 0
    for piece in rows_of(tensor):
        rows[done : done + len(piece)] = piece
        done += len(piece)
    return values


def rows_of(tensor: StoredTensor) -> Iterator[Tensor]:
    """The float32 values of a tensor of a file, some of its rows `[n, width]` at a time.

    Source: the rules of the package `gguf`, for the blocks.
    """
    width = tensor.shape[-1]
    count, step = math.prod(tensor.shape) // width, max(AT_ONCE // width, 1)
    with open(tensor.file, "rb") as file:
        file.seek(tensor.offset)
        for start in range(0, count, step):
            some = min(step, count - start)
            raw = np.fromfile(file, np.uint8, tensor.size // count * some)
            if len(raw) != tensor.size // count * some:
                raise ModelError(f"{tensor.file} ended while it was read; fetch it again.")
            yield _read(raw.reshape(some, -1), tensor.form).float()


def _read(raw: np.ndarray, form: int) -> Tensor:
    """Rows of bytes as rows of values."""
    if form in FLOATS:
        return torch.from_numpy(raw).view(FLOATS[form])
    return torch.from_numpy(np.ascontiguousarray(_dequantise(raw, _block(form)[0])))


def _dequantise(raw: np.ndarray, kind: Any) -> np.ndarray:
    from gguf import dequantize

    return dequantize(raw, kind)


def _block(form: int) -> tuple[Any, int]:
    """The kind of a block in the package `gguf`, and its size in bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType(form)
    return kind, GGML_QUANT_SIZES[kind][1]
