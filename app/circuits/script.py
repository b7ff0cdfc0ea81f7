"""The search for a task's heads as a script."""

from __future__ import annotations

from shared import snippets

from circuits.request import CircuitRequest


def circuits(request: CircuitRequest) -> str:
    """The heads of a task by every method of the request."""
    if request.name == "own prompts":
        code = "from workbench.circuits.tasks import from_jsonl\n" + snippets.opening(request.source)
        code += f"task = from_jsonl({request.own!r})\n"
    else:
        code = "from workbench.circuits.tasks_generated import TASKS\n" + snippets.opening(request.source)
        code += f"task = TASKS[{request.name!r}](model, {request.pairs}, {request.seed})\n"
    code += "print(wb.circuits.evaluate_task(model, task))\nscores = {}\n"
    calls = {
        "discrete": f"wb.find_heads_discrete(model, task.positives, task.corrupted, seed={request.seed})",
        "attribution": "wb.circuits.attribution_patching(model, task, mlps=False).heads",
    }
    for method in request.methods:
        call = calls.get(
            method, f"wb.circuits.patch_components(model, task, {method!r}, mlps=False, seed={request.seed}).heads"
        )
        code += f"scores[{method!r}] = {call}\n"
    return code + (
        "for method, score in scores.items():\n"
        "    best = score.abs().flatten().argsort(descending=True, stable=True)[:10]\n"
        "    print(method, [(int(one) // score.shape[1], int(one) % score.shape[1]) for one in best])\n"
    )
