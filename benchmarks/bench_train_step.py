"""One training step at d_in 576, width 4,608, batch 4,096, with fused Adam, beside the best product and plain autograd.

The best product of this machine is the physical limit: only the encoder's product is dense where codes are sparse. ReLU
and JumpReLU are timed as they are late in training, with 64 latents active per activation, and ReLU also as it begins,
with half of all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from limits import LIMIT, best_products, with_limit
from timing import in_turns, report
from torch.nn.functional import embedding_bag

from workbench.dictionaries.batchtopk import BatchTopKSAE
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.jumprelu import JumpReLUSAE
from workbench.dictionaries.relu import StandardSAE
from workbench.dictionaries.topk import TopKSAE, TopKTranscoder

D_IN, WIDTH, K, BATCH = 576, 4608, 32, 4096
ACTIVE = 64
DEAD = 256


def main() -> None:
    """Print the ratios."""
    torch.manual_seed(0)
    x, target = torch.randn(BATCH, D_IN), torch.randn(BATCH, D_IN)
    sae = TopKSAE(D_IN, WIDTH, K)
    plain = "plain autograd, embedding_bag decode"
    times = in_turns(
        best_products(x, sae.W_enc.T)
        | {
            plain: autograd_step(x),
            "TopK": step(sae, x),
            f"TopK, {DEAD} dead latents": step(TopKSAE(D_IN, WIDTH, K), x, dead=torch.arange(WIDTH) < DEAD),
            "TopK transcoder": step(TopKTranscoder(D_IN, WIDTH, K), x, target),
            "BatchTopK": step(BatchTopKSAE(D_IN, WIDTH, K), x),
            f"ReLU, {ACTIVE} active": step(sparse_enough(StandardSAE(D_IN, WIDTH), x), x),
            f"JumpReLU, {ACTIVE} active": step(sparse_enough(JumpReLUSAE(D_IN, WIDTH), x), x),
            "ReLU at the start": step(StandardSAE(D_IN, WIDTH), x, rate=0.0),
        },
        rounds=3,
    )
    times = with_limit(times)
    report("\nOne training step", times, LIMIT, "TopK at least 0.65")
    print(f"  TopK is {times[plain] / times['TopK']:.2f} times as fast as plain autograd  (wanted: at least 2.36)")
    print(f"  TopK: {BATCH / times['TopK']:,.0f} activations/s; the limit: {BATCH / times[LIMIT]:,.0f}")


def step(
    coder: SparseCoder,
    x: torch.Tensor,
    target: torch.Tensor | None = None,
    dead: torch.Tensor | None = None,
    rate: float = 1e-6,
) -> Callable[[], object]:
    """A whole step: loss, gradients, Adam, constraints."""
    if coder.unit_out == 1:
        coder.initialise(x, target)
    optimiser = torch.optim.Adam(coder.parameter_groups(rate), fused=True)

    def work() -> None:
        coder.loss_and_gradients(x, target, dead=dead)
        optimiser.step()
        coder.constrain()

    return work


def sparse_enough(coder: SparseCoder, x: torch.Tensor) -> SparseCoder:
    """The coder with biases such that `ACTIVE` latents are active on average."""
    coder.initialise(x)
    pre = coder.centre(x[:512]) @ coder.W_enc
    coder.b_enc.fill_(-float(pre.flatten().topk(512 * ACTIVE).values.min()))
    return coder


def autograd_step(x: torch.Tensor) -> Callable[[], object]:
    """The rival: the same TopK autoencoder, differentiated by PyTorch, decoded as an embedding bag."""
    sae = TopKSAE(D_IN, WIDTH, K).requires_grad_()
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-6, fused=True)

    def work() -> None:
        values, latents = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).topk(K, sorted=False)
        output = embedding_bag(latents, sae.W_dec, mode="sum", per_sample_weights=values.relu()) + sae.b_dec
        (output - x).square().sum(1).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))

    return work


if __name__ == "__main__":
    main()
