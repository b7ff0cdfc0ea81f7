"""Small lenses saved by the tuned-lens project, with its outputs; and the reverse check of what we wrote.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 transformers==5.23.0 datasets accelerate
    ENV/bin/pip install --no-deps tuned-lens==0.2.0
    ENV/bin/python scripts/make_tuned_lens_fixtures.py make tests/fixtures/tuned_lens
    ENV/bin/python scripts/make_tuned_lens_fixtures.py check FOLDER ...

`make` writes a folder for each tiny model of `tests/tiny.py`: what the project saves, and `expected.safetensors` with
`tokens` [pos] and `logits` [layers, pos, vocab], those of the embedding and of each layer but the last. `check` loads
folders with such a file in the project and compares; a folder has the name of its tiny model. Runs in an environment
of its own, without this project.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import tiny
from tuned_lens import TunedLens

NAMES = ("llama", "gpt2", "neox")
IDS = (5, 9, 11, 30, 7, 2, 40, 3, 77)
TOLERANCE = 1e-5


def main() -> None:
    """`make FOLDER` or `check FOLDER ...`."""
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
    for name in NAMES:
        model = tiny.build(name)
        lens = TunedLens.from_model(model)
        chance = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in lens.layer_translators.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=chance))
        lens.save(target / name)
        expected = {"tokens": torch.tensor(IDS), "logits": outputs(lens, model, torch.tensor(IDS))}
        save_file(expected, target / name / "expected.safetensors")


def outputs(lens: TunedLens, model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """The lens's logits, `[layers, pos, vocab]`."""
    with torch.no_grad():
        states = model(input_ids=tokens[None], output_hidden_states=True).hidden_states
        return torch.stack([lens(states[place][0], place) for place in range(len(lens))]).contiguous()


def check(folder: Path) -> bool:
    """Whether the project gives the outputs that stand beside a lens."""
    expected, model = load_file(folder / "expected.safetensors"), tiny.build(folder.name)
    lens = TunedLens.from_model_and_pretrained(model, str(folder))
    found = outputs(lens, model, expected["tokens"])
    furthest = float((found - expected["logits"]).abs().max())
    print(f"{folder}: furthest {furthest:.1e}")
    return furthest <= TOLERANCE


if __name__ == "__main__":
    main()
