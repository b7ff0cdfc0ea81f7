"""The speed of harvesting beside the bare Hugging Face layers, on the same batches of tokens.

    python benchmarks/bench_harvest.py [--tokens 8192] [--hook-point blocks.15.hook_resid_post] [--rounds 3]

The bare model is the plain Hugging Face one, cut off behind the layer, run under `inference_mode` without a mask or an
LM head, and its output is dropped. Harvesting adds tokenizing, hooks, the removal of padding and special tokens, and
the copy into `[n_tokens, width]`; with a store also fp16 and the disk. Rounds alternate; ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from timing import Spent, medians_in_turns
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
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)

    model = wb.load_model()
    corpus = Corpus.load(settings.corpus)
    layers = int(settings.hook_point.split(".")[1]) + 1
    how: dict[str, Any] = {"dtype": torch.float32}
    plain: Any = AutoModelForCausalLM.from_pretrained(
        cache_folder() / "models" / GGUF_SHA256, trust_remote_code=False, use_safetensors=True, **how
    )
    bare = plain.eval().model
    bare.layers = bare.layers[:layers]
    bare.config.num_hidden_layers = layers
    bare.norm = torch.nn.Identity()
    how = {"tokens": settings.tokens, "context": settings.context, "batch": settings.batch}
    batches = list(corpus.batches(model, **how))
    padding = 1 - sum(int(b.mask.sum()) for b in batches) / sum(b.mask.numel() for b in batches)
    harvest = Harvest(model, corpus, settings.hook_point, **how)

    def run_bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                bare(input_ids=batch.tokens, use_cache=False)

    def run_harvest() -> None:
        assert sum(len(part) for part in harvest) == settings.tokens

    def run_buffer() -> None:
        assert sum(len(part) for part in Buffer(harvest)) == settings.tokens

    def run_store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            assert len(Store.write(harvest, Path(folder) / "store")) == settings.tokens

    runs = {"bare": run_bare, "harvest": run_harvest, "buffer": run_buffer, "store": run_store}
    spent = medians_in_turns(runs, settings.rounds, _log)
    print(
        json.dumps(
            {
                "hook_point": settings.hook_point,
                **how,
                "threads": torch.get_num_threads(),
                "padding": round(padding, 4),
                "tokens_per_second": {name: round(settings.tokens / one.wall, 1) for name, one in spent.items()},
                "of_bare_speed": {name: round(spent["bare"].wall / one.wall, 3) for name, one in spent.items()},
                "of_bare_cpu_time": {name: round(spent["bare"].cpu / one.cpu, 3) for name, one in spent.items()},
            },
            indent=2,
        )
    )


def _log(turn: int, name: str, spent: Spent) -> None:
    """Print one turn."""
    print(f"round {turn}: {name} {spent.wall:.2f} s, {spent.cpu:.2f} s of CPU", file=sys.stderr)


if __name__ == "__main__":
    main()
