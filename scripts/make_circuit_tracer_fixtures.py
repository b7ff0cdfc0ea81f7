"""Small sets of transcoders saved by circuit-tracer, with its outputs; and the reverse check of sets that we wrote.

    python -m venv ENV && ENV/bin/pip install circuit-tracer==0.5.0
    ENV/bin/python scripts/make_circuit_tracer_fixtures.py make tests/fixtures/circuit_tracer
    ENV/bin/python scripts/make_circuit_tracer_fixtures.py check FOLDER ...

`make` writes sets: what circuit-tracer saves, `config.yaml`, and for each layer `expected_N.safetensors` with inputs
`x` [n, d], `codes` [n, width] and `reconstruction` [n, d]. `check` loads sets with such files by circuit-tracer's own
loader, all weights read lazily, and compares. Runs in an environment of its own, without this project.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import yaml
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    TranscoderSet,
    load_transcoder_set,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional

D, WIDTH, LAYERS, ROWS = 8, 24, 3, 12
TOLERANCE = 1e-5
CPU = torch.device("cpu")


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
    one(target / "relu", "hook_resid_mid", "hook_mlp_out")
    one(target / "relu_skip", "mlp.hook_in", "mlp.hook_out", skip=True)
    one(target / "jumprelu", "ln2.hook_normalized", "hook_mlp_out", jumps=True)
    one(target / "jumprelu_skip", "mlp.hook_in", "mlp.hook_out", skip=True, jumps=True, dtype=torch.bfloat16)


def one(
    folder: Path,
    reads: str,
    writes: str,
    *,
    skip: bool = False,
    jumps: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a set with random weights, and its outputs."""
    layers = {}
    for layer in range(LAYERS):
        activation = JumpReLU(torch.zeros(WIDTH, dtype=dtype), 0.1) if jumps else functional.relu
        made = SingleLayerTranscoder(D, WIDTH, activation, layer, skip_connection=skip, device=CPU, dtype=dtype)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim == 1 else 0.5))
                if name.endswith("threshold"):
                    parameter.abs_()
        layers[layer] = made
    TranscoderSet(layers, reads, writes).to_safetensors(str(folder))
    config = {"model_name": "meta-llama/Llama-3.2-1B", "model_kind": "transcoder_set", "feature_input_hook": reads}
    (folder / "config.yaml").write_text(yaml.dump(config | {"feature_output_hook": writes, "scan": "tiny"}))
    x = torch.randn(ROWS, D)
    for layer, transcoder in enumerate(loaded(folder)):
        expected = {"x": x, **outputs(transcoder, x)}
        save_file(
            {name: tensor.contiguous() for name, tensor in expected.items()}, folder / f"expected_{layer}.safetensors"
        )


def loaded(folder: Path) -> TranscoderSet:
    """The set in a folder, by circuit-tracer's loader, in float32."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    paths = {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(len(list(folder.glob("layer_*"))))}
    hooks = config["feature_input_hook"], config["feature_output_hook"]
    return load_transcoder_set(paths, config["scan"], *hooks, device=CPU, dtype=torch.float32)


def outputs(transcoder: SingleLayerTranscoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Codes and reconstructions."""
    with torch.no_grad():
        return {"codes": transcoder.encode(x), "reconstruction": transcoder(x)}


def check(folder: Path) -> bool:
    """Whether circuit-tracer's outputs equal those in the folder."""
    apart = 0.0
    for layer, transcoder in enumerate(loaded(folder)):
        expected = load_file(folder / f"expected_{layer}.safetensors")
        made = outputs(transcoder, expected["x"])
        apart = max([apart, *(float((made[name] - expected[name]).abs().max()) for name in made)])
    print(f"{folder.name}: circuit-tracer's output differs by at most {apart:.1e}")
    return apart < TOLERANCE


if __name__ == "__main__":
    main()
