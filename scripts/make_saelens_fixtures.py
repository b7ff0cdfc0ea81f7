"""Small dictionaries saved by SAELens, with its outputs; and the reverse check of folders that we wrote.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 && ENV/bin/pip install "sae-lens==6.54.*"
    ENV/bin/python scripts/make_saelens_fixtures.py make tests/fixtures/saelens
    ENV/bin/python scripts/make_saelens_fixtures.py check FOLDER ...

`make` writes one folder for each architecture: what SAELens saves, and `expected.safetensors` with inputs `x`
[n, d_in], `codes` [n, width] and `reconstruction` [n, d_out]. `check` loads folders with such a file in SAELens and
compares. Runs in an environment of its own, without this project.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, SAEConfig, TrainingSAE
from sae_lens import registry as sae_lens_registry
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file

D_IN, D_OUT, WIDTH, ROWS = 8, 6, 16, 12
TOLERANCE = 1e-5
HERE = {"hook_name": "blocks.0.hook_resid_post", "model_name": "tiny"}
ACROSS = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out", "model_name": "tiny"}


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
    own = {"metadata": HERE}
    inference(target / "standard", "standard", **own)
    inference(target / "standard_uncentred", "standard", apply_b_dec_to_input=False, **own)
    inference(target / "topk", "topk", k=4, **own)
    inference(target / "jumprelu", "jumprelu", **own)
    inference(target / "half_precision", "standard", dtype="bfloat16", **own)
    across: dict[str, Any] = {"apply_b_dec_to_input": False, "d_out": D_OUT, "metadata": ACROSS}
    for architecture in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        inference(target / architecture, architecture, **across)
    training(target / "topk_training", "topk", k=4, **own)
    training(target / "batchtopk_training", "batchtopk", k=4, **own)
    training(target / "batchtopk", "batchtopk", final=True, k=4, **own)


def inference(folder: Path, architecture: str, **settings: Any) -> None:
    """Write a dictionary as SAELens saves it after training."""
    sae_class, config_class = sae_lens_registry.get_sae_class(architecture)
    randomised = randomise(sae_class(built(config_class, settings)))
    randomised.save_model(folder)
    expect(folder, randomised)


def training(folder: Path, architecture: str, final: bool = False, **settings: Any) -> None:
    """Write a dictionary as training holds it, or as it saves it at the end; the outputs are those of the latter."""
    sae_class, config_class = sae_lens_registry.get_sae_training_class(architecture)
    trained: TrainingSAE[Any] = randomise(sae_class(built(config_class, settings)))
    with tempfile.TemporaryDirectory() as scratch:
        trained.save_inference_model(scratch)
        loaded = SAE.load_from_disk(scratch)
        if final:
            shutil.copytree(scratch, folder)
        else:
            trained.save_model(folder)
    expect(folder, loaded)


def built(config_class: type[SAEConfig], settings: dict[str, Any]) -> SAEConfig:
    """A configuration of the common small size."""
    metadata = SAEMetadata(**settings["metadata"])
    return config_class(**(settings | {"d_in": D_IN, "d_sae": WIDTH, "metadata": metadata}))


def randomise(sae: Any) -> Any:
    """The dictionary with random weights, biases and thresholds."""
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim == 1 else 0.5))
            if name == "threshold":
                parameter.abs_()
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.4)
    return sae


def expect(folder: Path, sae: SAE[Any]) -> None:
    """Write inputs and SAELens's outputs beside the dictionary."""
    x = torch.randn(ROWS, D_IN)
    with torch.no_grad():
        single = sae.to(torch.float32)
        outputs = {"x": x, "codes": single.encode(x), "reconstruction": single(x)}
    save_file({name: tensor.detach().contiguous() for name, tensor in outputs.items()}, folder / "expected.safetensors")


def check(folder: Path) -> bool:
    """Whether SAELens's outputs equal those in the folder."""
    expected = load_file(folder / "expected.safetensors")
    sae = SAE.load_from_disk(folder)
    with torch.no_grad():
        codes, reconstruction = sae.encode(expected["x"]), sae(expected["x"])
    apart = max(
        float((codes - expected["codes"]).abs().max()),
        float((reconstruction - expected["reconstruction"]).abs().max()),
    )
    print(f"{folder.name}: SAELens's {type(sae).__name__} differs by at most {apart:.1e}")
    return apart < TOLERANCE


if __name__ == "__main__":
    main()
