"""An attribution graph as a script."""

from __future__ import annotations

from shared import snippets

from attribution.request import AttributionRequest


def attribution(request: AttributionRequest) -> str:
    """The graph of features behind a prediction, and its check by intervention."""
    opened = ", ".join(f"wb.load_dictionary({snippets.place(folder)!r})" for folder in request.folders)
    return snippets.opening(request.source) + (
        f"transcoders = [{opened}]\n"
        f"graph = wb.attribute(\n    model, transcoders, {request.prompt!r}, {request.target!r}, "
        f"max_latents={request.latents}, mlps={request.mlps!r}\n)\n"
        "print(graph.target.label, graph.target.value, graph.shares, max(graph.completeness()))\n"
        "for edge in graph.prune(0.5, 0.9).edges:\n"
        "    source, target = graph.node(edge.source), graph.node(edge.target)\n"
        "    print(f'{edge.weight:+.3f}', source.label, source.position, '->', target.label, target.position)\n"
        "verification = wb.attribution.verify_graph(model, transcoders, graph, 10)\n"
        "print(verification.pearson)\n"
        "wb.attribution.save_graph(graph.prune(0.5, 0.9), 'graph.json')\n"
    )
