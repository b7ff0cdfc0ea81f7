"""Snapping activations to codes against the bare similarity product with top-k, at the sizes of the paper's models."""

from __future__ import annotations

import torch
from timing import in_turns, report

from workbench.dictionaries.codebook import Codebook

ROWS = 4096
SIZES = {
    "9 heads of 64, 1,000 codes, k 8": (576, 1000, 8, 9),
    "4 heads of 32, 2,000 codes, k 1": (128, 2000, 1, 4),
    "one book of 576, 10,000 codes, k 8": (576, 10_000, 8, 1),
}


@torch.inference_mode()
def main() -> None:
    """Print the ratios."""
    for name, (width, n_codes, k, groups) in SIZES.items():
        book = Codebook(width, n_codes, k, groups)
        x = torch.randn(ROWS, width)
        parts = x.view(ROWS, groups, -1).transpose(0, 1).contiguous()  # [groups, rows, d]
        keys = torch.nn.functional.normalize(book.codes, dim=-1).transpose(1, 2)  # [groups, d, n_codes]
        bare = f"{groups} similarity products with torch.topk alone"

        def products(parts: torch.Tensor = parts, keys: torch.Tensor = keys, k: int = k) -> None:
            for part, key in zip(parts, keys, strict=True):
                (part @ key).topk(k, sorted=False)

        times = in_turns(
            {
                bare: products,
                "encode": lambda book=book, x=x: book.encode(x),
                "encode and decode": lambda book=book, x=x: book.reconstruct(x),
            }
        )
        report(f"\n{name}, {ROWS:,} activations", times, bare, "encode at least 0.8")


if __name__ == "__main__":
    main()
