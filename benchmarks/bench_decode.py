"""Decoding all neurons of one weight beside the same chunked matmul and top-k alone; memory; search."""

from __future__ import annotations

import os
import tempfile
import threading

import psutil
import torch
from timing import in_turns, report, timed

import workbench as wb
from workbench.neurons.unembedding import CHUNK, NeuronTable


def main() -> None:
    """Print the ratios."""
    model = wb.load_model()
    head = model.network.lm_head.rows(slice(None))
    rows = [
        part for n in range(model.network.n_layers) for part in model.network.neuron_weights(n, "gate").split(CHUNK)
    ]

    def alone() -> None:
        for part in rows:
            (part @ head.T).topk(10)

    def product_only() -> None:
        room = torch.empty(CHUNK, head.shape[0])
        for part in rows:
            torch.mm(part, head.T, out=room[: len(part)])

    with torch.inference_mode():
        times = in_turns(
            {
                "chunked matmul and torch.topk alone": alone,
                "matmul alone (the limit)": product_only,
                "wb.decode_neurons, both signs": lambda: decode_anew(model),
            },
            rounds=1,
        )
    report("\nDecoding 46,080 gate neurons", times, "chunked matmul and torch.topk alone", "at least 0.85")
    flops = 2 * len(rows) * CHUNK * head.numel()
    print(f"  {flops / times['wb.decode_neurons, both signs'] / 1e9:.0f} GFLOP/s")

    print(f"  memory above the loaded model: {_peak_above(lambda: decode_anew(model)):.2f} GiB")

    table = wb.decode_neurons(model, "gate", 10)
    table.search("warm up")
    for text, match in (("dog", "any"), (" dog", "exact"), ("a", "contains")):
        hits, spent = timed(lambda text=text, match=match: table.search(text, match=match))
        print(f"  search {text!r} ({match}): {1e3 * spent.wall:.1f} ms, {len(hits)} hits  (wanted: < 50 ms)")


def decode_anew(model: wb.model.LanguageModel) -> NeuronTable:
    """All gate neurons, decoded without the cache; the table is written to a temporary one."""
    before = os.environ.get("WORKBENCH_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_CACHE"] = folder
        try:
            return wb.decode_neurons(model, "gate", 10)
        finally:
            del os.environ["WORKBENCH_CACHE"]
            if before is not None:
                os.environ["WORKBENCH_CACHE"] = before


def _peak_above(work: object) -> float:
    """Highest resident memory while `work` runs, above what it was before, in GiB."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()  # type: ignore[operator]
    done.set()
    watcher.join()
    return (peak - before) / 2**30


if __name__ == "__main__":
    main()
