"""The Jacobian lens that comes with Workbench, fitted to the default model; and what it predicts on other texts.

    python scripts/fit_jacobian_lens.py --real WIKITEXT --checkpoint runs/jacobian.safetensors --save data/lenses/NAME
    python scripts/fit_jacobian_lens.py --real WIKITEXT --checkpoint runs/jacobian.safetensors --measure

Texts are those of `fit_lenses.py`: the first three quarters of the passages of WikiText-2 and of the bundled stories,
drawn evenly and in turn, of at least `--context` tokens each; the rest is for measuring. The fit goes on where it
stopped. `--save` writes the lens in 16 bits, `--measure` prints KL divergences by layer as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import torch
from fit_lenses import passages

import workbench as wb
from workbench.core.progress import SpokenProgress


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--save")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, real, stories = wb.load_model(), passages(Path(given.real)), list(wb.Corpus.load("stories").texts)
    parts = [(texts[: len(texts) * 3 // 4], texts[len(texts) * 3 // 4 :]) for texts in (real, stories)]
    drawn = [_drawn(model, fitting, given.prompts // 2, given.context) for fitting, _ in parts]
    texts = list(itertools.chain.from_iterable(zip(*drawn, strict=True)))
    corpus = wb.Corpus(texts, f"{len(texts)} passages of WikiText-2 and of the bundled stories")
    how = {"prompts": given.prompts, "context": given.context, "checkpoint": given.checkpoint}
    lens = wb.lens.fit_jacobian_lens(model, corpus, **how, progress=SpokenProgress())
    if given.save:
        lens.save(given.save, half=True)
        lens = wb.lens.load_lens(given.save, model)
    if given.measure:
        for name, (_, held_out) in zip(("WikiText-2", "stories"), parts, strict=True):
            other = wb.Corpus(held_out[:: max(1, len(held_out) // 40)], name)
            json.dump({name: wb.lens.measure_lens(model, lens, other, tokens=2048).to_dict()}, sys.stdout)
            print(flush=True)


def _drawn(model: wb.model.LanguageModel, texts: list[str], count: int, tokens: int) -> list[str]:
    """So many texts that are long enough, evenly over all of them."""
    long = [text for text in texts if model.to_tokens(text).shape[1] >= tokens]
    return [long[place * len(long) // count] for place in range(count)]


if __name__ == "__main__":
    main()
