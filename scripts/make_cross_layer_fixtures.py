"""Small cross-layer transcoders saved by circuit-tracer, with its outputs; and the reverse check of what we wrote.

    python -m venv ENV && ENV/bin/pip install circuit-tracer==0.5.0
    ENV/bin/python scripts/make_cross_layer_fixtures.py make tests/fixtures/circuit_tracer_cross_layer
    ENV/bin/python scripts/make_cross_layer_fixtures.py check FOLDER ...

`make` writes folders: what circuit-tracer saves, `config.yaml`, and beside the folder a file of its name with inputs
`x` [layers, n, d], `codes` [layers, n, width] and `reconstruction` [layers, n, d]. `check` loads folders with such a
file by circuit-tracer's own loader, decoders read lazily, and compares. Runs in an environment of its own, without this
project.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import yaml
from circuit_tracer.transcoder.cross_layer_transcoder import (
    CrossLayerTranscoder,
    load_clt,
    load_gemma_scope_2_clt,
)
from safetensors.torch import load_file, save_file

D, WIDTH, LAYERS, ROWS = 8, 12, 3, 10
TOLERANCE = 1e-5
CPU = torch.device("cpu")


def main() -> None:
    """`make FOLDER` or `check FOLDER ...`."""
    torch.manual_seed(0)
    if len(sys.argv) == 3 and sys.argv[1] == "make":
        target = Path(sys.argv[2])
        shutil.rmtree(target, ignore_errors=True)
        make(target / "relu", "relu", torch.float32)
        make(target / "jumprelu", "jump_relu", torch.float32)
        make(target / "halves", "relu", torch.bfloat16)
        make_gemma_scope(target / "gemma-scope-2-1b-pt" / "clt" / "width_36_l0_small", skip=False)
        make_gemma_scope(target / "gemma-scope-2-1b-pt" / "clt" / "width_36_l0_small_affine", skip=True)
    elif len(sys.argv) > 2 and sys.argv[1] == "check":
        agree = [check(Path(folder)) for folder in sys.argv[2:]]
        sys.exit(0 if all(agree) else 1)
    else:
        sys.exit(__doc__)


def make(folder: Path, activation: str, dtype: torch.dtype) -> None:
    """Write one transcoder with random weights."""
    made = CrossLayerTranscoder(
        LAYERS, WIDTH, D, activation_function=activation, lazy_decoder=False, device=CPU, dtype=dtype
    )
    with torch.no_grad():
        for name, one in made.named_parameters():
            noise = 0.5 * torch.randn(one.shape)
            one.copy_(noise.abs() if "threshold" in name else noise)
    made.to_safetensors(str(folder))
    about = {"model_name": "a-model", "model_kind": "cross_layer_transcoder", "scan": "a/scan"}
    about |= {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump(about))
    x = torch.randn(LAYERS, ROWS, D)
    save_file(outputs(folder, x), folder.parent / f"{folder.name}.safetensors")


def make_gemma_scope(folder: Path, *, skip: bool) -> None:
    """Write files as Gemma Scope 2 has them. The loader leaves out the last of the layers that it is told of."""
    folder.mkdir(parents=True)
    paths = {}
    for layer in range(LAYERS):
        tensors = {"w_enc": torch.randn(D, WIDTH), "b_enc": torch.randn(WIDTH), "b_dec": torch.randn(D)}
        tensors |= {"threshold": torch.rand(WIDTH), "w_dec": 0.5 * torch.randn(WIDTH, LAYERS, D)}
        tensors |= {"affine_skip_connection": torch.randn(D, D)} if skip else {}
        paths[layer] = str(folder / f"params_layer_{layer}.safetensors")
        save_file(tensors, paths[layer])
    loaded = load_gemma_scope_2_clt(paths | {LAYERS: ""}, device=CPU, dtype=torch.float32)
    x = torch.randn(LAYERS, ROWS, D)
    with torch.no_grad():
        codes = loaded.encode(x)
        made = {"x": x, "codes": codes.contiguous(), "reconstruction": loaded.decode(codes.to_sparse(), x).contiguous()}
    save_file(made, folder.parent / f"{folder.name}.safetensors")


def outputs(folder: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What circuit-tracer computes in float32 from a folder."""
    loaded = load_clt(str(folder), device=CPU, dtype=torch.float32, lazy_decoder=True)
    with torch.no_grad():
        codes = loaded.encode(x)
        return {"x": x, "codes": codes.contiguous(), "reconstruction": loaded.decode(codes.to_sparse(), x).contiguous()}


def check(folder: Path) -> bool:
    """Whether circuit-tracer's outputs are those in the file."""
    expected = load_file(folder.parent / f"{folder.name}.safetensors")
    found = outputs(folder, expected["x"])
    off = max(float((found[name] - expected[name]).abs().max()) for name in ("codes", "reconstruction"))
    print(f"{folder}: off by {off:.2g}")
    return off <= TOLERANCE


if __name__ == "__main__":
    main()
