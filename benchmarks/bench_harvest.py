"""Speed of harvesting against the bare Hugging Face layers on the same token batches.

    python benchmarks/bench_harvest.py [--tokens 8192] [--hook-point blocks.15.hook_resid_post] [--rounds 3]

The bare model is the plain Hugging Face one, cut off behind the layer, run under `inference_mode` without a mask or an
LM head, its output thrown away. Harvesting adds cutting texts into tokens, hooks, leaving out padding and special
tokens, and the copy into `[n_tokens, width]`; with a store also fp16 and the disk. Rounds alternate, so that other work
on the machine falls on all alike; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.core.cache import cache_folder
from workbench.corpus import Corpus
from workbench.harvest import Buffer, Harvest, Store
from workbench.model.default_model import GGUF_SHA256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="stories")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hook-point", default="blocks.15.hook_resid_post")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    said = parser.parse_args()
    torch.set_num_threads(said.threads)

    model = wb.load_model()
    corpus = Corpus.load(said.corpus)
    layers = int(said.hook_point.split(".")[1]) + 1
    plain: Any = AutoModelForCausalLM.from_pretrained(cache_folder() / "models" / GGUF_SHA256, dtype=torch.float32)
    bare = plain.eval().model
    bare.layers = bare.layers[:layers]
    bare.config.num_hidden_layers = layers
    bare.norm = torch.nn.Identity()
    how = {"tokens": said.tokens, "context": said.context, "batch": said.batch}
    batches = list(corpus.batches(model, **how))
    padding = 1 - sum(int(b.mask.sum()) for b in batches) / sum(b.mask.numel() for b in batches)
    harvest = Harvest(model, corpus, said.hook_point, **how)

    def run_bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                bare(input_ids=batch.tokens, use_cache=False)

    def run_harvest() -> None:
        assert sum(len(part) for part in harvest) == said.tokens

    def run_buffer() -> None:
        assert sum(len(part) for part in Buffer(harvest)) == said.tokens

    def run_store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            assert len(Store.write(harvest, Path(folder) / "store")) == said.tokens

    runs = {"bare": run_bare, "harvest": run_harvest, "buffer": run_buffer, "store": run_store}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(said.rounds + 1):  # the first round warms up
        for name, run in runs.items():
            begun, worked = time.perf_counter(), time.process_time()
            run()
            if turn:
                wall[name].append(time.perf_counter() - begun)
                cpu[name].append(time.process_time() - worked)
                print(f"round {turn}: {name} {wall[name][-1]:.2f} s, {cpu[name][-1]:.2f} s of CPU", file=sys.stderr)
    medians = {name: statistics.median(times) for name, times in wall.items()}
    print(
        json.dumps(
            {
                "hook_point": said.hook_point,
                **how,
                "threads": torch.get_num_threads(),
                "padding": round(padding, 4),
                "tokens_per_second": {name: round(said.tokens / took, 1) for name, took in medians.items()},
                "of_bare_speed": {name: round(medians["bare"] / took, 3) for name, took in medians.items()},
                "of_bare_cpu_time": {
                    name: round(statistics.median(cpu["bare"]) / statistics.median(times), 3)
                    for name, times in cpu.items()
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
