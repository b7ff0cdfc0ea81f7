"""Models of the shapes of Llama 3.1 8B and Gemma 2 2B with random weights, and a step of a TopK autoencoder, on a card.

    python benchmarks/bench_accelerator.py [--device cuda] [--tiny]

It needs no network and no other package than the model's own: sae-lens and eai-sparsify are measured where they can be
imported. The figures are printed as they come, and written as JSON into the folder `$OUT`, else `docs/results/`;
`--tiny` runs all of it in small shapes, and writes only into `$OUT`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("WORKBENCH_CACHE", tempfile.mkdtemp())  # nothing that an earlier run decoded

import torch
from rivals import TRAINERS
from timing import timed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedTokenizerFast

import workbench as wb
from workbench.model.placing import chosen_device

NEW, PROMPT = 64, 32
LLAMA = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
GEMMA = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 8192,
}
SMALL = {
    "vocab_size": 331,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "max_position_embeddings": 256,
}
STEP = {"d_in": 4096, "width": 65_536, "k": 64, "batch": 4096}
SMALL_STEP = {"d_in": 16, "width": 64, "k": 4, "batch": 32}
OURS = "workbench topk"
RIVALS = {"sae-lens topk": "sae_lens", "sparsify topk": "sparsify"}
"""Rivals of the step, and the package of each."""


def main() -> None:
    """Measure all, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    device = chosen_device(asked.device, wb.WorkbenchError)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    figures: dict[str, Any] = {"device": str(device), "card": card, "torch": torch.__version__, "tiny": asked.tiny}
    for name, kind, shape in (("Llama 3.1 8B", LlamaConfig, LLAMA), ("Gemma 2 2B", Gemma2Config, GEMMA)):
        settings = (shape | {key: value for key, value in SMALL.items() if key in shape}) if asked.tiny else shape
        figures[name] = measure_model(kind(**settings, bos_token_id=None, eos_token_id=None), device, asked.rounds)
        show(name, figures[name])
        free(device)
    figures["TopK step"] = measure_steps(SMALL_STEP if asked.tiny else STEP, device, asked.rounds)
    show("TopK step", figures["TopK step"])
    write(figures, asked.tiny)


def measure_model(config: Any, device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds of opening, of generation against Hugging Face's, and of decoding all up-neurons, in bfloat16."""
    torch.manual_seed(0)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    weights = sum(one.numel() * one.element_size() for one in module.parameters())
    before = peak(device)
    tokenizer = made_up_tokenizer(config.vocab_size)
    model, opening = timed(lambda: wb.load_model(module, tokenizer=tokenizer))
    found: dict[str, Any] = {"weights_gb": weights / 1e9, "open_s": opening.wall}
    found["open_peak_gb"] = None if before is None else (peak(device) or 0) / 1e9
    layers = config.num_hidden_layers
    clamps = [wb.Clamp(wb.Feature(f"neurons.{n % layers}.gate", 7 + n), 1.0) for n in range(10)]
    for batch in (1, 16):
        found[f"generate, batch {batch}"] = measure_generation(
            module, model, clamps, batch, device=device, rounds=rounds
        )
    reset_peak(device)
    _, decoding = timed(lambda: synchronised(lambda: wb.decode_neurons(model, weights="up", top_k=10), device))
    found["decode all up-neurons"] = {"neurons": layers * config.intermediate_size, "s": decoding.wall}
    if (most := peak(device)) is not None:
        found["decode all up-neurons"]["peak_above_weights_gb"] = (most - weights) / 1e9
    return found


def made_up_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words w0, w1 and so on, each behind a space."""
    bpe = Tokenizer(models.BPE({f"Ġw{number}": number for number in range(size)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def measure_generation(
    module: Any, model: Any, clamps: list[Any], batch: int, *, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Best seconds of `NEW` greedy tokens in turns, and the share of tokens that are the rival's."""
    chance = torch.Generator().manual_seed(batch)
    rows = torch.randint(1, model.network.vocab_size, (batch, PROMPT), generator=chance).to(device)

    def rival() -> list[list[int]]:
        with torch.inference_mode():
            written = module.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )
        return written[:, PROMPT:].tolist()

    def ours(edits: list[Any]) -> list[list[int]]:
        return [one.tokens for one in model.generate_batch(rows, NEW, stop=False, interventions=edits)]

    works = {"Hugging Face": rival, "plain": lambda: ours([]), "10 edits": lambda: ours(clamps)}
    seconds = fastest(works, device, rounds)
    same = [a == b for one, two in zip(rival(), ours([]), strict=True) for a, b in zip(one, two, strict=True)]
    return {
        "s": seconds,
        "plain, speed against Hugging Face": seconds["Hugging Face"] / seconds["plain"],
        "10 edits, speed against Hugging Face": seconds["Hugging Face"] / seconds["10 edits"],
        "share of tokens that agree": sum(same) / len(same),
    }


def measure_steps(sizes: dict[str, int], device: torch.device, rounds: int) -> dict[str, Any]:
    """Best seconds of a whole training step of each trainer that can be imported, on the same activations."""
    torch.manual_seed(0)
    batch = sizes["batch"]
    x = torch.randn(4 * batch, sizes["d_in"], device=device)
    seconds: dict[str, float] = {}
    for name in (OURS, *(one for one, package in RIVALS.items() if importlib.util.find_spec(package))):
        step, _ = TRAINERS[name](sizes["d_in"], sizes["width"], sizes["k"], batch, x)
        seconds |= fastest({name: lambda step=step: step(x[:batch])}, device, 3 * rounds)
        del step
        free(device)
    rivals = {f"speed against {one}": seconds[one] / seconds[OURS] for one in seconds if one != OURS}
    return {**sizes, "s": seconds, "activations per second": batch / seconds[OURS], **rivals}


def fastest(works: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, float]:
    """The best time of each in seconds, in turns, after one to warm up."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for name, work in works.items():
            _, spent = timed(lambda work=work: synchronised(work, device))
            best[name] = min(best[name], spent.wall) if turn else best[name]
    return best


def synchronised(work: Callable[[], Any], device: torch.device) -> Any:
    """The result of work, once the device has done it."""
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result


def peak(device: torch.device) -> int | None:
    """The most bytes that were held on a card since `reset_peak`; None on other devices."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Count the peak from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def free(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        reset_peak(device)


def show(title: str, figures: dict[str, Any]) -> None:
    """Print what was measured."""
    print(f"{title}\n{json.dumps(figures, indent=1)}", flush=True)


def write(figures: dict[str, Any], tiny: bool) -> None:
    """Write the figures as JSON."""
    folder = os.environ.get("OUT") or (None if tiny else Path(__file__).parents[1] / "docs" / "results")
    if folder is not None:
        path = Path(folder) / "accelerator.json"
        path.write_text(json.dumps(figures, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
