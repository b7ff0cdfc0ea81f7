"""The predicted next states as a script."""

from __future__ import annotations

from collections.abc import Sequence

from shared import snippets


def states(source: str, walk: Sequence[int], target: int | None) -> str:
    """The next states that a state machine's model predicts after a run, with a target state's codes forced."""
    code = (
        "import torch\nfrom workbench.synthetic import count_codes, force_state, next_states\n"
        + snippets.opening(source)
        + "machine = wb.synthetic.TokFSM(**model.about['machine'])\n"
        + f"visited = torch.tensor([{list(walk)!r}])\nedits = ()\n"
    )
    if target is not None:
        code += (
            "counted = [count_codes(model, machine, written=n) for n in range(machine.digits)]\n"
            f"edits = force_state(model, machine, counted, {target}, visited.shape[1])\n"
        )
    return code + (
        "probabilities = next_states(model, machine, visited, edits)[0]\n"
        "for probability, state in zip(*probabilities.topk(12)):\n"
        "    print(int(state), f'{float(probability):.4f}')\n"
    )
