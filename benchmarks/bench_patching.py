"""Time of activation patching by layer and position against one pass for each cell, and of its estimate.

`python benchmarks/bench_patching.py` prints, for a prompt of about 12 tokens on the default model: the seconds of the
grid of streams, the share of the same passes one by one (a sample of them, times their number), the largest difference
from these, and attribution patching in plain forward passes.
"""

from __future__ import annotations

import time

import torch

import workbench as wb
from workbench.circuits.position_runs import stream_point
from workbench.model.edits import Edit

CLEAN = "The Eiffel Tower is a famous place in the city of"
CORRUPTED = "The Big Ben is a famous place in the city of"
SAMPLE = 30
"""Cells that run one by one."""


def main() -> None:
    """Print the times."""
    model = wb.load_model()
    pair = wb.circuits.align_prompts(model, [CLEAN], [CORRUPTED], answers=[" Paris"], wrong=[" London"])
    clean, corrupted = pair.pairs[0].clean, pair.pairs[0].corrupted
    if len(clean) != len(corrupted):
        corrupted = torch.cat([clean[:1] + 1, clean[1:]])
        pair = wb.circuits.align_prompts(model, [clean], [corrupted], answers=[" Paris"], wrong=[" London"])
    wb.circuits.patch_positions(model, pair, layers=[3])  # opens what is opened once
    began = time.perf_counter()
    grid = wb.circuits.patch_positions(model, pair)
    whole = time.perf_counter() - began
    cells, places = grid.values.numel(), len(pair.places)
    names = [stream_point(layer) for layer in range(model.network.n_layers)]
    values = model.capture(clean[None], names)
    chosen = torch.randperm(cells, generator=torch.Generator().manual_seed(0))[:SAMPLE].tolist()
    right, wrong = (model.to_tokens(one, start=False)[0, 0] for one in (" Paris", " London"))
    off, began = 0.0, time.perf_counter()
    for cell in chosen:
        layer, place = divmod(cell, places)
        value = values[names[layer]][0, place]
        edit = Edit(names[layer], lambda x, value=value: value.expand_as(x), (place,))
        with torch.inference_mode():
            logits = model.run(corrupted[None], [edit], last=1)[0, -1].float()
        off = max(off, abs(float(logits[right] - logits[wrong] - grid.values[layer, place])))
    one = (time.perf_counter() - began) / SAMPLE
    began = time.perf_counter()
    estimate = wb.circuits.attribute_positions(model, pair)
    slopes = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(10):
        with torch.inference_mode():
            model.run(corrupted[None], last=1)
    plain = (time.perf_counter() - began) / 10
    print(f"grid of {len(grid.rows)} layers x {places} positions: {whole:.2f} s; a pass {one * 1000:.0f} ms")
    print(f"of the passes one by one: {whole / (one * cells):.2f} (at most 0.35); largest difference {off:.1e}")
    print(f"attribution patching: {slopes / plain:.1f} forward passes (at most 4), correlation "
          f"{grid.correlation(estimate):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
