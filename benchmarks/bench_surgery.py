"""Peak memory of every operation of surgery, as a multiple of the model's size; wanted: at most 2.5.

    python benchmarks/bench_surgery.py [--only prune dare] [--tokens 1024]

Each operation runs in its own process, on a loaded model. The figure is the rise of the resident memory above that of
the loaded model, plus 1 for the model itself. The kernel's peak of the resident memory is reset after loading; loading
is measured separately. Full fine-tuning holds gradients and two moments of every weight and is printed for comparison
only.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from timing import timed

import workbench as wb
from workbench.model.weights import parameters_of

WANTED = 2.5


def operations(tokens: int, sibling: str) -> dict[str, Callable[[wb.model.LanguageModel], object]]:
    """The operations by name; calibrations and searches are short, which does not change the memory they need."""
    texts = wb.Corpus.load("stories").take(200)
    short = {"passes": 4 * tokens, "tokens": tokens}
    heal = functools.partial(wb.surgery.heal, texts=texts, tokens=2048, batch=4)
    return {
        "dare": lambda model: wb.surgery.dare(model, sibling, 0.9),
        "drop_sublayers": lambda model: wb.surgery.drop_sublayers(
            model, texts, 0.2, passes=40_000, tokens=tokens
        ),  # enough for gradients
        "prune": lambda model: wb.surgery.prune(model, 0.5, corpus=texts, tokens=tokens),
        "prune 2:4": lambda model: wb.surgery.prune(model, pattern="2:4", corpus=texts, tokens=tokens),
        "search_sparsity": lambda model: wb.surgery.search_sparsity(model, texts, 0.5, **short),
        "quantise": lambda model: wb.surgery.quantise(model, 4),
        "search_bits": lambda model: wb.surgery.search_bits(model, texts, 4.0, **short),
        "merge_kv_heads": lambda model: wb.surgery.merge_kv_heads(model, 1, corpus=texts, tokens=tokens),
        "swap_activation": lambda model: wb.surgery.swap_activation(
            model, "polynorm", corpus=texts, tokens=tokens // 2
        ),
        "remove_causal_mask": wb.surgery.remove_causal_mask,
        "extract_expert": lambda model: wb.surgery.extract_expert(model, texts, 0.5, tokens=tokens),
        "heal, rank 8": lambda model: heal(model, rank=8),
        "heal, all weights": heal,
    }


def status(key: str) -> int:
    """One line of `/proc/self/status`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def measure(name: str, tokens: int, sibling: str) -> dict[str, float]:
    """Run one operation in this process: its peak memory as a multiple of the model, and its seconds."""
    work = operations(tokens, sibling).get(name)
    before = status("VmRSS")
    model, loading = timed(wb.load_model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in parameters_of(model.network.module).values())
    if work is None:
        return {"times": (status("VmHWM") - before) / size, "seconds": loading.wall}
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory freed by loading would hide what the operation takes
    Path("/proc/self/clear_refs").write_text("5")
    loaded = status("VmRSS")
    result, spent = timed(lambda: work(model))
    times = 1 + (status("VmHWM") - loaded) / size
    del result
    return {"times": times, "seconds": spent.wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="operations, by name")
    parser.add_argument("--tokens", type=int, default=1024, help="of calibrations")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--sibling", default="", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.here:
        print(json.dumps(measure(settings.here, settings.tokens, settings.sibling)))
        return
    names = [
        name for name in ("loading", *operations(settings.tokens, "")) if not settings.only or name in settings.only
    ]
    with tempfile.TemporaryDirectory() as folder:
        sibling = str(Path(folder) / "sibling")
        if "dare" in names:
            wb.surgery.quantise(wb.load_model(), 8).save_pretrained(sibling)
        print(f"peak memory as a multiple of the model  (wanted: at most {WANTED})")
        for name in names:
            command = [sys.executable, __file__, "--here", name, "--tokens", str(settings.tokens), "--sibling", sibling]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            measured = json.loads(ended.stdout.splitlines()[-1])
            print(f"  {name:<20} {measured['times']:5.2f}   ({measured['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
