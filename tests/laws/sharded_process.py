"""One of the processes that hold a sharded model: what it computes, compared with the whole model.

`test_sharded.py` runs it under `torchrun` with the folder of a checkpoint, a folder for results, and keys of public
calls. Each process writes what it found as JSON: by what was done the difference, or the sentence of a refusal.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import tiny
import torch
from fuzz_examples import POINT, World
from public_calls import called, differences, plain
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.model.edits import Edit

CLOSE = 1e-5
TOKENS = torch.arange(14).view(2, 7) * 5


def main(checkpoint: str, results: str, keys: list[str]) -> None:
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank = torch.distributed.get_rank()
    folders = [Path(results) / f"{name}-{rank}" for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
    os.environ["WORKBENCH_CACHE"] = str(Path(results) / f"cache-{rank}")
    os.chdir(folders[0])
    modules = [AutoModelForCausalLM.from_pretrained(checkpoint, **how) for how in ({}, {"tp_plan": "auto"})]
    here, there = (
        World(wb.load_model(module, tokenizer=tiny.tokenizer()), folder)
        for module, folder in zip(modules, folders, strict=True)
    )
    found = {
        "hash": "" if there.model.hash == here.model.hash else "another hash",
        "points": "; ".join(unlike(here.model, there.model)),
        "texts": outcome(lambda world: plain(written(world)), here, there),
        "pattern": refused(lambda: there.model.capture(TOKENS, ["blocks.0.attn.hook_pattern"])),
        "an edit of the pattern": refused(lambda: there.model.bind([bound("blocks.0.attn.hook_rot_q")])),
        "gradients": refused(lambda: learning(there.model)),
        "other tokens": refused(lambda: there.model(TOKENS + rank)),
        "moving": refused(lambda: wb.load_model(modules[1], dtype="bfloat16")),
    }
    found |= {key: outcome(lambda world, key=key: called(key, world), here, there) for key in keys}
    (Path(results) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def outcome(act: Callable[[World], Any], here: World, there: World) -> str:
    """Why an act is refused on the sharded model, or how its result differs; empty where it is equal."""
    try:
        found = act(there)
    except wb.WorkbenchError as error:
        return f"refused: {error}"
    except Exception:  # noqa: BLE001 - what is foreign fails the test
        return f"raised: {traceback.format_exc()}"
    return "; ".join(differences(act(here), found))


def refused(act: Callable[[], Any]) -> str:
    try:
        act()
    except wb.WorkbenchError as error:
        return str(error)
    return "nothing was refused"


def unlike(here: wb.model.LanguageModel, there: wb.model.LanguageModel) -> list[str]:
    """Hook points at which reading or editing differs from the whole model, in the first or last layer or outside."""
    points = here.hook_points
    assert list(points.values()) == list(there.hook_points.values())
    keys = sorted(
        {one.key for one in points.values() if one.module and one.positional and not one.name.startswith("blocks.1.")}
    )
    wrong = [name for name in keys if apart(here.capture(TOKENS, [name])[name], there.capture(TOKENS, [name])[name])]
    for name in keys:
        if points[name].refusal:
            continue
        noise = torch.randn(points[name].shape, generator=torch.Generator().manual_seed(0))
        edit = Edit(name, lambda x, noise=noise: x + noise * x.abs().mean(), positions=(1, 4, 5))
        wanted, found = (model.run(TOKENS, model.network.prepare([edit])) for model in (here, there))
        if apart(wanted, found) or not apart(wanted, here.run(TOKENS)):
            wrong.append(f"an edit at {name}")
    return wrong


def apart(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape != other.shape or float((one - other).norm()) > CLOSE * float(one.norm())


def written(world: World) -> Any:
    """Texts and logits under edits of neurons, of heads' outputs, of the stream, and through dictionaries."""
    model, heads = world.model, torch.full((4, 8), 0.5)
    edits = [
        wb.Clamp("neurons.1.post:40", 5.0),
        wb.Scale("neurons.2.gate:5", 3.0, positions=(1, 3)),
        wb.Ablate("neurons.0.up:30"),
        wb.Steer.along("blocks.1.hook_out", [0.3] * 32, 1.0, positions="generated"),
        wb.Steer.along("blocks.0.attn.hook_z", heads.flatten().tolist(), 1.0),
    ]
    texts = model.generate_batch(["The dog", "The cat and the mouse"], 6, interventions=edits, stop=False)
    drawn = model.generate("The dog", 6, temperature=1.0, seed=3, interventions=edits, stop=False)
    sae = world.sae
    neurons = wb.TopKSAE(48, 24, 4, hook_point="blocks.1.mlp.hook_post")
    with (
        model.spliced({POINT: sae, "blocks.1.mlp.hook_post": neurons}),
        model.intervening([wb.Clamp(sae.feature(3), 2.0)]),
    ):
        chat = model.chat("What is it?", 6, stop=False)
        logits = model(TOKENS)
    return [one.tokens for one in (*texts, drawn, chat)], [one.logprobs for one in (drawn, chat)], logits


class bound:
    """An intervention that adds nothing at a hook point."""

    def __init__(self, hook_point: str):
        self.hook_point = hook_point

    def bind(self, model: Any, plan: Any) -> list[Edit]:
        return [Edit(self.hook_point, lambda x: x + 0)]


def learning(model: wb.model.LanguageModel) -> None:
    from workbench.model.grad_mode import taking_gradients

    with taking_gradients():
        model(TOKENS)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
