"""Small dictionaries in the forms in which their publishers release them, with the outputs of SAELens's own loaders.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 && ENV/bin/pip install "sae-lens==6.54.*"
    ENV/bin/python scripts/make_scope_fixtures.py tests/fixtures/scopes

Each file has the names and the shapes that the publisher documents; SAELens's loader of that format reads it as if it
came from the hub. `expected.safetensors` beside it has inputs `x` [n, d_in], `codes` [n, width] and `reconstruction`
[n, d_out], and in its metadata what SAELens says of hook points and model. Runs in an environment of its own, without
this project.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import load_file, save_file
from torch import Tensor

D_IN, D_OUT, WIDTH, ROWS = 8, 8, 16, 6
JUMP = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def weights(d_in: int = D_IN, d_out: int = D_OUT, width: int = WIDTH) -> dict[str, Tensor]:
    """Random weights in SAELens's shapes."""
    shapes = {"W_enc": (d_in, width), "b_enc": (width,), "W_dec": (width, d_out), "b_dec": (d_out,)}
    drawn = {name: torch.randn(shape) * 0.5 for name, shape in shapes.items()}
    return drawn | {"threshold": torch.rand(width)}


def linear(encoder: str, decoder: str, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as those of two linear layers."""
    stored = {f"{encoder}.weight": drawn["W_enc"].T.contiguous(), f"{encoder}.bias": drawn["b_enc"]}
    return stored | {f"{decoder}.weight": drawn["W_dec"].T.contiguous(), f"{decoder}.bias": drawn["b_dec"]}


def expect(
    root: Path, repository: str, inside: str, loader: str, rows: int = ROWS, factor: float = 0.0, **own: Any
) -> None:
    """Write SAELens's outputs for what lies in the folder, beside it."""
    base = root / repository.rpartition("/")[2]

    def download(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        if not (base / subfolder / filename).is_file():
            raise LocalEntryNotFoundError(filename)
        return str(base / subfolder / filename)

    loaders.hf_hub_download = download
    loaders.get_safetensors_tensor_shapes = lambda _, file: {
        name: list(tensor.shape) for name, tensor in load_file(base / file).items()
    }
    stated = {"d_in": own.pop("d_in", D_IN), "d_sae": own.pop("d_sae", WIDTH), "dtype": "float32"}
    stated |= {"d_out": stated["d_in"]} if "transcoder" in loader else {}
    config, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader](repository, inside, "cpu", False, stated | own)
    config = loaders.handle_config_defaulting(config)
    kind = SAE.get_sae_config_class_for_architecture(config["architecture"]).from_dict(config)
    sae = SAE.get_sae_class_for_architecture(kind.architecture())(kind)
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state, assign=True)
    if factor:
        sae.fold_activation_norm_scaling_factor(factor)
    x = torch.randn(rows, config["d_in"])
    with torch.no_grad():
        given = x.view(rows, 2, -1) if sae.cfg.reshape_activations == "hook_z" else x
        outputs = {"x": x, "codes": sae.encode(given), "reconstruction": sae(given).flatten(1)}
    said = {name: str(sae.cfg.metadata[name] or "") for name in ("hook_name", "hook_name_out", "model_name")}
    place = base / inside
    target = place.with_suffix(".expected.safetensors") if place.is_file() else place / "expected.safetensors"
    save_file({name: one.detach().contiguous() for name, one in outputs.items()}, target, said)


def gemma(root: Path) -> None:
    """Gemma Scope."""
    for place, loader in (
        ("res", "gemma_2"),
        ("mlp", "gemma_2"),
        ("att", "gemma_2"),
        ("transcoders", "gemma_2_transcoder"),
    ):
        repository, inside = f"google/gemma-scope-2b-pt-{place}", "layer_3/width_16k/average_l0_5"
        _npz(root / repository.rpartition("/")[2] / inside)
        expect(root, repository, inside, loader)
    repository, inside = "google/gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_5"
    _npz(root / repository.rpartition("/")[2] / inside)
    expect(root, repository, inside, "gemma_2")


def _npz(folder: Path) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in weights().items()})


def gemma_2(root: Path) -> None:
    """Gemma Scope 2."""
    at = "model.layers.5"
    mlp = {"hf_hook_point_in": f"{at}.pre_feedforward_layernorm.output"}
    mlp |= {"hf_hook_point_out": f"{at}.post_feedforward_layernorm.output"}
    places = {
        "resid_post/layer_5_width_16k_l0_small": {"hf_hook_point_in": f"{at}.output"},
        "attn_out/layer_5_width_16k_l0_small": {"hf_hook_point_in": f"{at}.self_attn.o_proj.input"},
        "mlp_out/layer_5_width_16k_l0_small": {"hf_hook_point_in": f"{at}.post_feedforward_layernorm.output"},
        "transcoder/layer_5_width_16k_l0_small": mlp | {"affine_connection": False},
        "transcoder/layer_5_width_16k_l0_small_affine": mlp | {"affine_connection": True},
        "resid_post_all/layer_5_width_16k_l0_big": None,  # its config.json is missing
    }
    for inside, config in places.items():
        folder = root / "gemma-scope-2-1b-pt" / inside
        folder.mkdir(parents=True)
        stored = {name.lower(): tensor for name, tensor in weights().items()}
        if config is not None and config.get("affine_connection"):
            stored["affine_skip_connection"] = torch.randn(D_IN, D_OUT)
        save_file(stored, folder / "params.safetensors")
        if config is not None:
            whole = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"} | config
            (folder / "config.json").write_text(json.dumps(whole))
        expect(root, "google/gemma-scope-2-1b-pt", inside, "gemma_3")


def llama(root: Path) -> None:
    """Llama Scope, and that of DeepSeek R1 Distill."""
    inside = "Llama3_1-8B-Base-L4R-8x"
    folder = root / "Llama3_1-8B-Base-LXR-8x" / inside
    (folder / "checkpoints").mkdir(parents=True)
    norm = 3.7
    config = {"d_model": D_IN, "d_sae": WIDTH, "jump_relu_threshold": 0.4, "hook_point_in": "blocks.4.hook_resid_post"}
    config |= {"dataset_average_activation_norm": {"in": norm, "out": norm}, "act_fn": "jumprelu"}
    (folder / "hyperparams.json").write_text(json.dumps(config))
    drawn = weights()
    drawn.pop("threshold")
    save_file(linear("encoder", "decoder", drawn), folder / "checkpoints" / "final.safetensors")
    expect(root, "fnlp/Llama3_1-8B-Base-LXR-8x", inside, "llama_scope", factor=D_IN**0.5 / norm)
    folder = root / "Llama-Scope-R1-Distill" / "L7R"
    folder.mkdir(parents=True)
    config = {"d_model": D_IN, "expansion_factor": WIDTH // D_IN, "hook_point_in": "blocks.7.hook_resid_post"}
    (folder / "config.json").write_text(json.dumps(config))
    drawn = weights()
    stored = linear("encoder", "decoder", drawn) | {"log_jumprelu_threshold": drawn["threshold"].log()}
    save_file(stored, folder / "sae_weights.safetensors")
    expect(root, "fnlp/Llama-Scope-R1-Distill", "L7R", "llama_scope_r1_distill", factor=0.6)


def checkpoints(root: Path) -> None:
    """Goodfire's, qresearch's and Qwen Scope's files of `torch.save`."""
    for repository, file, encoder, loader in (
        ("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth", "encoder_linear", "goodfire"),
        ("Goodfire/Llama-3.3-70B-Instruct-SAE-l50", "Llama-3.3-70B-Instruct-SAE-l50.pt", "encoder_linear", "goodfire"),
        (
            "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
            "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
            "encoder",
            "deepseek_r1",
        ),
    ):
        folder = root / repository.rpartition("/")[2]
        folder.mkdir()
        torch.save(linear(encoder, encoder.replace("en", "de", 1), weights()), folder / file)
        expect(root, repository, file, loader)
    folder = root / "SAE-Res-Qwen3-1.7B-Base-W1K-L0_5"
    folder.mkdir()
    for layer in (2, 10):
        drawn = weights(2, 2, 1024)
        drawn.pop("threshold")
        stored = {name: one.T.contiguous() if one.ndim == 2 else one for name, one in drawn.items()}
        torch.save(stored, folder / f"layer{layer}.sae.pt")
        expect(root, f"Qwen/{folder.name}", f"layer{layer}.sae.pt", "qwen_scope", rows=2, d_in=2, d_sae=1024)


def main() -> None:
    """Write every fixture anew."""
    torch.manual_seed(0)
    root = Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for make in (gemma, gemma_2, llama, checkpoints):
        make(root)


if __name__ == "__main__":
    main()
