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
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import load_file, save_file

D_IN, D_OUT, WIDTH, ROWS = 8, 6, 16, 12
TOLERANCE = 1e-5
BESIDE = ("_covariance_whitening", "_expected_average_only_in", "_constant_norm_rescale", "_layer_norm")
BESIDE += ("gated_uncentred", "matryoshka")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {},
    "gated": {"apply_b_dec_to_input": False},
    "jumprelu": {},
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "batchtopk_not_rescaled": {"k": 4, "rescale_acts_by_decoder_norm": False},
}
"""What is saved in the middle of a training that normalises its inputs."""
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
    """Write every fixture anew; of many combinations, those that are no test of files go into a folder beside it."""
    shutil.rmtree(target, ignore_errors=True)
    beside = target.with_name("saelens_inputs")
    shutil.rmtree(beside, ignore_errors=True)
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
    inference(target / "gated", "gated", **own)
    inference(target / "gated_uncentred", "gated", apply_b_dec_to_input=False, **own)
    heads = HERE | {"hook_name": "blocks.0.attn.hook_z"}
    inference(target / "heads", "standard", reshape_activations="hook_z", metadata=heads)
    for rule in ("layer_norm", "constant_norm_rescale"):
        inference(target / f"standard_{rule}", "standard", normalize_activations=rule, **own)
        inference(target / f"topk_{rule}", "topk", k=4, apply_b_dec_to_input=False, normalize_activations=rule, **own)
        inference(target / f"gated_{rule}", "gated", normalize_activations=rule, **own)
        skips = "jumprelu_skip_transcoder"
        inference(target / f"{skips}_{rule}", skips, normalize_activations=rule, **across)
    training(target / "matryoshka", "matryoshka_batchtopk", final=True, k=4, matryoshka_widths=[4, 16], **own)
    training(target / "matryoshka_training", "matryoshka_batchtopk", k=4, matryoshka_widths=[4, 16], **own)
    for rule in ("expected_average_only_in", "covariance_whitening"):
        for architecture, more in ARCHITECTURES.items():
            checkpoint(target / f"{architecture}_{rule}", architecture, normalize_activations=rule, **own, **more)
    beside.mkdir()
    for folder in sorted(target.iterdir()):
        if folder.name != "standard_layer_norm" and folder.name.endswith(BESIDE):
            folder.rename(beside / folder.name)


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


def checkpoint(folder: Path, architecture: str, **settings: Any) -> None:
    """Write a dictionary and the files beside it as training saves them; the outputs are those of its end."""
    sae_class, config_class = sae_lens_registry.get_sae_training_class(architecture.removesuffix("_not_rescaled"))
    trained: TrainingSAE[Any] = randomise(sae_class(built(config_class, settings)))
    matrix = torch.eye(D_IN) + 0.2 * torch.randn(D_IN, D_IN)
    whitening = ActivationWhitening(torch.randn(D_IN), matrix, matrix.inverse())
    whitens = settings["normalize_activations"] == "covariance_whitening"
    scaler = ActivationScaler(whitening=whitening) if whitens else ActivationScaler(scaling_factor=0.37)
    trained.save_model(folder)
    scaler.save(str(folder / "activation_scaler.json"))
    with torch.no_grad():
        if whitens:
            trained.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
        else:
            trained.fold_activation_norm_scaling_factor(0.37)
    with tempfile.TemporaryDirectory() as scratch:
        trained.save_inference_model(scratch)
        expect(folder, SAE.load_from_disk(scratch))


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
    given = x.view(ROWS, 2, D_IN // 2) if sae.cfg.reshape_activations == "hook_z" else x
    with torch.no_grad():
        single = sae.to(torch.float32)
        outputs = {"x": x, "codes": single.encode(given), "reconstruction": single(given).flatten(1)}
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
