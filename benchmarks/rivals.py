"""One trainer of sparse autoencoders, controlled through its input: `bench_trainers.py` runs each in its own Python.

    PYTHON benchmarks/rivals.py WHO D_IN WIDTH K BATCH DATA

reads lines `steps N` and `evaluate` from its input. Each is answered by a line: seconds taken, or the share of the
variance of DATA's last batch that is explained. It works on DATA (`x` [n, d_in] in safetensors), batch after batch.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from timing import timed
from torch import Tensor

DEAD_AFTER = 250_000
"""Tokens without activation after which a latent is dead, for every trainer."""

RATES = {"topk": 3e-3}
"""Our learning rates where they are not 1e-3; as for the rivals, each kind has its best one."""

Trainer = tuple[Callable[[Tensor], object], Callable[[Tensor], Tensor]]
"""A function that trains on a batch, and one that reconstructs a batch."""


def limit(d_in: int, width: int, k: int, batch: int, x: Tensor) -> Trainer:
    """The encoder's product alone, in the way that is fastest on this machine."""
    from limits import best_products

    weights = torch.randn(width, d_in, device=x.device) / d_in**0.5
    ways = best_products(x[:batch], weights)
    times = {name: min(timed(way)[1].wall for _ in range(5)) for name, way in ways.items()}
    fastest = ways[min(times, key=times.__getitem__)]
    return lambda rows: fastest(), lambda rows: rows


def workbench(kind: str) -> Callable[..., Trainer]:
    """Our own step, with everything that `workbench.train` does between two batches."""

    def make(d_in: int, width: int, k: int, batch: int, x: Tensor) -> Trainer:
        import workbench as wb

        sae: Any = wb.dictionaries.Dictionary.kinds[kind](d_in, width, **({"k": k} if "topk" in kind else {}))
        sae.to(x.device)
        sae.initialise(x[:8192])
        optimiser = torch.optim.Adam(sae.parameter_groups(RATES.get(kind, 1e-3)), fused=True)
        silent = torch.zeros(width, dtype=torch.long, device=x.device)

        def step(rows: Tensor) -> None:
            nonlocal silent
            losses = sae.loss_and_gradients(rows, dead=silent > DEAD_AFTER)
            for parameter in sae.parameters():
                torch.linalg.vector_norm(parameter.grad)  # for clipping
            optimiser.step()
            sae.constrain()
            silent = torch.where(losses.fired > 0, 0, silent + len(rows))

        return step, sae.reconstruct

    return make


def saelens(architecture: str, **settings: Any) -> Callable[..., Trainer]:
    """`SAETrainer.step` of sae-lens, which scales the input first as its documentation advises."""

    def make(d_in: int, width: int, k: int, batch: int, x: Tensor) -> Trainer:
        from sae_lens import registry
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        sae_class, config_class = registry.get_sae_training_class(architecture)
        own = {"k": k} if "topk" in architecture else {}
        sae = sae_class(
            config_class(
                d_in=d_in,
                d_sae=width,
                normalize_activations="expected_average_only_in",
                device=str(x.device),
                **(settings | own),
            )
        )
        config = SAETrainerConfig(
            10**9, batch, device=str(x.device), lr=3e-4, lr_end=3e-4, dead_feature_window=-(-DEAD_AFTER // batch)
        )
        rows = itertools.cycle(x[:-batch].split(batch))
        trainer: Any = SAETrainer(config, sae, rows)
        trainer.activation_scaler.estimate_scaling_factor(d_in=d_in, data_provider=rows, n_batches_for_norm_estimate=4)

        def step(rows: Tensor) -> None:
            trainer.step(rows)
            trainer.n_training_steps += 1

        factor = trainer.activation_scaler.scaling_factor
        return step, lambda rows: sae(rows * factor) / factor

    return make


def sparsify(d_in: int, width: int, k: int, batch: int, x: Tensor) -> Trainer:
    """The step of eai-sparsify's trainer: its own optimiser (signum, schedule-free) at its own learning rate."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    sae = SparseCoder(d_in, SparseCoderConfig(num_latents=width, k=k), device=x.device)
    sae.b_dec.data.copy_(x[:8192].mean(0))
    group = {"params": sae.parameters(), "lr": 5e-3 / (width / 2**14) ** 0.5}
    optimiser: Any = ScheduleFreeWrapper(SignSGD([group]), momentum=0.95)
    optimiser.train()
    silent = torch.zeros(width, dtype=torch.long, device=x.device)

    def step(rows: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(rows, dead_mask=silent > DEAD_AFTER)
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        silent.add_(len(rows))
        silent[out.latent_indices.flatten()] = 0

    def reconstruct(rows: Tensor) -> Tensor:
        optimiser.eval()
        output = sae(rows).sae_out
        optimiser.train()
        return output

    return step, reconstruct


TRAINERS: dict[str, Callable[..., Trainer]] = {
    "limit": limit,
    "sparsify topk": sparsify,
    **{f"workbench {kind}": workbench(kind) for kind in ("topk", "batchtopk", "jumprelu", "standard")},
    "sae-lens topk": saelens("topk"),
    "sae-lens batchtopk": saelens("batchtopk"),
    "sae-lens jumprelu": saelens("jumprelu"),
    "sae-lens standard": saelens("standard"),
}


def main() -> None:
    """Answer every line of the input."""
    who, *sizes, data = sys.argv[1:]
    d_in, width, k, batch = map(int, sizes)
    torch.manual_seed(0)
    x = load_file(data)["x"]
    test = x[-batch:]
    step, reconstruct = TRAINERS[who](d_in, width, k, batch, x)
    batches: Iterator[Tensor] = itertools.cycle(x[:-batch].split(batch))
    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "steps":
            count = int(rest[0])
            _, spent = timed(lambda count=count: [step(next(batches)) for _ in range(count)])
            print(spent.wall, flush=True)
        else:
            with torch.no_grad():
                error = (reconstruct(test) - test).square().sum() / (test - test.mean(0)).square().sum()
            print(1 - float(error), flush=True)


if __name__ == "__main__":
    main()
