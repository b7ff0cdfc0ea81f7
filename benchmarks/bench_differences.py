"""The time of comparing two models' texts and streams beside a plain pass of each over the same tokens.

    python benchmarks/bench_differences.py [--tokens 8192]

Wanted are at most 2.5 plain passes of both models. The models are the default one and a copy with one changed matrix.
"""

from __future__ import annotations

import argparse

import torch
from timing import timed

import workbench as wb
from workbench.model.weights import parameters_of
from workbench.surgery.child import make_child

CONTEXT, BATCH = 128, 8


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    tokens = parser.parse_args().tokens
    a = wb.load_model()
    name = "model.layers.12.mlp.down_proj.weight"
    weight = parameters_of(a.network.module)[name]
    b = make_child(a, {name: weight * 1.05}, {"operation": "scaled"}).model
    corpus = wb.Corpus.load("stories")

    def plain() -> None:
        with torch.inference_mode():
            for some in corpus.batches(a, CONTEXT, BATCH, tokens):
                for model in (a, b):
                    model.run(some.tokens)

    wb.differences.compare_models(a, b, corpus, parts=["texts"], tokens=64, context=CONTEXT, batch=BATCH)
    passes = timed(plain)[1]
    found, ours = timed(
        lambda: wb.differences.compare_models(
            a, b, corpus, parts=["texts"], tokens=tokens, context=CONTEXT, batch=BATCH
        )
    )
    print(f"{tokens:,} tokens: plain passes of both {passes.wall:.1f} s, texts and streams {ours.wall:.1f} s")
    print(f"  plain passes {ours.wall / passes.wall:.2f} (at most 2.5); {found.findings[0].sentence}")


if __name__ == "__main__":
    main()
