"""Checkpoints on disk: loaded by plain transformers, opened again, and whole after a save that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from bake_models import EDITS, HOLDS_CONSTANTS, MODELS, TOKENS, certified, fresh, opened, parts, tokens, vector
from preloaded import Preloaded
from reference import PlainEdit, at_index, logits_under
from safetensors.torch import save_file
from torch import Tensor

import workbench as wb
import workbench.core.files
from workbench.core.hashing import fingerprint
from workbench.model.weights import parameters_of

pytestmark = pytest.mark.usefixtures("tiny_cache")


@pytest.fixture(scope="module")
def transformers_alone() -> Iterator[Preloaded]:
    """A process that has imported transformers and nothing of ours."""
    with Preloaded("import json, safetensors.torch\nfrom transformers import AutoModelForCausalLM", "-I") as process:
        yield process


FRESH = """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
found = {}
for folder in sys.argv[1:]:
    held = load_file(folder + "/../wanted.safetensors")
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=held["tokens"]).logits
    found[folder] = float((logits - held["logits"]).abs().max())
assert not [name for name in sys.modules if name.startswith(("workbench", "transformer_lens"))]
print(json.dumps(found))
"""


def test_checkpoints_load_in_plain_transformers_alone(tmp_path: Path, transformers_alone: Preloaded) -> None:
    folders = []
    for name in MODELS:
        plain, model = opened(name)
        where = parts(plain)
        module, side = tiny.mlp(plain, 0)["post"]
        added = vector(32, 5)
        constant = [wb.Clamp("neurons.0.post:3", 1.5)] if name in HOLDS_CONSTANTS else []
        edits = [
            wb.interventions.RemoveHead(1, 0),
            wb.Scale("neurons.0.post:5", 3.0),
            wb.Steer.along("hook_embed", added),
            *constant,
        ]

        def first_head(z: Tensor) -> Tensor:
            return torch.cat([torch.zeros_like(z[:, :8]), z[:, 8:]], 1)

        hooks = [
            PlainEdit(where.embeddings[0], "out", lambda x, added=added: x + added),
            PlainEdit(where.out[1], "in", first_head),
            PlainEdit(module, side, at_index(5, lambda v: 3 * v)),
        ]
        if constant:
            hooks.append(PlainEdit(module, side, at_index(3, lambda v: torch.full_like(v, 1.5))))
        child = wb.bake(model, edits)
        child.certify(tokens=64)
        child.save_pretrained(tmp_path / name / "child")
        wanted = logits_under(plain, tokens(), hooks).contiguous()
        save_file({"tokens": tokens(), "logits": wanted}, tmp_path / name / "wanted.safetensors")
        folders.append(str(tmp_path / name / "child"))
        again = wb.load_model(folders[-1])
        assert again.weights_hash == child.model.weights_hash
        # transformers makes a tokenizer of Qwen's kind of any tokenizer in a folder of a Qwen model
        assert name == "qwen2" or again.hash == child.model.hash
        assert fingerprint(parameters_of(child.undo().network.module)) == fingerprint(parameters_of(plain))
    ended = transformers_alone.run(FRESH, folders, tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    assert len(found) == len(MODELS)
    assert max(found.values()) < 1e-4, found


def test_a_saved_child_opens_again_and_shares_what_is_equal(
    tmp_path: Path, transformers_alone: Preloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], cwd: str, **how: bool) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-I", "-c"]
        assert how == {"capture_output": True, "text": True, "check": False, "stdin": subprocess.DEVNULL}
        return transformers_alone.run(command[3], command[4:], cwd)

    monkeypatch.setattr("workbench.surgery.certificate.check.subprocess.run", run)
    parent = fresh()
    child = certified(wb.bake(wb.bake(parent, EDITS), [wb.interventions.RemoveLayer(0)]))
    child.save_pretrained(tmp_path / "child")
    child.save_pretrained(tmp_path / "child")
    again = wb.surgery.open_child(tmp_path / "child", parent)
    assert again.model.hash == child.model.hash
    assert torch.equal(again.model(TOKENS), child.model(TOKENS))
    assert again.certificate == child.certificate
    assert again.history == child.history
    assert again.undo() is parent
    pointers = {tensor.data_ptr() for tensor in parameters_of(parent.network.module).values()}
    own = [n for n, t in parameters_of(again.model.network.module).items() if t.data_ptr() not in pointers]
    assert sorted(own) == sorted(again.own)
    assert "model.layers.0.self_attn.q_proj.weight" not in own  # it was layer 1's
    assert not list(tmp_path.glob(".*.part"))
    seen = wb.surgery.verify_checkpoint(tmp_path / "child", child.parent, tokens=TOKENS)
    far = float((child.parent(TOKENS) - child.model(TOKENS)).abs().max())
    assert seen.max_logit_difference == pytest.approx(far, abs=1e-5)
    assert not seen.agrees
    assert (seen.loaded, seen.foreign) == ("LlamaForCausalLM", [])


def test_a_child_keeps_its_hash_where_transformers_reads_its_files_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It makes a tokenizer of Qwen's kind of any tokenizer in a folder of a Qwen model."""
    _, parent = opened("qwen2")
    edits = [wb.Scale("neurons.0.post:5", 3.0), wb.Clamp("neurons.1.post:3", 2.0, positions="generated")]
    child = wb.bake(parent, edits, beside=True)
    child.save_pretrained(tmp_path / "child")
    assert wb.load_model(tmp_path / "child").hash != child.model.hash
    again = wb.surgery.open_child(tmp_path / "child", parent)
    assert "makes another configuration or tokenizer" in caplog.text
    assert again.model.hash == again.model.plain_hash == child.model.hash
    assert len(again.beside) == 1
    middle = wb.bake(parent, edits[:1])
    middle.save_pretrained(tmp_path / "middle")
    wb.surgery.quantise(middle, 8).save_pretrained(tmp_path / "grandchild")
    grandchild = wb.surgery.open_child(tmp_path / "grandchild", wb.surgery.open_child(tmp_path / "middle", parent))
    assert grandchild.history[-1]["parent"]["hash"] == middle.model.hash


def test_settings_of_generation_that_transformers_refuses_are_a_sentence(tmp_path: Path) -> None:
    """Altered before the model was opened, or on the child; a sampled one is written as it is."""
    plain = tiny.build("llama")
    plain.generation_config.temperature = 0.5
    model = wb.load_model(plain, tokenizer=tiny.tokenizer())
    child = certified(wb.bake(model, EDITS))
    for save in (child.save_pretrained, lambda folder: wb.interventions.save_model(model, folder)):
        with pytest.raises(
            wb.WorkbenchError, match=r"does not write .* \(`temperature`: .*generation_config"
        ) as caught:
            save(tmp_path / "saved")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "saved").exists()
    child.model.network.module.generation_config.do_sample = True
    child.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["temperature"] == 0.5


def save_and_be_killed(folder: Path, when: str) -> None:
    """Save another child, and be killed when all is written, before or after it is in its place; in a fork."""
    try:
        torch.set_num_threads(1)  # a fork has no other threads
        child = certified(wb.bake(fresh(), [wb.interventions.RemoveLayer(0)]))
        exchange = workbench.core.files._exchange

        def kill(*names: Path) -> bool:
            if when == "after":
                exchange(*names)
            os.kill(os.getpid(), signal.SIGKILL)
            return True

        workbench.core.files._exchange = kill
        child.save_pretrained(folder)
    finally:
        os._exit(1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_save_leaves_a_whole_checkpoint(when: str, tmp_path: Path) -> None:
    parent = fresh()
    child = certified(wb.bake(parent, EDITS))
    child.save_pretrained(tmp_path / "child")
    process = os.fork()
    if not process:
        save_and_be_killed(tmp_path / "child", when)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert list(tmp_path.glob(".child.*.part/child/model.safetensors")), "it was killed in the middle"
    saved = wb.surgery.open_child(tmp_path / "child", parent)
    assert (saved.model.hash == child.model.hash) == (when == "before")
    assert saved.model.network.n_layers == parent.network.n_layers - (when == "after")
    child.save_pretrained(tmp_path / "child")
    assert wb.surgery.open_child(tmp_path / "child", parent).model.hash == child.model.hash
