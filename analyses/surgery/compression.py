"""Pruning, rounding, joined heads and other activations."""

from __future__ import annotations

import functools
from typing import Any

import workbench as wb
from analyses.surgery.bench import Bench, heal


def pruning(bench: Bench) -> None:
    """Add the rows of pruning: magnitude and Wanda, 2:4, a sparsity for each matrix, and decaying masks."""
    plan, model = bench.plan, bench.model
    for score in ("magnitude", "wanda"):
        how = {"score": score, "corpus": bench.seen, "seed": plan.seed}
        for sparsity in plan.sparsities:
            make = bench.child(functools.partial(wb.surgery.prune, model, sparsity, **how))
            bench.row("prune", f"{sparsity:.0%}, {score}", f"{1 - sparsity:.0%} of weights", make)
        make = bench.child(functools.partial(wb.surgery.prune, model, pattern="2:4", **how))
        bench.row("prune", f"2:4, {score}", "50% of weights", make)

    def own() -> tuple[Any, dict[str, Any]]:
        child, result = wb.surgery.search_sparsity(
            model, bench.seen, 0.5, passes=plan.fewer_passes, tokens=plan.calibration // 2, context=plan.window
        )
        return child.model.network.module, {"token_forwards": result.token_forwards, "kl_calibration": result.kl}

    bench.row("prune", "50% on average, wanda, evopress", "50% of weights", own)
    full: dict[str, Any] = {"rank": None, "only": r"layers\.\d+\.", "lr": plan.full_lr}
    for until, name in ((0.5, "decaying mask"), (0.0, "mask at once")):
        decay = wb.surgery.Decay(pattern="2:4", until=until)
        make = bench.child(functools.partial(heal, bench, model, name, sparsify=decay, **full))
        bench.row("prune", f"2:4, magnitude, healed with a {name}", "50% of weights", make)


def rounding(bench: Bench) -> None:
    """Add the rows of rounding to the nearest value, and of a number of bits for each matrix."""
    plan = bench.plan
    for bits in plan.bits:
        bench.row(
            "round",
            f"{bits} bits",
            f"{bits} bits",
            bench.child(functools.partial(wb.surgery.quantise, bench.model, bits)),
        )

    def own() -> tuple[Any, dict[str, Any]]:
        child, result = wb.surgery.search_bits(
            bench.model, bench.seen, 4.0, passes=plan.fewer_passes, tokens=plan.calibration // 2, context=plan.window
        )
        return child.model.network.module, {"token_forwards": result.token_forwards, "kl_calibration": result.kl}

    bench.row("round", "4 bits on average, evopress", "4 bits", own)


def heads(bench: Bench) -> None:
    """Add the rows of three key and value heads merged into one, by mean and by singular vectors, also healed."""
    for method in ("mean", "svd"):
        join = functools.partial(wb.surgery.merge_kv_heads, bench.model, 1, method=method, corpus=bench.seen)
        bench.row("join heads", f"3 → 1, {method}", "1/3 of the cache", bench.child(join))
        make = bench.child(lambda join=join, method=method: heal(bench, join(), f"heads {method}"))
        bench.row("join heads", f"3 → 1, {method}, healed", "1/3 of the cache", make)


def activations(bench: Bench) -> None:
    """Add the rows of other activations, fitted and healed."""
    for kind in ("relu", "polyrelu", "polynorm", "series"):
        swap = functools.partial(wb.surgery.swap_activation, bench.model, kind, corpus=bench.seen)
        bench.row("swap activation", kind, "the same size", bench.child(swap))
        make = bench.child(lambda swap=swap, kind=kind: heal(bench, swap(), f"activation {kind}"))
        bench.row("swap activation", f"{kind}, healed", "the same size", make)
