"""sae-lens's half of `bench_synthetic.py`, run by a Python that has sae-lens: data, its own training, the judging.

python benchmarks/synthetic_rival.py data FOLDER
python benchmarks/synthetic_rival.py train FOLDER KIND LR NAME
python benchmarks/synthetic_rival.py judge FOLDER NAME…
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.synthetic import HierarchyConfig, ZipfianFiringProbabilityConfig, eval_sae_on_synthetic_data
from sae_lens.synthetic.synthetic_model import LowRankCorrelationConfig, SyntheticModel, SyntheticModelConfig
from sae_lens.training.sae_trainer import SAETrainer
from timing import timed

FEATURES, D_IN, WIDTH, K = 1024, 128, 512, 9
TOKENS, BATCH = 500_000, 1024
JUDGED = 50_000
SEEDS = {"features": 9001, "data": 9002, "weights": 9003, "judging": 9004}
"""All different, and none that a dictionary starts from: `torch.randn` of one seed gives features and starting weights
the same rows, so that an untrained dictionary would match every feature."""
KINDS = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}


def synthetic_model() -> SyntheticModel:
    """Features in superposition, some rare and some frequent, correlated, most of them in hierarchies."""
    return SyntheticModel(
        SyntheticModelConfig(
            num_features=FEATURES,
            hidden_dim=D_IN,
            firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=0.01),
            hierarchy=HierarchyConfig(total_root_nodes=32, branching_factor=4, max_depth=2),
            correlation=LowRankCorrelationConfig(rank=16, correlation_scale=0.1),
            std_firing_magnitudes=0.3,
            seed=SEEDS["features"],
        )
    )


@torch.no_grad()
def write_data(folder: Path) -> None:
    """Write the activations that both trainers read, in their order."""
    model = synthetic_model()
    torch.manual_seed(SEEDS["data"])
    active = 0.0
    with open(folder / "activations.bin", "wb") as file:
        for start in range(0, TOKENS, 10_000):
            amounts = model.activation_generator.sample(min(10_000, TOKENS - start))
            active += float((amounts > 0).sum())
            file.write(model.feature_dict(amounts).numpy().astype(np.float32).tobytes())
    note = {"features": FEATURES, "d_in": D_IN, "width": WIDTH, "k": K, "tokens": TOKENS, "batch": BATCH}
    (folder / "data.json").write_text(json.dumps(note | {"l0": active / TOKENS}))


def fresh(kind: str) -> TopKTrainingSAE:
    """sae-lens's dictionary before training."""
    torch.manual_seed(SEEDS["weights"])
    make, config = KINDS[kind]
    return make(config(d_in=D_IN, d_sae=WIDTH, k=K))


def train(folder: Path, kind: str, lr: float, name: str) -> None:
    """sae-lens's own trainer on the same activations, with its defaults but for what both sides share."""
    sae = fresh(kind)
    rows = np.memmap(folder / "activations.bin", np.float32, "r").reshape(-1, D_IN)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            for start in range(0, len(rows) - BATCH + 1, BATCH):
                yield torch.from_numpy(rows[start : start + BATCH].copy())

    steps = TOKENS // BATCH
    settings = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=TOKENS,
        device="cpu",
        autocast=False,
        lr=lr,
        lr_end=lr,
        lr_scheduler_name="constant",
        lr_warm_up_steps=steps // 20,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=steps // 5,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=50,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False, eval_every_n_wandb_logs=2**31 - 1),
        n_batches_for_norm_estimate=100,
    )
    _, spent = timed(SAETrainer(cfg=settings, sae=sae, data_provider=batches()).fit)
    sae.save_inference_model(folder / name)
    (folder / name / "seconds.json").write_text(json.dumps(spent.wall))


def judge(folder: Path, names: list[str]) -> None:
    """Write sae-lens's own figures of each dictionary, on held-out activations."""
    model = synthetic_model()
    figures = {}
    for name in names:
        torch.manual_seed(SEEDS["judging"])
        sae = SAE.load_from_disk(folder / name)
        result = eval_sae_on_synthetic_data(
            sae, model.feature_dict, model.activation_generator, num_samples=JUDGED, batch_size=2000
        )
        figures[name] = result.to_dict()
    (folder / "judged.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "data":
        write_data(Path(where))
    elif what == "train":
        train(Path(where), rest[0], float(rest[1]), rest[2])
    elif what == "start":
        fresh(rest[0]).save_inference_model(Path(where) / rest[1])
    else:
        judge(Path(where), rest)
