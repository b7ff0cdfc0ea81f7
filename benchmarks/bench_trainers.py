"""Training sparse autoencoders, beside sae-lens and eai-sparsify, on real activations, each in a process of its own.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 && ENV/bin/pip install sae-lens==6.54.12
    ENV/bin/pip install --no-deps eai-sparsify && ENV/bin/pip install natsort simple-parsing schedulefree
    python benchmarks/bench_trainers.py --rivals ENV/bin/python --store runs/defaults/activations

The limit is the encoder's product alone, in the way that is fastest on this machine. Every trainer has its own
optimiser step, dead-latent loss and norm constraint. Trainers take turns; speeds are medians over turns, and
"explained" is the share of variance explained on held-out activations, after equal tokens.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from workbench.harvest import Store

LIMIT = "limit"
WANTED = {"topk": 7.0, "batchtopk": 6.0, "jumprelu": 1.5, "standard": 1.5}
"""Least speed of each kind, in multiples of sae-lens's."""


class Trainer:
    """A trainer's process."""

    def __init__(self, python: str, who: str, sizes: list[int], data: Path):
        command = [python, str(Path(__file__).with_name("rivals.py")), who, *map(str, sizes), str(data)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while self._line() != "ready":
            pass

    def ask(self, line: str) -> float:
        """The process's answer to a line."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"A trainer has ended: {self.process.args}")
        return line.strip()


def main() -> None:
    """Print speeds, ratios and explained variance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", help="a Python with sae-lens and eai-sparsify; without it they are left out")
    parser.add_argument("--store", type=Path, help="activations written by Store.write; without it, random ones")
    parser.add_argument("--hook-point", default="blocks.15.hook_resid_post")
    parser.add_argument("--width", type=int, default=4608)
    parser.add_argument("--d-in", type=int, default=576, help="of random activations")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=4, help="timed in each turn, after one that is not")
    parser.add_argument("--turns", type=int, default=5, help="after one to warm up")
    parser.add_argument("--equal", type=int, default=0, help="steps after which explained variance is compared")
    parser.add_argument("--only", nargs="*", default=list(WANTED), help="kinds")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.safetensors"
        x = _activations(settings.store, settings.hook_point, settings.d_in, settings.batch * 32)
        save_file({"x": x}, data)
        sizes = [x.shape[1], settings.width, settings.k, settings.batch]
        names = [LIMIT, *(f"workbench {kind}" for kind in settings.only)]
        if settings.rivals:
            names += [f"sae-lens {kind}" for kind in settings.only] + ["sparsify topk"]
        trainers = {
            name: Trainer(
                sys.executable if name.split()[0] in (LIMIT, "workbench") else settings.rivals, name, sizes, data
            )
            for name in names
        }
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(settings.turns + 1):
            for name, trainer in trainers.items():
                trainer.ask("steps 1")  # the first after another's turn finds cold caches
                taken = trainer.ask(f"steps {settings.steps}")
                if turn:
                    seconds[name].append(taken)
        speeds = {name: settings.steps * settings.batch / statistics.median(taken) for name, taken in seconds.items()}
        explained = {}
        for name, trainer in trainers.items():
            if settings.equal and name != LIMIT:
                trainer.ask(f"steps {max(settings.equal - (settings.steps + 1) * (settings.turns + 1), 0)}")
                explained[name] = trainer.ask("evaluate")
            trainer.end()
    _report(speeds, explained, sizes, settings.equal * settings.batch)


def _activations(store: Path | None, hook_point: str, d_in: int, rows: int) -> torch.Tensor:
    """Real activations in random order, or random ones."""
    generator = torch.Generator().manual_seed(0)
    if store is None:
        return torch.randn(rows, d_in, generator=generator)
    stored = Store(store, [hook_point])
    chosen = torch.randperm(len(stored), generator=generator)[:rows].sort().values
    x = stored[chosen].values[hook_point]
    return x[torch.randperm(len(x), generator=generator)].contiguous()


def _report(speeds: dict[str, float], explained: dict[str, float], sizes: list[int], tokens: int) -> None:
    d_in, width, k, batch = sizes
    print(f"\nTraining, d_in {d_in}, width {width:,}, k {k}, batch {batch:,}, {torch.get_num_threads()} threads")
    for name, speed in speeds.items():
        after = f", explains {explained[name]:.4f} after {tokens:,} tokens" if name in explained else ""
        print(f"  {name:<22} {speed:9,.0f} tokens/s, {speed / speeds[LIMIT]:.2f} of the best product{after}")
    for kind, wanted in WANTED.items():
        own, other = speeds.get(f"workbench {kind}"), speeds.get(f"sae-lens {kind}")
        if own and other:
            print(f"  {kind}: {own / other:.2f} times as fast as sae-lens  (wanted: at least {wanted:g})")
    if "sparsify topk" in speeds and "workbench topk" in speeds:
        ratio = speeds["workbench topk"] / speeds["sparsify topk"]
        print(f"  topk: {ratio:.2f} times as fast as eai-sparsify  (wanted: at least 2.3)")


if __name__ == "__main__":
    main()
