"""Small autoencoders as OpenAI's `sparse_autoencoder` saves them, with its own outputs.

    git clone --depth 1 https://github.com/openai/sparse_autoencoder
    ENV/bin/python scripts/make_openai_fixtures.py sparse_autoencoder/sparse_autoencoder/model.py tests/fixtures/scopes

ENV has torch 2.13 alone. `NAME.expected.safetensors` beside each file has inputs `x` [n, d_in], `codes` [n, width] and
`reconstruction` [n, d_in].
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

D_IN, WIDTH, ROWS = 8, 16, 6


def main(source: Path, root: Path) -> None:
    """Write one of each activation function."""
    spec = importlib.util.spec_from_file_location("theirs", source)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    torch.manual_seed(0)
    for place, layer, activation in (
        ("resid_post_mlp_v5_32k", 6, theirs.TopK(4)),
        ("mlp_post_act", 3, torch.nn.ReLU()),
    ):
        made = theirs.Autoencoder(WIDTH, D_IN, activation, normalize=isinstance(activation, theirs.TopK))
        with torch.no_grad():
            made.pre_bias.normal_()
            made.latent_bias.normal_()
        folder = root / place / "autoencoders"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{layer}.pt"
        state = made.state_dict()
        torch.save(
            {name: one for name, one in state.items() if not name.startswith("activation.")}, file
        )  # as published
        opened = theirs.Autoencoder.from_state_dict(torch.load(file, weights_only=True))
        x = torch.randn(ROWS, D_IN) * 3 + 1
        with torch.no_grad():
            codes, info = opened.encode(x)
            outputs = {"x": x, "codes": codes, "reconstruction": opened.decode(codes, info)}
        hook = {"hook_name": f"blocks.{layer}.{'hook_resid_post' if layer == 6 else 'mlp.hook_post'}"}
        said = {**hook, "hook_name_out": "", "model_name": "openai-community/gpt2"}
        save_file(
            {name: one.contiguous() for name, one in outputs.items()}, file.with_suffix(".expected.safetensors"), said
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
