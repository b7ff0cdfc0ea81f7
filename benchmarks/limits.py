"""What dense work is measured against: the best product that this machine can do, in whichever way it does it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from workbench.core.products import FORMS

LIMIT = "best product of this machine"
"""What the benchmarks of dense work are measured against."""
STRIPS = 4096, 1024
"""Columns, and rows, of the result that a product makes at a time, so that they stay in the cache."""


def best_products(rows: torch.Tensor, weights: torch.Tensor) -> dict[str, Callable[[], object]]:
    """`rows @ weights.T` in each way that may be fastest here: every form of `workbench.core.products`, whole and in
    strips, each into memory that is there already. `with_limit` takes the fastest.

    Args:
        rows: `[n, width]`.
        weights: `[m, width]`.
    """
    columns, some = STRIPS
    room = rows.new_empty(min(len(rows) * len(weights), 1 << 27))

    def work(form: str, wide: int, high: int) -> None:
        for part in rows.split(high):
            for strip in weights.split(wide):
                FORMS[form](part, strip, room[: len(part) * len(strip)].view(len(part), -1))

    sizes = {(len(weights), min(some, len(rows))), (min(columns, len(weights)), min(some, len(rows)))}
    if len(rows) * len(weights) <= len(room):
        sizes.add((len(weights), len(rows)))
    forms = FORMS if room.device.type == "cpu" and room.dtype == torch.float32 else ["torch"]
    return {
        f"product {form} {high}x{wide}": lambda form=form, wide=wide, high=high: work(form, wide, high)
        for form in forms
        for wide, high in sorted(sizes)
    }


def with_limit(seconds: dict[str, float]) -> dict[str, float]:
    """Times in which the fastest of `best_products` stands for all of them, as `LIMIT`."""
    products = {name: one for name, one in seconds.items() if name.startswith("product ")}
    fastest = min(products, key=products.__getitem__)
    print(f"  the best product is {fastest.removeprefix('product ')}")
    return {LIMIT: products[fastest]} | {name: one for name, one in seconds.items() if name not in products}
