"""The time of an attribution graph beside plain forward and backward passes of the same prompt.

    python benchmarks/bench_attribution.py [--latents 256] [--rounds 3]

The graph of a 12-token prompt is wanted within 20 s on two cores. A forward and backward pass is the plain Hugging Face
model's, from the embeddings to one logit; the graph traces that logit and the sources of up to 256 latents, which
otherwise take as many backward passes. The bridge, which shows attention patterns, is built once for a model and is not
counted. Rivals take turns, so that other work on the machine slows all alike.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from timing import in_turns, report

import workbench as wb

PROMPT = "The old man walked slowly to the river to catch some big"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--latents", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)

    model = wb.load_model()
    transcoders: list[Any] = [wb.load_dictionary(f"transcoder-{layer}") for layer in range(10, 16)]
    tokens = model.to_tokens(settings.prompt)
    module = model.network.module

    def both_ways() -> None:
        with torch.enable_grad():
            embedded = module.get_input_embeddings()(tokens).detach().requires_grad_()
            logits = module(inputs_embeds=embedded, use_cache=False).logits[0, -1]
            torch.autograd.grad(logits.max(), embedded)

    graphs: dict[str, wb.attribution.Graph] = {}

    def graph(mlps: Any) -> None:
        graphs[mlps] = wb.attribute(model, transcoders, settings.prompt, max_latents=settings.latents, mlps=mlps)

    rivals = {
        "forward and backward": both_ways,
        "graph, other MLPs linear": lambda: graph("linear"),
        "graph, other MLPs frozen": lambda: graph("frozen"),
        "taking out the ten strongest": lambda: wb.attribution.verify_graph(
            model, transcoders, graphs["linear"], 10, regimes=["free"]
        ),
    }
    seconds = in_turns(rivals, settings.rounds)
    report(
        f"{tokens.shape[1]} tokens, {len(graphs['linear'].rows) - 1} latents traced, {torch.get_num_threads()} threads",
        seconds,
        "forward and backward",
        "a graph of 12 tokens within 20 s",
    )
    passes = seconds["graph, other MLPs linear"] / seconds["forward and backward"]
    print(f"  a graph takes as long as {passes:.1f} passes forward and backward")
    for mlps, one in graphs.items():
        check = wb.attribution.verify_graph(model, transcoders, one, 10)
        print(
            f"  {mlps}: largest relative error of a sum {max(one.completeness()):.1e}; correlation of predicted and "
            f"measured ablations {', '.join(f'{name} {r:.3f}' for name, r in check.pearson.items())}, effects within "
            f"the graph with free ones {check.frozen_as_free:.3f}"
        )


if __name__ == "__main__":
    main()
