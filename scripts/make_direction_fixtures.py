"""Control and steering vectors written by repeng and steering-vectors, with the logits of a model that they steer.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 repeng==0.4.0 steering-vectors==0.12.2
    PYTHONPATH=tests ENV/bin/python scripts/make_direction_fixtures.py make tests/fixtures/directions
    PYTHONPATH=tests ENV/bin/python scripts/make_direction_fixtures.py check VECTOR.gguf

`make` writes `control.gguf` by repeng's export, `steering.pt` with a SteeringVector as plain data, and
`expected.safetensors` with `tokens` [pos] and logits [pos, vocab] of the tiny llama of `tests/tiny.py`: `plain`,
`control` at a strength of 1.5, `steering` at 2. `check` opens a control vector that we wrote in repeng, compares it
with what the package gguf reads, and prints its layers. Runs in an environment of its own, without this project.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

np.float_ = np.float64  # repeng 0.4.0 asks NumPy for a name that is gone


def main() -> None:
    """`make FOLDER` or `check FILE`."""
    if len(sys.argv) == 3 and sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    elif len(sys.argv) == 3 and sys.argv[1] == "check":
        check(Path(sys.argv[2]))
    else:
        sys.exit(__doc__)


def make(target: Path) -> None:
    """Write the vectors and what a model gives with them."""
    import tiny
    from repeng import ControlModel, ControlVector
    from steering_vectors import SteeringVector

    target.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    tokens = torch.tensor([5, 17, 40, 8, 99, 200, 31])
    logits = {"plain": tiny.build("llama")(tokens[None]).logits[0]}
    control = ControlVector("llama", {layer: chance.normal(size=32).astype(np.float32) for layer in (1, 2)})
    control.export_gguf(target / "control.gguf")
    steered = ControlModel(tiny.build("llama"), [1, 2])
    steered.set_control(control, 1.5)
    logits["control"] = steered(tokens[None]).logits[0]
    vector = SteeringVector({layer: torch.tensor(chance.normal(size=32)).float() for layer in (0, 2)}, "decoder_block")
    torch.save(dataclasses.asdict(vector), target / "steering.pt")
    model = tiny.build("llama")
    with vector.apply(model, multiplier=2.0):
        logits["steering"] = model(tokens[None]).logits[0]
    save_file(
        {"tokens": tokens} | {name: one.detach().contiguous() for name, one in logits.items()},
        target / "expected.safetensors",
    )


def check(file: Path) -> None:
    """Open a control vector in repeng and by the package gguf."""
    import gguf
    from repeng import ControlVector

    vector = ControlVector.import_gguf(file)
    fields = gguf.GGUFReader(file).fields
    assert "controlvector.layer_count" in fields
    for layer, values in sorted(vector.directions.items()):
        print(layer, *(f"{value:.9g}" for value in values))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
