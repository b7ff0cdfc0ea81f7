"""Finding the heads of a task: the discrete SAE and gradients beside patching every head, on the same prompts.

python benchmarks/bench_circuits.py [--task "indirect object"] [--pairs 10] [--rounds 1]
"""

from __future__ import annotations

import argparse

from timing import in_turns, report

import workbench as wb
from workbench.circuits import TASKS, edge_attribution_patching


def main() -> None:
    """Print the times, and their shares of patching's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="indirect object", choices=list(TASKS))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    settings = parser.parse_args()
    model = wb.load_model()
    task = TASKS[settings.task](model, settings.pairs)
    patching = "patching every head"
    times = in_turns(
        {
            "wb.find_heads_discrete": lambda: wb.find_heads_discrete(model, task.positives, task.corrupted),
            "attribution patching": lambda: wb.circuits.attribution_patching(model, task, mlps=False),
            "edge attribution patching": lambda: edge_attribution_patching(model, task),
            patching: lambda: wb.circuits.patch_components(model, task, mlps=False),
        },
        settings.rounds,
    )
    report(
        f"\nHeads of {settings.task}, {settings.pairs} pairs of prompts",
        times,
        patching,
        "finder: at least 5 times as fast",
    )
    share = times["wb.find_heads_discrete"] / times[patching]
    print(f"  the finder takes {share:.3f} of the time of patching every head  (wanted: at most 0.2)")


if __name__ == "__main__":
    main()
