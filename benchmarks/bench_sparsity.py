"""What a measurement of PPL-1% sparsity costs beside one plain forward pass over the same tokens, and whether it is so.

    python benchmarks/bench_sparsity.py [--corpus stories] [--tokens 8192] [--p 0.01] [--rounds 3] [--verify]

The plain pass computes the logits of every position of the same batches, all of them: those that thresholds are found
on, and those that are reported. Three of them are timed before and after each measurement, so that other work on the
machine falls on both. With baselines it is the whole measurement, without them PPL-p% alone. `--verify` repeats the rise
in perplexity by an independent forward pass with the neurons zeroed, which takes as long again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch

import workbench as wb
from workbench.corpus import Corpus
from workbench.sparsity.evaluation import Sample
from workbench.sparsity.measure import sample_corpora

WANTED = 14
"""Times a plain pass, at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="stories")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--p", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--verify", action="store_true")
    said = parser.parse_args()
    torch.set_num_threads(said.threads)

    model, corpus = wb.load_model(), Corpus.load(said.corpus)
    how: dict[str, Any] = {"context": 256, "batch": 4, "seed": 0}
    halves = zip(sample_corpora(corpus, None, 0), (said.tokens // 2, said.tokens - said.tokens // 2), strict=True)
    samples = [Sample.read(model, one, lambda _: None, tokens=tokens, **how) for one, tokens in halves]
    batches = [batch.tokens for sample in samples for batch in sample.batches]

    def plain() -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            for tokens in batches:
                model(tokens)
        return time.perf_counter() - begun

    plain()
    found: Any = None
    ratios: dict[str, list[float]] = {"all": [], "cett alone": []}
    for turn in range(said.rounds):
        for name, baselines in (("all", ("fixed", "top_k")), ("cett alone", ())):
            before = [plain() for _ in range(3)]
            begun = time.perf_counter()
            one = wb.measure_sparsity(model, corpus, said.p, said.tokens, baselines=baselines, **how)
            took = time.perf_counter() - begun
            pass_ = statistics.median([*before, *(plain() for _ in range(3))])
            ratios[name].append(took / pass_)
            print(f"round {turn}: {name} {took:.1f} s, a plain pass {pass_:.2f} s", file=sys.stderr)
            found = one if name == "all" else found
    print(
        json.dumps(
            {
                "tokens": said.tokens,
                "threads": torch.get_num_threads(),
                "times_a_plain_pass": {name: round(statistics.median(values), 2) for name, values in ratios.items()},
                "wanted_at_most": WANTED,
                "passes": round(found.passes, 2),
                "asked": said.p,
                "sparsity": round(found.sparsity, 4),
                "interval": [round(end, 4) for end in found.reported.intervals["sparsity"]],
                "ppl_increase": round(found.ppl_increase, 5),
                "ppl_increase_on_others": round(found.reported.ppl_increase, 5),
                "baselines": {name: round(baseline.sparsity, 4) for name, baseline in found.baselines.items()},
                "verified": list(wb.sparsity.verify_sparsity(model, found, corpus))
                if said.verify
                else "not asked (--verify)",
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
