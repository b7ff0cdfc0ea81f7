"""Small models, recipes, and what mergekit merges of them.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 "mergekit==0.1.5"
    ENV/bin/python scripts/make_mergekit_fixtures.py tests/fixtures/mergekit

Writes `models/NAME`, one folder for each model; `recipes.json`, a YAML text for each case, whose models are named
relative to `models`; and `CASE.safetensors`, the tensors that mergekit writes with `--random-seed 7`, with the number
of layers and of rows of its configuration in their metadata. Runs in an environment of its own, without this project.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

SEED = 7
LLAMA: dict[str, Any] = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3}
LLAMA |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
GPT2: dict[str, Any] = {"vocab_size": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
WORDS = ["<s>", "</s>", "<unk>", "the", "dog", "cat", "ran", "to", "a", "house", "and", "river", "is", "my"]
"""Fewer than the rows of the embeddings, which are padded."""

MODELS: dict[str, tuple[Any, dict[str, Any], torch.dtype]] = {
    "base": (LlamaConfig, LLAMA, torch.float32),
    "one": (LlamaConfig, LLAMA, torch.float32),
    "two": (LlamaConfig, LLAMA, torch.float32),
    "base16": (LlamaConfig, LLAMA, torch.bfloat16),
    "one16": (LlamaConfig, LLAMA, torch.bfloat16),
    "tied": (LlamaConfig, LLAMA | {"tie_word_embeddings": True}, torch.float32),
    "gpt2": (GPT2Config, GPT2, torch.float32),
    "gpt2-one": (GPT2Config, GPT2, torch.float32),
}

WEIGHTED = """
models:
  - model: {first}
    parameters: {{weight: 0.7, density: 0.6}}
  - model: {second}
    parameters: {{weight: 0.4, density: 0.3}}
merge_method: {method}
base_model: {base}
"""
GRADIENTS = """
models:
  - model: base
  - model: one
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: two
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: [0, 0.3, 0.7, 1]
        - filter: self_attn
          value: 0.25
        - value: 1e-1
merge_method: {method}
base_model: base
parameters:
  normalize: true
  int8_mask: true
"""
AVERAGE = """
models:
  - model: {first}
    parameters: {{weight: 1.0}}
  - model: {second}
    parameters: {{weight: 0.3}}
  - model: {third}
    parameters: {{weight: [0.5, -0.2]}}
merge_method: linear
"""
ARC = """
slices:
  - sources:
      - model: one
        layer_range: [0, 3]
      - model: base
        layer_range: [0, 3]
merge_method: slerp
base_model: base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
"""
STACK = """
slices:
  - sources:
      - model: one
        layer_range: [0, 2]
        parameters:
          scale:
            - filter: o_proj
              value: 0.5
            - filter: down_proj
              value: 0.25
  - sources:
      - model: two
        layer_range: [1, 3]
merge_method: passthrough
"""
SLICES = """
slices:
  - sources:
      - model: base
        layer_range: [0, 1]
      - model: one
        layer_range: [1, 2]
        parameters: {{weight: 0.5}}
  - sources:
      - model: two
        layer_range: [0, 2]
      - model: one
        layer_range: [1, 3]
        parameters: {{weight: [0.2, 0.9], density: 0.5}}
    base_model: two
    parameters: {{density: 0.5}}
merge_method: {method}
base_model: base
parameters: {{weight: 0.8}}
"""
USUAL = {"first": "one", "second": "two", "base": "base"}
MIXED = {"first": "one16", "second": "two", "base": "base16"}
HALF = "dtype: bfloat16\n"

CASES: dict[str, str] = {
    "linear": AVERAGE.format(first="base", second="one", third="two"),
    "linear_unnormalised": AVERAGE.format(first="base", second="one", third="two") + "parameters: {normalize: false}\n",
    "linear_bfloat16": AVERAGE.format(first="base", second="one", third="two") + HALF,
    "linear_out_float16": AVERAGE.format(first="base", second="one", third="two") + "out_dtype: float16\n",
    "linear_mixed_types": AVERAGE.format(first="base16", second="one16", third="two"),
    "linear_base_added": "models:\n  - model: one\n  - model: two\nmerge_method: linear\nbase_model: base\n"
    "parameters:\n  weight: 0.5\n",
    "linear_tokenizer": AVERAGE.format(first="base", second="one", third="two") + "tokenizer_source: one\n",
    "linear_tokenizer_union": AVERAGE.format(first="base", second="one", third="two") + "tokenizer: {source: union}\n",
    "linear_tied_and_not": "models:\n  - model: base\n    parameters: {weight: 0.5}\n  - model: tied\n"
    "    parameters: {weight: 0.5}\nmerge_method: linear\nbase_model: base\n",
    "linear_gpt2": "models:\n  - model: gpt2\n  - model: gpt2-one\nmerge_method: linear\nbase_model: gpt2\n"
    "parameters:\n  weight:\n    - filter: transformer.h.1\n      value: 0.1\n    - value: 0.6\n",
    "slerp": "models:\n  - model: base\n  - model: one\nmerge_method: slerp\nbase_model: base\nparameters: {t: 0.3}\n",
    "slerp_filters": ARC,
    "slerp_bfloat16": ARC + HALF,
    "slerp_types": ARC.replace("model: one", "model: one16").replace("model: base", "model: base16")
    + "dtype: float32\nout_dtype: bfloat16\n",
    "task_arithmetic": WEIGHTED.format(method="task_arithmetic", **USUAL).replace(", density: 0.6", ""),
    "task_arithmetic_lambda": WEIGHTED.format(method="task_arithmetic", **USUAL)
    + "parameters: {lambda: 0.6, normalize: true}\n",
    "task_arithmetic_mixed": WEIGHTED.format(method="task_arithmetic", **MIXED),
    "ties": WEIGHTED.format(method="ties", **USUAL),
    "ties_gradients": GRADIENTS.format(method="ties"),
    "ties_bfloat16": GRADIENTS.format(method="ties") + HALF,
    "ties_rescale": WEIGHTED.format(method="ties", **USUAL) + "parameters: {rescale: true, normalize: false}\n",
    "ties_slices": SLICES.format(method="ties"),
    "dare_ties": WEIGHTED.format(method="dare_ties", **USUAL),
    "dare_ties_gradients": GRADIENTS.format(method="dare_ties"),
    "dare_ties_slices": SLICES.format(method="dare_ties"),
    "dare_linear": WEIGHTED.format(method="dare_linear", **USUAL) + "parameters: {rescale: false}\n",
    "dare_linear_bfloat16": GRADIENTS.format(method="dare_linear") + HALF,
    "dare_linear_mixed": WEIGHTED.format(method="dare_linear", **MIXED),
    "passthrough": "models:\n  - model: one\nmerge_method: passthrough\ndtype: bfloat16\n",
    "passthrough_slices": STACK,
}


def main() -> None:
    """Write every fixture anew."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = Path(sys.argv[1]).absolute()
    shutil.rmtree(target, ignore_errors=True)
    for number, (name, (kind, sizes, dtype)) in enumerate(MODELS.items()):
        write_model(target / "models" / name, kind(**sizes), dtype, number)
    (target / "recipes.json").write_text(json.dumps(CASES, indent=1))
    os.chdir(target / "models")
    for name, text in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            merged(text, Path(scratch), target / f"{name}.safetensors")


def write_model(folder: Path, config: Any, dtype: torch.dtype, seed: int) -> None:
    """A model whose weights are those of the first one with something added, and its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=chance))
    model.to(dtype).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def merged(text: str, scratch: Path, target: Path) -> None:
    """What mergekit makes of a recipe, as one file."""
    recipe = MergeConfiguration.model_validate(yaml.safe_load(text))
    run_merge(recipe, str(scratch), MergeOptions(random_seed=SEED, quiet=True, write_model_card=False))
    tensors = {}
    for file in sorted(scratch.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    config = json.loads((scratch / "config.json").read_text())
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    save_file(tensors, target, metadata={"layers": str(layers), "vocab_size": str(config["vocab_size"])})


if __name__ == "__main__":
    main()
