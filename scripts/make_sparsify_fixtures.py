"""Small dictionaries saved by EleutherAI's sparsify, with its outputs; and the reverse check of what we wrote.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 eai-sparsify==1.3.3
    ENV/bin/python scripts/make_sparsify_fixtures.py make tests/fixtures/sparsify
    ENV/bin/python scripts/make_sparsify_fixtures.py check FOLDER ...

`make` writes a run with a folder for each hook point: what sparsify saves, and `expected.safetensors` with inputs `x`
[n, d_in], `codes` [n, width] and `reconstruction` [n, d_in]. `check` loads folders with such a file in sparsify and
compares. Runs in an environment of its own, without this project.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
from sparsify import SparseCoder, SparseCoderConfig

D_IN, WIDTH, K, ROWS = 8, 24, 4, 12
TOLERANCE = 1e-5


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
    for activation in ("topk", "groupmax"):
        one(target / activation / "layers.1", activation=activation, multi_topk=True)
        one(target / activation / "layers.1.mlp", activation=activation, transcode=True)
        one(target / activation / "layers.2.mlp", activation=activation, transcode=True, skip_connection=True)
        one(target / activation / "layers.10.mlp", activation=activation, skip_connection=True)
    one(target / "half" / "h.0.attn", dtype=torch.bfloat16)


def one(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> None:
    """Write a dictionary with random weights, and its outputs in float32."""
    config = SparseCoderConfig(num_latents=WIDTH, k=K, **settings)
    coder = SparseCoder(D_IN, config, dtype=dtype)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim == 1 else 0.5))
    coder.save_to_disk(folder)
    expect(folder, coder.float())


def outputs(coder: SparseCoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Codes and reconstructions."""
    with torch.no_grad():
        encoded = coder.encode(x)
        codes = torch.zeros(len(x), coder.num_latents).scatter_(1, encoded.top_indices, encoded.top_acts)
        decoded = coder.decode(encoded.top_acts, encoded.top_indices)  # of `multi_topk`, the output has 4 k latents
        reconstruction = decoded if coder.cfg.multi_topk else coder(x).sae_out
        return {"x": x, "codes": codes, "reconstruction": reconstruction}


def expect(folder: Path, coder: SparseCoder) -> None:
    """Write inputs and outputs beside the dictionary."""
    made = outputs(coder, torch.randn(ROWS, D_IN))
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, folder / "expected.safetensors")


def check(folder: Path) -> bool:
    """Whether sparsify's outputs equal those in the folder."""
    expected = load_file(folder / "expected.safetensors")
    made = outputs(SparseCoder.load_from_disk(folder), expected["x"])
    apart = max(float((made[name] - expected[name]).abs().max()) for name in ("codes", "reconstruction"))
    print(f"{folder.name}: sparsify's output differs by at most {apart:.1e}")
    return apart < TOLERANCE


if __name__ == "__main__":
    main()
