"""The time of reading a text, beside the bare pass and products, and of fitting a Jacobian lens beside TransformerLens.

    python benchmarks/bench_lens.py [--tokens 64] [--passes 6] [--rounds 2] [--positions 128]

Reading takes at most 1.3 times the bare forward pass and one product of all layers and positions with the LM head. Of
fitting, wanted are four times the speed. TransformerLens takes a forward pass and 72 backward passes of 8 coordinates
for a text on the default model; a few of the latter are timed, and their median counts for all. Ours is a whole text,
its reading included. Both take turns, so that other work on the machine slows both alike.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import warnings
from typing import Any

import torch
from limits import LIMIT, best_products, with_limit
from timing import Spent, in_turns, medians, report, timed
from transformer_lens.tools.analysis import jacobian_lens as rival

import workbench as wb

ROWS = 8
"""Coordinates of a backward pass, TransformerLens's default."""


class _EnoughError(Exception):
    """So many passes were timed."""


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--passes", type=int, default=6, help="0 leaves fitting out")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--positions", type=int, default=128, help="of the text that is read; 0 leaves reading out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    model = wb.load_model()
    if settings.positions:
        read(model, settings.positions, settings.rounds)
    if not settings.passes:
        return
    text = next(one for one in wb.Corpus.load("stories").texts if model.to_tokens(one).shape[1] >= settings.tokens)
    theirs, ours = [], []
    for _ in range(settings.rounds):
        theirs.append(their_time(model, text, settings.tokens, settings.passes))
        ours.append(timed(lambda: wb.lens.fit_jacobian_lens(model, [text], context=settings.tokens))[1])
        print(f"TransformerLens {theirs[-1].cpu:.1f} s of the processor, ours {ours[-1].cpu:.1f} s", flush=True)
    them, us = medians(theirs), medians(ours)
    print(f"{settings.tokens} tokens, {torch.get_num_threads()} threads (wanted: 4.0)")
    print(f"  TransformerLens {them.wall:7.1f} s, {them.cpu:7.1f} s of the processor")
    print(f"  ours            {us.wall:7.1f} s, {us.cpu:7.1f} s of the processor")
    print(f"  ratio           {them.wall / us.wall:7.2f}    {them.cpu / us.cpu:7.2f}")


def read(model: wb.model.LanguageModel, positions: int, rounds: int) -> None:
    """Print the time of a grid beside the work that it can't do without."""
    text = " ".join(wb.Corpus.load("stories").texts[:20])
    ids = model.to_tokens(text)[:, :positions]
    head = model.network.lm_head.rows(slice(None))
    streams = torch.randn(model.network.n_layers * positions, head.shape[1])
    grid, forward, plain = "wb.read_lens", "bare forward pass", "one product, into fresh memory"
    with torch.no_grad():
        rivals = {
            forward: lambda: model.run(ids, [], last=1),
            plain: lambda: streams @ head.T,
            **best_products(streams, head),
            grid: lambda: wb.read_lens(model, ids[0], progress=False),
        }
        times = with_limit(in_turns(rivals, rounds))
    report(f"\nReading {positions} positions of {model.network.n_layers} layers", times, grid)
    for name in (plain, LIMIT):
        print(f"  {times[grid] / (times[forward] + times[name]):.2f} of forward pass and {name} (wanted: at most 1.3)")


def their_time(model: wb.model.LanguageModel, text: str, tokens: int, passes: int) -> Spent:
    """The time of TransformerLens's fit on a text, from its forward pass and a few backward passes."""
    bridge: Any = model.network.bridge
    bridge.cfg.model_name = model.name
    each: list[Spent] = []
    real = rival._ordinary_vjp

    def counted(*arguments: Any) -> Any:
        gradients, spent = timed(lambda: real(*arguments))
        each.append(spent)
        if len(each) > passes:
            raise _EnoughError
        return gradients

    def fit() -> None:
        with contextlib.suppress(_EnoughError):
            how = {"dim_batch": ROWS, "max_seq_len": tokens, "show_progress": False}
            rival.JacobianLens.fit(bridge, [text], corpus="one", **how)

    rival._ordinary_vjp = counted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, whole = timed(fit)
    finally:
        rival._ordinary_vjp = real
    count = -(-model.network.d_model // ROWS)

    def total(name: str) -> float:
        spent = [getattr(one, name) for one in each]
        return getattr(whole, name) - sum(spent) + count * statistics.median(spent[1:])

    return Spent(total("wall"), total("cpu"))


if __name__ == "__main__":
    main()
