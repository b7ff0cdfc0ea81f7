"""An attribution graph as a script."""

from __future__ import annotations

from collections.abc import Sequence

from shared import snippets

from attribution.request import AttributionRequest


def attribution(request: AttributionRequest, pruning: Sequence[str]) -> str:
    """The graph of features behind a prediction, the part of it that the page shows, and its check by intervention.

    Args:
        request: what was traced.
        pruning: the arguments of the two calls of `prune`.
    """
    small = "".join(f".prune({arguments})" for arguments in pruning)
    opened = ", ".join(f"wb.load_dictionary({snippets.place(folder)!r})" for folder in request.folders)
    return snippets.opening(request.source) + (
        f"transcoders = [{opened}]\n"
        f"graph = wb.attribute(\n    model, transcoders, {request.prompt!r}, {request.target!r}, "
        f"max_latents={request.latents}, mlps={request.mlps!r}\n)\n"
        "print(graph.target.label, graph.target.value, graph.shares, max(graph.completeness()))\n"
        f"shown = graph{small}\n"
        "for edge in shown.edges:\n"
        "    source, target = graph.node(edge.source), graph.node(edge.target)\n"
        "    print(f'{edge.weight:+.3f}', source.label, source.position, '->', target.label, target.position)\n"
        "verification = wb.attribution.verify_graph(model, transcoders, graph, 10)\n"
        "print(verification.pearson)\n"
        "wb.attribution.save_graph(shown, 'graph.json')\n"
    )
