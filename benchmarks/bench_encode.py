"""Encoding activations at d_in 576, width 4,608 against the best product of this machine, and the encoder's product
followed by torch.topk."""

from __future__ import annotations

import torch
from limits import LIMIT, best_products, with_limit
from timing import in_turns, report

from workbench.dictionaries.jumprelu import JumpReLUSAE
from workbench.dictionaries.topk import TopKSAE

D_IN, WIDTH, K, BATCH = 576, 4608, 32, 4096


def main() -> None:
    """Print the ratios."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, D_IN)
    sae = TopKSAE(D_IN, WIDTH, K)
    sae.initialise(x)
    jump = JumpReLUSAE(D_IN, WIDTH)
    jump.initialise(x)
    pre = jump.centre(x[:512]) @ jump.W_enc
    jump.activation.threshold.fill_(float(pre.flatten().topk(512 * K).values.min()))  # K active on average

    codes = sae.encode(x)
    matmul_topk = f"encoder matmul, then torch.topk ({K})"
    rivals = best_products(x, sae.W_enc.T)
    times = in_turns(
        rivals
        | {
            matmul_topk: lambda: (x @ sae.W_enc).topk(K),
            "TopK sae.encode": lambda: sae.encode(x),
            "JumpReLU sae.encode": lambda: jump.encode(x),
            "sae.decode": lambda: sae.decode(codes),
        },
        rounds=7,
    )
    times = with_limit(times)
    report(f"\nEncoding {BATCH:,} activations", times, LIMIT, "TopK at least 0.75")
    print(f"  {BATCH / times['TopK sae.encode']:,.0f} activations/s")


if __name__ == "__main__":
    main()
