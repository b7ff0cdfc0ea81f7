"""A small graph written by circuit-tracer's own code, with the influences that it computes; and the reverse check.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 circuit-tracer==0.5.0 jsonschema
    ENV/bin/python scripts/make_graph_fixtures.py make tests/fixtures/graphs TOKENIZER_FOLDER
    ENV/bin/python scripts/make_graph_fixtures.py check GRAPH.json [SCHEMA.json]

`make` writes `graph.json` by `create_graph_files` and `expected.json`: the influence of each node that is left, by
`compute_node_influence` on the links that are left. `check` opens a graph that we wrote by circuit-tracer's own form,
and by a JSON schema where one is named. Runs in an environment of its own, without this project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

LAYERS, POSITIONS, VOCAB = 3, 5, 331


def main() -> None:
    """`make FOLDER TOKENIZER` or `check GRAPH [SCHEMA]`."""
    torch.manual_seed(0)
    if len(sys.argv) == 4 and sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3])
    elif len(sys.argv) in (3, 4) and sys.argv[1] == "check":
        check(Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(__doc__)


def make(target: Path, tokenizer: str) -> None:
    """Write the graph of random features of three layers and two logits, with the influences of its nodes."""
    from circuit_tracer.attribution.targets import LogitTarget
    from circuit_tracer.graph import Graph, compute_node_influence
    from circuit_tracer.utils.create_graph_files import create_graph_files

    features = [(layer, position, 7 * layer + 3 * position + 5) for layer in range(LAYERS) for position in range(1, 5)]
    errors, n = LAYERS * POSITIONS, len(features)
    size = n + errors + POSITIONS + 2
    layers = [one[0] for one in features] + [layer for layer in range(LAYERS) for _ in range(POSITIONS)]
    layers += [-1] * POSITIONS + [LAYERS] * 2
    adjacency = torch.randn(size, size) * (torch.rand(size, size) < 0.6)
    for target_, of in enumerate(layers):
        for source, by in enumerate(layers):
            readable = target_ < n or target_ >= size - 2
            if not readable or by >= of:
                adjacency[target_, source] = 0
    config = SimpleNamespace(n_layers=LAYERS, d_vocab=VOCAB, tokenizer_name=tokenizer)
    from circuit_tracer import graph as module

    module.convert_nnsight_config_to_transformerlens = lambda config: config
    tokens = torch.tensor([40, 17, 99, 8, 200])
    graph = Graph(
        input_string="a prompt",
        input_tokens=tokens,
        active_features=torch.tensor(features),
        adjacency_matrix=adjacency,
        cfg=config,
        selected_features=torch.arange(n),
        activation_values=torch.rand(n) * 5,
        logit_targets=[LogitTarget(" dog", 7), LogitTarget(" cat", 9)],
        logit_probabilities=torch.tensor([0.6, 0.25]),
        scan="tiny",
    )
    create_graph_files(graph, "graph", target, node_threshold=0.9, edge_threshold=0.98)
    (target / "graph-metadata.json").unlink()
    saved = json.loads((target / "graph.json").read_text())
    names = [node["node_id"] for node in saved["nodes"]]
    left = torch.zeros(len(names), len(names))
    for link in saved["links"]:
        left[names.index(link["target"]), names.index(link["source"])] = link["weight"]
    chances = torch.tensor([node["token_prob"] for node in saved["nodes"]])
    influence = compute_node_influence(left, chances) + chances
    expected = dict(zip(names, (influence / chances.sum()).tolist(), strict=True))
    (target / "expected.json").write_text(json.dumps(expected, indent=1))


def check(file: Path, schemas: list[str]) -> None:
    """Open a graph in circuit-tracer's form, whose names have to mean what circuit-tracer's own nodes are called."""
    from circuit_tracer.frontend.graph_models import Model, Node

    content = json.loads(file.read_text())
    model = Model.model_validate(content)
    latents = {node.node_id for node in model.nodes if node.feature_type == "cross layer transcoder"}
    for node in model.nodes:
        position, kind, second = node.ctx_idx, node.feature_type, node.node_id.split("_")[1]
        named = ("node_id", "jsNodeId")
        if kind == "cross layer transcoder":
            theirs = Node.feature_node(int(node.layer), position, int(second))
        elif kind == "mlp reconstruction error":
            theirs = Node.error_node(int(node.layer), position)
            if theirs.node_id in latents:  # circuit-tracer has one name for both, so that the error has another here
                assert node.node_id not in latents, node
                named = ()
        elif kind == "embedding":
            theirs = Node.token_node(position, int(second))
        else:
            assert kind == "logit"
            theirs = Node.logit_node(position, node.feature, "", int(node.layer) - 1)
        for what in ("feature", "layer", *named):
            assert getattr(node, what) == getattr(theirs, what), (what, node, theirs)
    for schema in schemas:
        import jsonschema

        jsonschema.Draft7Validator(json.loads(Path(schema).read_text())).validate(content)
    print(f"{file}: {len(model.nodes)} nodes, {len(model.links)} links")


if __name__ == "__main__":
    main()
