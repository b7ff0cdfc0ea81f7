"""Small dictionaries saved as dictionary_learning does, with its outputs; and the reverse check of what we wrote.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 transformers datasets einops tqdm wandb zstandard
    ENV/bin/pip install --no-deps dictionary_learning==0.1.0
    ENV/bin/python scripts/make_dictionary_learning_fixtures.py make tests/fixtures/dictionary_learning
    ENV/bin/python scripts/make_dictionary_learning_fixtures.py check FOLDER ...

`make` writes a run with a folder for each class: `ae.pt`, `config.json` as a trainer writes it, and
`expected.safetensors` with inputs `x` [n, d], `codes` [n, width], `reconstruction` [n, d]. `check` loads folders with
such a file by dictionary_learning's own `load_dictionary` and compares. Runs in an environment of its own, without this
project. An empty module stands for nnsight, which only its buffers use and of which it needs an old version.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file, save_file

sys.modules["nnsight"] = MagicMock(__spec__=ModuleSpec("nnsight", None))
from dictionary_learning import dictionary as classes  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402
from dictionary_learning.utils import load_dictionary  # noqa: E402

D, WIDTH, K, ROWS = 8, 24, 4, 12
TOLERANCE = 1e-5
PLACE = {"layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_3"}


def main() -> None:
    """`make FOLDER` or `check FOLDER ...`."""
    torch.manual_seed(0)
    if len(sys.argv) == 3 and sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    elif len(sys.argv) > 2 and sys.argv[1] == "check":
        agree = [check(Path(folder)) for folder in sys.argv[2:]]
        sys.exit(0 if all(agree) else 1)
    else:
        sys.exit(__doc__)


def make(target: Path) -> None:
    """Write every fixture anew."""
    shutil.rmtree(target, ignore_errors=True)
    one(target / "trainer_0", classes.AutoEncoder(D, WIDTH))
    one(target / "trainer_1", classes.AutoEncoderNew(D, WIDTH))
    one(target / "trainer_2", classes.GatedAutoEncoder(D, WIDTH))
    one(target / "trainer_3", classes.JumpReluAutoEncoder(D, WIDTH))
    one(target / "trainer_4", AutoEncoderTopK(D, WIDTH, K), k=K)
    one(target / "trainer_5", BatchTopKSAE(D, WIDTH, K), k=K)
    one(target / "trainer_10", MatryoshkaBatchTopKSAE(D, WIDTH, K, [4, 8, 12]), k=K)


def one(folder: Path, dictionary: Any, **settings: Any) -> None:
    """Write a dictionary with random weights as `trainSAE` does, and what its own loader makes of it."""
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim == 1 else 0.5))
            if name == "threshold":
                parameter.abs_()
        if isinstance(dictionary, BatchTopKSAE | MatryoshkaBatchTopKSAE):
            dictionary.threshold.fill_(0.7)
    folder.mkdir(parents=True)
    torch.save({name: tensor.cpu() for name, tensor in dictionary.state_dict().items()}, folder / "ae.pt")
    trainer = {"dict_class": type(dictionary).__name__, "activation_dim": D, "dict_size": WIDTH, "seed": 0} | settings
    config = {"trainer": trainer | PLACE, "buffer": {"d_submodule": D, "io": "out", "n_ctxs": 128, "ctx_len": 32}}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    made = outputs(folder, torch.randn(ROWS, D))
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, folder / "expected.safetensors")


def outputs(folder: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Codes and reconstructions of the dictionary in a folder."""
    dictionary, _ = load_dictionary(str(folder), "cpu")
    with torch.no_grad():
        return {"x": x, "codes": dictionary.encode(x), "reconstruction": dictionary(x)}


def check(folder: Path) -> bool:
    """Whether dictionary_learning's outputs equal those in the folder."""
    expected = load_file(folder / "expected.safetensors")
    made = outputs(folder, expected["x"])
    apart = max(float((made[name] - expected[name]).abs().max()) for name in ("codes", "reconstruction"))
    print(f"{folder.name}: dictionary_learning's output differs by at most {apart:.1e}")
    return apart < TOLERANCE


if __name__ == "__main__":
    main()
