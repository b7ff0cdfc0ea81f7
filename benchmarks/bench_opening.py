"""Peak memory and time of opening a model with the shape of Llama 3.2 1B in bfloat16, and of opening the default model.

    python benchmarks/bench_opening.py [--folder FOLDER] [--dtype bfloat16]

The weights are random, 2.5 GB in a temporary folder unless a folder with a model is given. The model is opened in a
fresh process, with an empty cache of tables, after a small model of the same kind was opened there, so that imports do
not count. The peak is that of the resident memory above what it was before, as Linux states it: pages of mapped files
count, each once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb

SHAPE: dict[str, Any] = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
SHAPE |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}
SMALL = SHAPE | {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def write(folder: Path, shape: dict[str, Any]) -> Path:
    """A folder with a model of random weights in bfloat16."""
    torch.manual_seed(0)
    LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def resident(field: str) -> int:
    """Bytes of resident memory of this process: now (`VmRSS`) or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(folder: str, small: str, dtype: str) -> None:
    """Print the figures of one opening; runs in a process of its own."""
    wb.load_model(small, dtype=dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = resident("VmRSS"), time.perf_counter()
    model = wb.load_model(folder, dtype=dtype)
    seconds, peak = time.perf_counter() - started, resident("VmHWM") - before
    weights = sum(one.numel() * one.element_size() for one in model.network.module.parameters())
    served = sum(point.module is not None for point in model.hook_points.values())
    print(f"opened in {dtype} in {seconds:.1f} s: peak {peak / 1e9:.2f} GB, {peak / weights:.3f} times its weights")
    print(f"{served} of {len(model.hook_points)} hook points are served by plain modules")


def measure_default() -> None:
    """Print the seconds of opening the default model twice; runs in a process of its own."""
    for words in ("with the imports of its architecture", "after imports"):
        started = time.perf_counter()
        wb.load_model()
        print(f"the default model, {words}: {time.perf_counter() - started:.2f} s")


def main() -> None:
    """Write the model and open it in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", help="of a model; by default one is written")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or str(write(Path(scratch) / "model", SHAPE))
        small = str(write(Path(scratch) / "small", SMALL))
        call = f"import bench_opening; bench_opening.measure({folder!r}, {small!r}, {given.dtype!r})"
        settings = os.environ | {"HF_HUB_OFFLINE": "1"}
        settings["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        own = settings | {"WORKBENCH_CACHE": str(Path(scratch) / "cache")}
        subprocess.run([sys.executable, "-c", call], env=own, check=True)
        wb.load_model()  # fetched once
        call = "import bench_opening; bench_opening.measure_default()"
        subprocess.run([sys.executable, "-c", call], env=settings, check=True)


if __name__ == "__main__":
    main()
