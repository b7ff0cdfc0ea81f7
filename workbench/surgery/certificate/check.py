"""The comparison of a saved checkpoint, run by plain transformers in a process of its own, with a model here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workbench.core.checks import Wholes, checked
from workbench.core.display import Shown
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.reading import check_opening
from workbench.model.weights import ModelError
from workbench.model.widened import is_exact
from workbench.surgery.certificate.certificate import logits_with
from workbench.surgery.certificate.record import AGREES
from workbench.surgery.child import Child
from workbench.surgery.child_building import tolerance


@dataclass(frozen=True)
class Verification(Shown):
    """The outcome of running a checkpoint in plain transformers, in a process of its own."""

    max_logit_difference: float
    transformers: str
    """Its version."""
    loaded: str
    """The class of the loaded model."""
    foreign: list[str]
    """Modules of Workbench and TransformerLens in that process; empty if it was plain."""
    allowed: float = AGREES
    """The largest difference at which logits agree: 1e-4, or in 16 bits what rounding makes of the largest logit."""

    @property
    def agrees(self) -> bool:
        """Whether every logit is within what is allowed."""
        return self.max_logit_difference <= self.allowed and not self.foreign

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return asdict(self) | {"agrees": self.agrees}


SCRIPT = """
import json, sys
import torch, transformers
from safetensors.torch import load_file
folder, wanted = sys.argv[1:]
held = load_file(wanted)
safe = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=held["logits"].dtype, **safe).eval()
with torch.inference_mode():
    logits = model(input_ids=held["tokens"]).logits
difference = float((logits.float() - held["logits"].float()).abs().max())
foreign = [name for name in sys.modules if name.split(".")[0] in ("workbench", "transformer_lens")]
result = {"max_logit_difference": difference, "transformers": transformers.__version__}
print(json.dumps(result | {"loaded": type(model).__name__, "foreign": foreign}))
"""


@checked(ModelError)
def verify_checkpoint(
    folder: str | Path, model: LanguageModel | Child, interventions: Sequence[Any] = (), *, tokens: Wholes | None = None
) -> Verification:
    """Compare a saved checkpoint, loaded by plain transformers in a fresh process, with a model that runs here.

    Both compute in the type of the model that runs here.

    Args:
        folder: of the checkpoint.
        model: the model that should compute the same: a child, or its parent with the baked interventions.
        interventions: to run the model under.
        tokens: `[batch, pos]` to compare on; random ones without it.

    Raises:
        ModelError: the folder holds no checkpoint, or one that `load_model` refuses, or transformers can't load it.
    """
    model = model.model if isinstance(model, Child) else model
    if not (Path(folder) / "config.json").exists():
        raise ModelError(f"{folder} is not a checkpoint: it has no config.json.")
    check_opening(Path(folder))
    if tokens is None:
        chance = torch.Generator().manual_seed(1)
        tokens = torch.randint(model.network.vocab_size, (2, min(64, model.network.n_ctx)), generator=chance)
    with tempfile.TemporaryDirectory(prefix="workbench-") as scratch:
        held = Path(scratch) / "wanted.safetensors"
        with uninterrupted(), torch.inference_mode():
            logits = logits_with(model, tokens, interventions).to(model.dtype).cpu().contiguous()
            save_file({"tokens": tokens.cpu(), "logits": logits}, held)
        command = [sys.executable, "-I", "-c", SCRIPT, str(Path(folder).absolute()), str(held)]
        nobody = subprocess.DEVNULL
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch, stdin=nobody)
    if ended.returncode != 0:
        reason = (ended.stderr.strip().splitlines() or ["it wrote no error"])[-1]
        raise ModelError(f"Plain transformers can't load {folder}: {reason}")
    allowed = AGREES if is_exact(model) else tolerance(logits, model.dtype)
    return Verification(**json.loads(ended.stdout.strip().splitlines()[-1]), allowed=allowed)
