"""The search for a task's heads as a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared import snippets

from circuits.request import CircuitRequest

if TYPE_CHECKING:
    from circuits.positions import PositionRequest


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


def positions(request: PositionRequest) -> str:
    """The grid of two prompts, estimated and exact."""
    more = "".join(f", {name}={value!r}" for name, value in request.arguments().items() if value)
    how = f"model, pair, {request.component!r}, into={request.into!r}"
    return (
        snippets.opening(request.source)
        + f"pair = wb.circuits.align_prompts(model, [{request.clean!r}], [{request.corrupted!r}]{more})\n"
        + "print(pair)\n"
        + f"estimate = wb.circuits.attribute_positions({how})\n"
        + f"exact = wb.circuits.patch_positions({how})\n"
        + "print(exact.correlation(estimate), exact.largest())\n"
        + "exact.figure().show()\n"
    )
