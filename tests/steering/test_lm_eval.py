"""lm-evaluation-harness on a model under interventions: its own score of the plain and of the baked model is ours.

The harness has an environment of its own (`make test-peers`); it gets the packages of this one behind its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
import tiny

import workbench as wb

pytestmark = pytest.mark.usefixtures("tiny_cache")
PEER = os.environ.get("WORKBENCH_LM_EVAL_PYTHON", "")
TASK = """task: tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: target
metric_list:
  - metric: acc
"""
SCRIPT = """
import json, sys
sys.path.append(sys.argv[1]); sys.path.append(sys.argv[2])
import torch, lm_eval, transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
import workbench as wb

folder = sys.argv[3]
model = wb.load_model(folder + "/plain")
vectors = [torch.arange(1.0, 33).sin(), torch.arange(1.0, 33).cos()]
edits = [wb.Steer.along("blocks.0.hook_mlp_out", one, 0.5) for one in vectors]
total = [wb.Steer.along("blocks.0.hook_mlp_out", sum(vectors), 0.5)]

def scores(lm):
    tasks = TaskManager(include_path=folder + "/tasks", include_defaults=False)
    found = lm_eval.simple_evaluate(model=lm, tasks=["tiny"], task_manager=tasks, bootstrap_iters=0, log_samples=True)
    return [one["resps"] for one in found["samples"]["tiny"]], found["results"]["tiny"]["acc,none"]

def written(lm):
    how = {"until": ["\\n"], "max_gen_toks": 6}
    return lm.generate_until([Instance("generate_until", {}, ("The dog", dict(how)), 0)])

plain = transformers.AutoModelForCausalLM.from_pretrained(folder + "/plain")
tokenizer = transformers.AutoTokenizer.from_pretrained(folder + "/plain")
sides = {
    "theirs": HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=2),
    "ours": wb.steering.lm_eval_model(model, batch=2),
    "both": wb.steering.lm_eval_model(model, edits, batch=2),
    "sum": wb.steering.lm_eval_model(model, total, batch=2),
}
print("RESULT" + json.dumps({name: [*scores(lm), written(lm)] for name, lm in sides.items()}))
"""


@pytest.mark.skipif(not PEER, reason="lm-evaluation-harness has an environment of its own: make test-peers")
def test_its_scores_of_the_plain_model_are_ours_and_edits_add_up(tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path / "plain")
    tiny.tokenizer().save_pretrained(tmp_path / "plain")
    words = [" ran", " sat", " home", " it"]
    lines = [{"text": f"The {w}", "choices": words, "target": n} for n, w in enumerate(("dog", "cat", "man", "king"))]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(file=tmp_path / "test.jsonl"))
    root = str(Path(wb.__file__).parents[1])
    command = [PEER, "-c", SCRIPT, root, sysconfig.get_paths()["purelib"], str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "RESULT" in ended.stdout, ended.stderr[-3000:]
    found = json.loads(ended.stdout.partition("RESULT")[2])
    assert _close(found["theirs"], found["ours"])
    assert _close(found["both"], found["sum"])
    assert not _close(found["both"], found["ours"])


def test_without_the_harness_one_sentence_says_what_to_install(llama) -> None:
    with pytest.raises(wb.steering.SteeringError, match="is not installed; install it with pip"):
        wb.steering.lm_eval_model(llama)


def _close(one: list, other: list) -> bool:
    """Whether two sides have the same log-probabilities, accuracy and text."""
    mine, theirs = ([float(pair[0]) for row in side[0] for (pair,) in row] for side in (one, other))
    return max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) < 1e-4 and one[1:] == other[1:]
