"""LoRA adapters as PEFT saves them: the base model that the folder names, with the adapter merged into its weights.

A layer with weight W `[out, in]` gets W + scale · B · A, with A `[r, in]` and B `[out, r]`; scale is alpha / r, or
alpha / √r for rank-stabilised adapters (arXiv 2106.09685, 2312.03732). Sums are in float32. What such a folder may hold
beyond that is applied as PEFT does, or refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired

import torch
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from workbench.core.forms import as_form, read_json
from workbench.core.hashing import file_sha256
from workbench.core.paths import check_links
from workbench.core.patterns import Patience, SafePattern
from workbench.core.type_words import reason_of, shown
from workbench.model.default_model import DEFAULT_MODEL, default_hash, read_default
from workbench.model.modules import is_conv1d
from workbench.model.placing import chosen_dtype
from workbench.model.reading import ADAPTER, Opened, read_huggingface, read_tokenizer, settled
from workbench.model.weights import ModelError, identity

WEIGHTS = "adapter_model.safetensors"
LONGEST = 20_000
"""Letters of a pattern in a configuration, which may name every module."""
MERGED_IN = (torch.device("cpu"), torch.float32)
"""Device and type of a base."""
PREFIX = "base_model.model."
"""Begins the name of each tensor."""
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""How training may begin without a change of the base's own weights."""
SAYS_NOTHING = ("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "eva_config", "exclude_modules")
SAYS_NOTHING += ("fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform")
SAYS_NOTHING += ("lora_alpha", "lora_bias", "lora_dropout", "megatron_core", "modules_to_save", "peft_type")
SAYS_NOTHING += ("peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config")
SAYS_NOTHING += ("target_modules", "task_type", "use_rslora")
"""Fields that are read here, or that say how the adapter was trained and not what it computes."""


@with_config(ConfigDict(extra="allow"))
class LoraConfig(TypedDict):
    """`adapter_config.json` of a LoRA adapter."""

    base_model_name_or_path: str
    r: int
    lora_alpha: float
    rank_pattern: NotRequired[dict[str, int] | None]
    alpha_pattern: NotRequired[dict[str, float] | None]
    use_rslora: NotRequired[bool | None]
    bias: NotRequired[Literal["none", "all", "lora_only"]]
    target_modules: NotRequired[list[str] | str | None]
    modules_to_save: NotRequired[list[str] | None]
    revision: NotRequired[str | None]


@dataclass
class AdapterTensors:
    """The tensors of an adapter, by the base's names."""

    first: dict[str, Tensor] = field(default_factory=dict)
    """A, by module."""
    second: dict[str, Tensor] = field(default_factory=dict)
    """B, by module."""
    biases: dict[str, Tensor] = field(default_factory=dict)
    """Of B, by module."""
    whole: dict[str, Tensor] = field(default_factory=dict)
    """Those that replace one of the base."""


def is_adapter(source: object) -> bool:
    """Whether a source of `load_model` is a folder with an adapter."""
    return isinstance(source, str | Path) and (Path(source) / ADAPTER).is_file()


def read_adapted(
    folder: Path, device: torch.device, dtype: str | torch.dtype, base: str | Path | None = None
) -> tuple[Opened, dict[str, Any]]:
    """The model with the adapter in its weights, and what was merged.

    Weights are merged in float32, and rounded once where the model's type is another. The tokenizer is the folder's own
    if it has one, else the base's.

    Args:
        folder: of the adapter.
        device: where the model goes.
        dtype: its type, as for `chosen_dtype`; "auto" is that of the base on an accelerator.
        base: name or folder of the base model, in the place of the one that the adapter names.

    Raises:
        ModelError: an adapter of another kind, a base that can't be opened, or tensors that do not fit it.
    """
    check_links(folder, ModelError)
    config = _config(folder)
    file = folder / WEIGHTS
    if any(folder.glob("model*.safetensors")):
        raise ModelError(f"{folder} holds a whole model beside the adapter; move one of them to a folder of its own.")
    if not file.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; save the adapter again as safetensors.")
    try:
        tensors = _sorted_out(folder, load_file(file))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} can't be read ({reason_of(error)}); copy it again.") from error
    parent, opened = _base(folder, config) if base is None else _given(base)
    module, tokenizer = parent.module, parent.tokenizer
    chosen = chosen_dtype(dtype, device, parent.own, ModelError)
    _check_complete(folder, module, config, tensors)
    _untie(module, config, tensors)
    with torch.no_grad():
        _merge(folder, module, config, tensors)
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = read_tokenizer(folder)
    about = {"folder": str(folder), "sha256": file_sha256(file), "base": opened, "base_hash": parent.weights_hash}
    return settled(module, tokenizer, identity(module), device, chosen), about


def _config(folder: Path) -> LoraConfig:
    path = folder / ADAPTER
    content = read_json(path, dict[str, Any], ModelError, "the configuration of an adapter")
    kind = content.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder} is an adapter of the kind {shown(kind)}; Workbench merges LoRA adapters only.")
    if content.get("use_dora"):
        raise ModelError(f"{folder} is a DoRA adapter (use_dora); merge it with PEFT and open the merged model.")
    for name, value in content.items():
        if name not in SAYS_NOTHING and value not in (None, False, "", [], {}):
            raise ModelError(
                f"{folder} is an adapter with {name} = {shown(value)}, which Workbench can't merge; merge it with PEFT "
                "and open the merged model."
            )
    if (start := content.get("init_lora_weights")) not in PLAIN_STARTS:
        raise ModelError(
            f"{folder} is an adapter to weights that its training changed at the start (init_lora_weights = "
            f"{shown(start)}); merge it with PEFT and open the merged model."
        )
    if not str(content.get("base_model_name_or_path") or "").strip():
        raise ModelError(f"{path} names no base model; write its name or folder as base_model_name_or_path.")
    return as_form(content, LoraConfig, ModelError, f"{path} is not the configuration of an adapter")


def _sorted_out(folder: Path, tensors: Mapping[str, Tensor]) -> AdapterTensors:
    """The tensors of a file by what they are.

    Raises:
        ModelError: one that has no meaning here, or values that are not finite.
    """
    found = AdapterTensors()
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        path, _, last = name.partition(".lora_")
        if name == key or (last and last not in PARTS):
            raise ModelError(f"{folder} holds a tensor that no plain LoRA adapter has, {shown(key)}; copy it again.")
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise ModelError(f"{folder} holds values in {shown(key)} that are no finite numbers; copy it again.")
        if last:
            getattr(found, PARTS[last])[path] = tensor.float()
        else:
            found.whole[re.sub(r"\.(base_layer|modules_to_save)(?=\.)", "", path)] = tensor.float()
    if not found.first and not found.whole:
        raise ModelError(f"{folder} is an adapter without tensors; copy it again.")
    if unpaired := found.first.keys() ^ found.second.keys() or found.biases.keys() - found.second.keys():
        raise ModelError(f"{folder} holds only one of A and B for {min(unpaired)}; copy it again.")
    return found


PARTS = {
    "A.weight": "first",
    "B.weight": "second",
    "B.bias": "biases",
    "embedding_A": "first",
    "embedding_B": "second",
}
"""What stands behind `.lora_` in a tensor's name, and where it belongs."""


def _base(folder: Path, config: LoraConfig) -> tuple[Opened, str]:
    """The base model that an adapter names, in float32 on the processor, and its name.

    A path is taken from the folder that the process runs in, as PEFT does, if a model is there, and else from the
    adapter's; it stays inside one of them. A name is that of a model on this machine: an adapter fetches none.
    """
    name = config["base_model_name_or_path"]
    here = (Path(name) / "config.json").is_file()
    beside = not here and not Path(name).is_absolute() and (folder / name / "config.json").is_file()
    if here or beside:
        place = Path(name) if here else folder / name
        if not any(place.resolve().is_relative_to(home.resolve()) for home in (Path.cwd(), folder)):
            raise ModelError(
                f"The adapter {folder} names a base outside its folder, {shown(name)}; if that is the one that you "
                "want, give it yourself: wb.load_model(..., base=...)."
            )
    if not here and not beside and config.get("revision") not in (None, "main"):
        raise ModelError(
            f"The adapter {folder} is to the revision {shown(config.get('revision'))} of {name!r}; download that and "
            "write its folder as base_model_name_or_path."
        )
    try:
        if name == DEFAULT_MODEL and not here and not beside and default_hash():
            return read_default(*MERGED_IN), name
        source = str(folder / name) if beside else name
        return read_huggingface(source, *MERGED_IN, fetch=False), source
    except ModelError as error:
        raise ModelError(f"The base of the adapter {folder} can't be opened: {error}") from error


def _given(base: str | Path) -> tuple[Opened, str]:
    """The base model of this name or folder, in float32 on the processor, and its name."""
    if str(base) == DEFAULT_MODEL and not Path(base).exists():
        return read_default(*MERGED_IN), DEFAULT_MODEL
    return read_huggingface(str(base), *MERGED_IN), str(base)


def _check_complete(folder: Path, module: nn.Module, config: LoraConfig, tensors: AdapterTensors) -> None:
    """Refuse an adapter that lacks tensors which its configuration promises, or has some that the base does not."""
    modules = dict(module.named_modules())
    state = module.state_dict()
    if strange := min((tensors.first.keys() - modules.keys()) | (tensors.whole.keys() - state.keys()), default=""):
        raise ModelError(f"The adapter {folder} changes {strange}, which its base model does not have.")
    kept = config.get("modules_to_save") or []
    promised = {name for name in state if any(_is_called(path, kept) for path in _parents(name))}
    if config.get("bias") == "all":
        promised |= {name for name in state if name.endswith(".bias")}
    if lacking := min(promised - tensors.whole.keys(), default=""):
        raise ModelError(f"The adapter {folder} has no tensor for {lacking}, which it was trained with; copy it again.")
    targets = config.get("target_modules") or []
    if any(config.get(name) for name in ("exclude_modules", "layers_to_transform", "layers_pattern")):
        return
    if isinstance(targets, str):
        pattern = _pattern(f"({targets})$", Patience())
        called = [path for path in modules if pattern.begins(path)]
    else:
        called = [path for path in modules if _is_called(path, targets)]
    for path in called:
        inner = modules[path]
        linear = isinstance(inner, nn.Linear | nn.Embedding) or is_conv1d(inner)
        if linear and path not in tensors.first and not _is_called(path, kept):
            raise ModelError(f"The adapter {folder} has no tensors for {path}, which it was trained on; copy it again.")


def _is_called(path: str, names: list[str]) -> bool:
    """Whether a module's path is one of these, or ends with one."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _parents(name: str) -> list[str]:
    """The paths of the modules that a tensor stands in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _untie(module: Any, config: LoraConfig, tensors: AdapterTensors) -> None:
    """Give the LM head a weight of its own, where it shares the embedding's and the adapter changes one of them."""
    ends = [module.get_input_embeddings(), module.get_output_embeddings()]
    if ends[0].weight is not ends[1].weight:
        return
    paths = [path for path, inner in module.named_modules() if inner in ends]
    kept = config.get("modules_to_save") or []
    if any(path in tensors.first or _is_called(path, kept) for path in paths):
        ends[1].weight = nn.Parameter(ends[1].weight.detach().clone())
        module.config.tie_word_embeddings = False
        module.config.get_text_config().tie_word_embeddings = False


def _merge(folder: Path, module: nn.Module, config: LoraConfig, tensors: AdapterTensors) -> None:
    """Write the adapter into the weights."""
    state = module.state_dict()
    modules, patience = dict(module.named_modules()), Patience()
    ranks = _Settings(config.get("rank_pattern"), config["r"], patience)
    alphas = _Settings(config.get("alpha_pattern"), config["lora_alpha"], patience)
    for name, tensor in tensors.whole.items():
        _check_shape(folder, name, tensor, state[name])
        state[name].copy_(tensor)
    for path, first in tensors.first.items():
        second = tensors.second[path]
        inner: Any = modules[path]
        turned = isinstance(inner, nn.Embedding) or is_conv1d(inner)
        if not turned and not isinstance(inner, nn.Linear):
            raise ModelError(f"The adapter {folder} changes {path}, a {type(inner).__name__}, which can't be merged.")
        rank = ranks.of(path)
        if first.ndim != 2 or second.ndim != 2 or not 0 < rank == first.shape[0] == second.shape[1]:
            shapes = f"{list(first.shape)} and {list(second.shape)}"
            raise ModelError(f"The adapter {folder} has A and B of {shapes} for {path}, which are not of rank {rank}.")
        alpha = alphas.of(path)
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        change = (second @ first) * scale
        change = change.T if turned else change
        _check_shape(folder, f"{path}.weight", change, inner.weight)
        inner.weight += change
        if path in tensors.biases:
            if f"{path}.bias" not in state:
                raise ModelError(f"The adapter {folder} adds a bias to {path}, which has none; open it with PEFT.")
            _check_shape(folder, f"{path}.bias", tensors.biases[path], state[f"{path}.bias"])
            inner.bias += tensors.biases[path] * scale


class _Settings:
    """A setting of modules, some with values of their own.

    Args:
        values: by regular expressions that the end of a module's path fits; the first that fits counts.
        default: of the other modules.
        patience: of all patterns of an adapter.
    """

    def __init__(self, values: Mapping[str, Any] | None, default: Any, patience: Patience):
        self._values = [(_pattern(rf"(.*\.)?({key})$", patience), value) for key, value in (values or {}).items()]
        self._default = default

    def of(self, path: str) -> Any:
        """The value for the module at a path."""
        return next((value for pattern, value in self._values if pattern.begins(path)), self._default)


def _pattern(pattern: str, patience: Patience) -> SafePattern:
    return SafePattern(pattern, ModelError, LONGEST, patience)


def _check_shape(folder: Path, name: str, tensor: Tensor, place: Tensor) -> None:
    if tensor.shape != place.shape:
        raise ModelError(
            f"The adapter {folder} has {list(tensor.shape)} for {name}, which is {list(place.shape)} in its base; name "
            "the base that it was trained on."
        )
