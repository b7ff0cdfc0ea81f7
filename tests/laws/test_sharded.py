"""A model that transformers shards over two processes (`tp_plan`, under `torchrun`) gives what it gives whole, or
refuses.

The processes compute on the processor and talk by gloo. Each compares every call with the whole model of its own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
from public_calls import CALLS, QUICK
from torchrun_forks import forked_as_by_torchrun

WHOLE = bool(os.environ.get("WORKBENCH_LAWS"))
LAWS = Path(__file__).parent
ROOT = LAWS.parents[1]
REFUSED = {
    **dict.fromkeys(("surgery", "Child", "Certificate", "wb.bake"), "surgery makes a model on one device"),
    **dict.fromkeys(("attribution", "Graph", "ViewerGraph", "Supernodes"), "sharded over processes"),
    **dict.fromkeys(
        ("Attention", "lens.read_attention", "lens.score_heads", "lens.head_card", "lens.find_heads"),
        "sharded over processes",
    ),
    **dict.fromkeys(("JacobianLens", "lens.fit_jacobian_lens"), "sharded over processes"),
    **dict.fromkeys(
        (
            "circuits.attribution_patching",
            "circuits.attribute_positions",
            "circuits.edge_attribution_patching",
            "steering.optimise_direction",
        ),
        "Gradients can't be taken",
    ),
    **dict.fromkeys(
        ("training.train", "training.fine_tune", "lens.fit_tuned_lens"), "which share the work of a training otherwise"
    ),
    "sparsity.verify_sparsity": "verify it in one",
    "interventions.load_model": "leave device and dtype out",
    "interventions.save_model": "save it with its own save_pretrained",
}
"""Rooms, classes and functions that refuse such a model, with a part of their sentence."""
EQUAL = [key for key in QUICK if not {key, key.partition(".")[0]} & {*REFUSED}]
SAMPLE = CALLS if WHOLE else sorted(random.Random(int(os.environ.get("WORKBENCH_SEED", "0")) + 2).sample(EQUAL, 6))
SENTENCES = {
    "pattern": "blocks.0.attn.hook_pattern can't be read or edited while the model is sharded over processes",
    "an edit of the pattern": "hook_rot_q can't be read or edited while the model is sharded over processes",
    "gradients": "Gradients can't be taken through a model that is sharded over processes",
    "other tokens": "were given different tokens, masks or edits",
    "moving": "is sharded over several processes; leave device and dtype out",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Mapping[str, str]]:
    """What each process found."""
    checkpoint, results = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("results")
    tiny.build("llama").save_pretrained(checkpoint)
    keys = [*dict.fromkeys([*SAMPLE, "measures.measure_fidelity", "Harvest.run"])]
    if not WHOLE:  # processes that are forked import nothing
        from sharded_process import main

        forked_as_by_torchrun(lambda: main(str(checkpoint), str(results), keys))
        return [json.loads((results / f"{rank}.json").read_text()) for rank in range(2)]
    script = LAWS / "sharded_process.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    places = os.pathsep.join(map(str, (ROOT, ROOT / "tests", LAWS)))
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": places}
    command += [str(checkpoint), str(results), *keys]
    ended = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-5000:]
    return [json.loads((results / f"{rank}.json").read_text()) for rank in range(2)]


def test_a_sharded_model_is_the_whole_one(found: list[Mapping[str, str]]) -> None:
    for one in found:
        assert [one[name] for name in ("hash", "points", "texts")] == ["", "", ""]


def test_what_a_sharded_model_can_not_do_is_refused_in_each_process(found: list[Mapping[str, str]]) -> None:
    for one in found:
        for name, words in SENTENCES.items():
            assert words in one[name], name
            assert "\n" not in one[name]


def test_a_call_gives_the_same_on_a_sharded_model(found: list[Mapping[str, str]]) -> None:
    for one in found:
        for key, outcome in one.items():
            if key in SENTENCES or not outcome:
                continue
            words = REFUSED.get(key) or REFUSED.get(key.partition(".")[0])
            assert words, (key, outcome)
            assert outcome.startswith("refused: "), (key, outcome)
            assert words in outcome, (key, outcome)
