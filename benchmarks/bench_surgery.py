"""Peak memory of every operation of surgery, as a multiple of the model's size; wanted: at most 2.5.

    python benchmarks/bench_surgery.py [--only prune dare] [--tokens 1024]

Each operation runs in a process of its own. What counts is the highest resident memory (`ru_maxrss`) less what the
process had before it loaded the model, that is without Python and its libraries; loading counts. Full fine-tuning holds
gradients and two moments of every weight and is printed for comparison only.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import workbench as wb
from workbench.weights import parameters_of

WANTED = 2.5


def operations(tokens: int, sibling: str) -> dict[str, Callable[[wb.LanguageModel], object]]:
    """What is measured, by name; calibrations and searches are short, which does not change what is held."""
    texts = wb.Corpus.load("stories").take(200)
    short = {"passes": 4 * tokens, "tokens": tokens}
    heal = functools.partial(wb.heal, texts=texts, tokens=2048, batch=4)
    return {
        "loading alone": lambda _: None,
        "dare": lambda model: wb.dare(model, sibling, 0.9),
        "skip": lambda model: wb.skip(model, texts, 0.2, **short),
        "prune": lambda model: wb.prune(model, 0.5, corpus=texts, tokens=tokens),
        "prune 2:4": lambda model: wb.prune(model, pattern="2:4", corpus=texts, tokens=tokens),
        "search_sparsity": lambda model: wb.search_sparsity(model, texts, 0.5, **short),
        "quantise": lambda model: wb.quantise(model, 4),
        "search_bits": lambda model: wb.search_bits(model, texts, 4.0, **short),
        "fewer_kv_heads": lambda model: wb.fewer_kv_heads(model, 1, corpus=texts, tokens=tokens),
        "swap_activation": lambda model: wb.swap_activation(model, "polynorm", corpus=texts, tokens=tokens // 2),
        "see_ahead": wb.see_ahead,
        "expert": lambda model: wb.expert(model, texts, 0.5, tokens=tokens),
        "heal, rank 8": lambda model: heal(model, rank=8),
        "heal, all weights": heal,
    }


def resident() -> int:
    """Resident memory of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(name: str, tokens: int, sibling: str) -> dict[str, float]:
    """Run one operation in this process."""
    work = operations(tokens, sibling)[name]
    before, begun = resident(), time.perf_counter()
    model = wb.load_model()
    size = sum(tensor.numel() * tensor.element_size() for tensor in parameters_of(model.network.module).values())
    made = work(model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del made
    return {"model": size, "times": (peak - before) / size, "seconds": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="operations, by name")
    parser.add_argument("--tokens", type=int, default=1024, help="of calibrations")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--sibling", default="", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.here:
        print(json.dumps(measure(said.here, said.tokens, said.sibling)))
        return
    names = [name for name in operations(said.tokens, "") if not said.only or name in said.only]
    with tempfile.TemporaryDirectory() as folder:
        sibling = str(Path(folder) / "sibling")
        if "dare" in names:
            wb.quantise(wb.load_model(), 8).save_pretrained(sibling)
        print(f"peak memory as a multiple of the model  (wanted: at most {WANTED})")
        for name in names:
            command = [sys.executable, __file__, "--here", name, "--tokens", str(said.tokens), "--sibling", sibling]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(ended.stdout.splitlines()[-1])
            print(f"  {name:<20} {found['times']:5.2f}   ({found['seconds']:.0f} s with loading)", flush=True)


if __name__ == "__main__":
    main()
