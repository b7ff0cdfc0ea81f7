"""Known features in superposition: the features that our trainer recovers beside sae-lens's at equal tokens.

sae-lens generates the data (its synthetic benchmark: Zipfian, correlated and hierarchical features, here 1,024 of them
in 128 dimensions), trains on it with its defaults, and judges both sides' dictionaries; ours it reads from our folders.
Both see the same activations, batch size, number of latents, k, warm-up and decay; each side's learning rate is the
best of the same seven. Untrained dictionaries are judged too: one that is above chance shares a seed with the features
(features and weights drawn from one seed are the same), and the benchmark refuses to report.

    python benchmarks/bench_synthetic.py --rival /path/to/python-with-sae-lens
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from timing import timed
from torch.nn.functional import normalize

import workbench as wb
from workbench.harvest import Activations

RATES = (3e-4, 1e-3, 3e-3, 6e-3, 1e-2, 1.7e-2, 3e-2)
SEED = 1
"""Seed of our starting weights; none of `synthetic_rival.SEEDS`."""
KINDS = {"topk": wb.TopKSAE, "batchtopk": wb.dictionaries.BatchTopKSAE}


class Rows:
    """The activations in a file, as a source that a training can read repeatedly."""

    def __init__(self, file: Path, width: int):
        self.file, self.rows = file, np.memmap(file, np.float32, "r").reshape(-1, width)

    def __len__(self) -> int:
        return len(self.rows)

    def run(self, skip: int = 0) -> Iterator[Activations]:
        """The rows in their order."""
        for start in range(skip, len(self), 4096):
            x = torch.from_numpy(self.rows[start : start + 4096].copy())
            number = torch.arange(start, start + len(x))
            yield Activations({"synthetic": x}, number, number, number)

    def settings(self) -> dict[str, Any]:
        """The file."""
        return {"file": str(self.file)}


def main() -> None:
    """Print a line for each kind, side and learning rate, and the best of each side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rival", required=True, help="a Python with sae-lens")
    parser.add_argument("--folder", type=Path, help="where to keep data and dictionaries; a temporary one without it")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report(*measure(folder, chosen.rival))


def measure(folder: Path, rival: str) -> tuple[dict[str, Any], dict[str, float], float]:
    """sae-lens's figures of each dictionary, the seconds of each training, and the true L0."""

    def ask(*words: object) -> None:
        script = Path(__file__).with_name("synthetic_rival.py")
        subprocess.run([rival, str(script), *map(str, words)], check=True, stdout=subprocess.DEVNULL)

    if not (folder / "data.json").exists():
        ask("data", folder)
    note = json.loads((folder / "data.json").read_text())
    seconds = {}
    for kind, make in KINDS.items():
        make(note["d_in"], note["width"], note["k"], seed=SEED).save(folder / f"{kind} untrained workbench")
        ask("start", folder, kind, f"{kind} untrained sae-lens")
        seconds |= {f"{kind} untrained workbench": 0.0, f"{kind} untrained sae-lens": 0.0}
        for lr in RATES:
            ours, theirs = f"{kind} {lr:g} workbench", f"{kind} {lr:g} sae-lens"
            sae = make(note["d_in"], note["width"], note["k"], seed=SEED)
            source = Rows(folder / "activations.bin", note["d_in"])
            settings = {
                "tokens": note["tokens"],
                "lr": lr,
                "batch_size": note["batch"],
                "dead_after": 50 * note["batch"],
            }
            _, spent = timed(functools.partial(wb.train, sae, hook_point="synthetic", source=source, **settings))
            seconds[ours] = spent.wall
            sae.save(folder / ours)
            if not (folder / theirs / "seconds.json").exists():
                ask("train", folder, kind, lr, theirs)
            seconds[theirs] = json.loads((folder / theirs / "seconds.json").read_text())
    ask("judge", folder, *seconds)
    judged = json.loads((folder / "judged.json").read_text())
    chance = chance_mcc(note)
    for name, figures in judged.items():
        if "untrained" in name and abs(figures["mcc"] - chance) > 0.02:
            raise SystemExit(f"{name} has an MCC of {figures['mcc']:.3f} and chance is {chance:.3f}: a seed is shared.")
    return judged, seconds, note["l0"]


def chance_mcc(note: dict[str, int]) -> float:
    """The MCC of random directions with other random directions, optimally matched."""
    chance = torch.Generator().manual_seed(77)
    one, other = (torch.randn(note[rows], note["d_in"], generator=chance) for rows in ("width", "features"))
    cosines = (normalize(one, dim=1) @ normalize(other, dim=1).T).abs().numpy()
    return float(cosines[linear_sum_assignment(-cosines)].mean())


def report(judged: dict[str, Any], seconds: dict[str, float], l0: float) -> None:
    """Print the figures."""
    print(f"True features per activation: {l0:.1f}")
    print(f"{'':<28} {'MCC':>6} {'F1':>6} {'unique':>7} {'FVU':>6} {'L0':>6} {'dead':>5} {'seconds':>8}")
    for name, one in judged.items():
        f1 = one["classification"]["f1_score"]
        figures = f"{one['mcc']:6.3f} {f1:6.3f} {one['uniqueness']:7.3f} {1 - one['explained_variance']:6.3f}"
        print(f"{name:<28} {figures} {one['sae_l0']:6.1f} {one['dead_latents']:5d} {seconds[name]:8.1f}")
    for kind in KINDS:
        best = {
            side: max(
                one["mcc"]
                for name, one in judged.items()
                if "untrained" not in name and name.split()[::2] == [kind, side]
            )
            for side in ("workbench", "sae-lens")
        }
        print(f"{kind}: best MCC {best['workbench']:.3f} against {best['sae-lens']:.3f}")


if __name__ == "__main__":
    main()
