"""The time of measuring PPL-1% sparsity beside one plain forward pass over the same tokens; optionally a check.

    python benchmarks/bench_sparsity.py [--corpus stories] [--tokens 8192] [--p 0.01] [--rounds 3] [--verify]

The plain pass computes the logits of every position of the same batches: those on which thresholds are searched, and
those that are reported. Three passes are timed before and three after each measurement, so that other work on the
machine slows both. With baselines it is the whole measurement, without them PPL-p% alone. `--verify` repeats the rise
in perplexity by an independent forward pass with the neurons zeroed, which takes as long again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

import torch
from timing import timed

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
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)

    model, corpus = wb.load_model(), Corpus.load(settings.corpus)
    how: dict[str, Any] = {"context": 256, "batch": 4, "seed": 0}
    halves = zip(
        sample_corpora(corpus, None, 0), (settings.tokens // 2, settings.tokens - settings.tokens // 2), strict=True
    )
    samples = [Sample.read(model, one, lambda _: None, tokens=tokens, **how) for one, tokens in halves]
    batches = [batch.tokens for sample in samples for batch in sample.batches]

    def run_plain() -> None:
        with torch.inference_mode():
            for tokens in batches:
                model(tokens)

    def plain() -> float:
        return timed(run_plain)[1].wall

    plain()
    measured: Any = None
    ratios: dict[str, list[float]] = {"all": [], "cett alone": []}
    for turn in range(settings.rounds):
        for name, baselines in (("all", ("fixed", "top_k")), ("cett alone", ())):
            before = [plain() for _ in range(3)]
            one, spent = timed(
                lambda b=baselines: wb.measure_sparsity(model, corpus, settings.p, settings.tokens, baselines=b, **how)
            )
            pass_ = statistics.median([*before, *(plain() for _ in range(3))])
            ratios[name].append(spent.wall / pass_)
            print(f"round {turn}: {name} {spent.wall:.1f} s, a plain pass {pass_:.2f} s", file=sys.stderr)
            measured = one if name == "all" else measured
    print(
        json.dumps(
            {
                "tokens": settings.tokens,
                "threads": torch.get_num_threads(),
                "times_a_plain_pass": {name: round(statistics.median(values), 2) for name, values in ratios.items()},
                "wanted_at_most": WANTED,
                "passes": round(measured.passes, 2),
                "asked": settings.p,
                "sparsity": round(measured.sparsity, 4),
                "interval": [round(end, 4) for end in measured.reported.intervals["sparsity"]],
                "ppl_increase": round(measured.ppl_increase, 5),
                "ppl_increase_on_others": round(measured.reported.ppl_increase, 5),
                "baselines": {name: round(one.sparsity, 4) for name, one in measured.baselines.items()},
                "verified": list(wb.sparsity.verify_sparsity(model, measured, corpus))
                if settings.verify
                else "not asked (--verify)",
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
