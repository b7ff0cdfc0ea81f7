"""Decoding all neurons of one weight beside the best product of this machine, and beside a chunked matmul and top-k.

    python benchmarks/bench_decode.py [--layers 30] [--rounds 1]

With fewer layers the products are those of so many layers, and decoding counts for as many.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading

import psutil
import torch
from limits import LIMIT, best_products, with_limit
from timing import in_turns, report, timed

import workbench as wb
from workbench.neurons.unembedding import CHUNK, NeuronTable


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="whose products are timed; all without it")
    parser.add_argument("--rounds", type=int, default=1)
    settings = parser.parse_args()
    model = wb.load_model()
    n_layers = model.network.n_layers
    layers = settings.layers or n_layers
    head = model.network.lm_head.rows(slice(None))
    rows = torch.cat([model.network.neuron_weights(n, "gate") for n in range(layers)])

    def alone() -> None:
        for part in rows.split(CHUNK):
            (part @ head.T).topk(10)

    ours, plain = "wb.decode_neurons, both signs", "chunked matmul and torch.topk alone"
    with torch.inference_mode():
        rivals = best_products(rows, head) | {plain: alone, ours: lambda: decode_anew(model)}
        times = with_limit(in_turns(rivals, settings.rounds))
    times[ours] *= layers / n_layers
    report(f"\nDecoding {len(rows):,} gate neurons", times, LIMIT, "at least 0.75")
    flops = 2 * len(rows) * head.numel()
    print(f"  {flops / times[ours] / 1e9:.0f} of {flops / times[LIMIT] / 1e9:.0f} GFLOP/s")

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
