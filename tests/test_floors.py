"""The house: imports go down only, foreign libraries stay behind their one door, nothing is unpickled."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS: dict[str, int] = {
    **dict.fromkeys(["hookpoints", "features", "edits", "files", "kvcache", "sampling"], 0),
    **dict.fromkeys(["weights", "model", "decoder", "generation", "corpus", "tokfsm"], 1),
    **dict.fromkeys(["dictionaries"], 2),
    **dict.fromkeys(["harvest", "interventions", "saved_interventions", "splice", "training"], 3),
    **dict.fromkeys(["decode", "index", "measures", "circuits", "surgery", "figures", "figures_attribution"], 4),
    **dict.fromkeys(["figures_sparsity", "figures_circuits"], 4),
}
"""Files and folders of `workbench/`; above them are the pages, scripts and benchmarks."""
TOP = 5
ABOVE = ("app", "analyses", "benchmarks")
NEIGHBOURS = {
    ("generation", "decoder"),
    ("generation", "model"),
    ("generation", "weights"),
    ("decoder", "model"),
    ("model", "weights"),
    ("corpus", "weights"),
    ("tokfsm", "corpus"),
    ("training", "harvest"),
    ("saved_interventions", "interventions"),
    ("figures_attribution", "figures"),
    ("figures_sparsity", "figures"),
    ("figures_circuits", "figures"),
}
"""Who may import whom on one floor."""
BLIND = {"dictionaries": {"weights"}}
"""What a folder may import from the floor right below it; the rest of that floor it does not know."""
DOORS = {
    "transformer_lens": ("workbench/model.py",),
    "streamlit": ("app/",),
    "plotly": ("workbench/figures.py", "workbench/figures_", "analyses/"),
}
"""Who may import a foreign library."""
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING = {("torch", "load"), ("torch", "save"), ("pd", "read_pickle"), ("pandas", "read_pickle")}


def sources() -> list[Path]:
    """Every Python file of the product."""
    return sorted(path for folder in ("workbench", *ABOVE) for path in (ROOT / folder).rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of the modules that a file of `package` imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@functools.cache
def without_kind() -> list[str]:
    """Files of `dictionaries/` that define no kind of dictionary: the protocol and what reads and writes folders."""

    def is_kind(node: ast.AST) -> bool:
        return isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and "id='kind'" in ast.dump(node)

    paths = (ROOT / "workbench" / "dictionaries").glob("*.py")
    classes = {
        path.stem: [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)] for path in paths
    }
    return [stem for stem, found in classes.items() if not any(is_kind(node) for one in found for node in one.body)]


def complaints(name: str, source: str) -> list[str]:
    """What is wrong with the imports and calls of a file, given its path in the repository."""
    words = name.removesuffix(".py").split("/")
    tree = ast.parse(source)
    found = []
    for target in imports(tree, ".".join(words[:-1])):
        parts = target.split(".")
        if parts[0] in DOORS and not name.startswith(DOORS[parts[0]]):
            found.append(f"{name} imports {parts[0]}")
        if parts[0] in PICKLERS:
            found.append(f"{name} imports {parts[0]}")
        if parts[0] in ABOVE and words[0] == "workbench":
            found.append(f"{name} climbs to {target}")
        if parts[0] == "workbench" and words[0] == "workbench" and words[1] != "__init__":
            found += _stairs(name, words, parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in UNPICKLING:
                found.append(f"{name} uses {node.value.id}.{node.attr}")
            if node.attr == "to_pickle":
                found.append(f"{name} uses to_pickle")
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and getattr(node.value, "value", 0) is not False
        ):
            found.append(f"{name} allows pickle")
    return found


def _stairs(name: str, words: list[str], parts: list[str]) -> list[str]:
    """Whether a file of the package may import `workbench.…`."""
    here, there = words[1], parts[1] if len(parts) > 1 else ""
    if there not in FLOORS:  # a bare `workbench`, or a name of its face
        return [] if there else [f"{name} imports the face, workbench itself"]
    up, down = FLOORS[here], FLOORS[there]
    wrong = {
        f"climbs to {there}": up < down,
        f"imports its neighbour {there}": up == down and here != there and (here, there) not in NEIGHBOURS,
        f"knows {there}": here in BLIND and down == up - 1 and there not in BLIND[here],
        f"imports another kind, {parts[-1]}": here == there == "dictionaries"
        and len(parts) > 2
        and parts[2] not in (words[2], *without_kind()),
    }
    return [f"{name} {what}" for what, is_so in wrong.items() if is_so]


@pytest.mark.parametrize("path", sources(), ids=_name)
def test_imports_go_down(path: Path) -> None:
    assert complaints(_name(path), path.read_text()) == []


def test_every_file_has_a_floor() -> None:
    known = {path.stem if path.is_file() else path.name for path in (ROOT / "workbench").iterdir()}
    assert known - {"__init__", "__pycache__", "py.typed"} <= set(FLOORS)


@pytest.mark.parametrize("path", [path for path in sources() if path.name == "__init__.py"], ids=_name)
def test_init_defines_nothing(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.Assign | ast.AnnAssign), (
            f"{path} defines something: {ast.unparse(node)}"
        )


def test_face_offers_only_what_exists() -> None:
    import workbench

    tree = ast.parse((ROOT / "workbench" / "__init__.py").read_text())
    names = [
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert len(names) == len(set(names))
    assert all(hasattr(workbench, name) for name in names)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("workbench/edits.py", "import workbench.model"),
        ("workbench/edits.py", "from workbench import features, generation"),
        ("workbench/edits.py", "from workbench.features import Feature"),
        ("workbench/edits.py", "def late():\n    from workbench.weights import ModelError"),
        ("workbench/weights.py", "from workbench.model import Network"),
        ("workbench/model.py", "from workbench.generation import LanguageModel"),
        ("workbench/model.py", "import workbench as wb"),
        ("workbench/model.py", "from . import interventions"),
        ("workbench/dictionaries/neurons.py", "from workbench.model import Network"),
        ("workbench/dictionaries/neurons.py", "from workbench.generation import LanguageModel"),
        ("workbench/dictionaries/neurons.py", "from workbench.dictionaries.topk import TopKSAE"),
        ("workbench/dictionaries/neurons.py", "from .topk import TopKSAE"),
        ("workbench/interventions.py", "from workbench.splice import splice"),
        ("workbench/decode.py", "from workbench.measures.comparison import compare"),
        ("workbench/measures/comparison.py", "import app.main"),
        ("workbench/generation.py", "import transformer_lens"),
        ("workbench/figures.py", "import streamlit"),
        ("workbench/decode.py", "import plotly.express as px"),
        ("app/main.py", "import plotly"),
        ("app/main.py", "import transformer_lens.utils"),
        ("app/main.py", "import pickle"),
        ("workbench/weights.py", "import torch\ntorch.load('x')"),
        ("workbench/weights.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    ],
)
def test_a_climbing_staircase_is_seen(name: str, source: str) -> None:
    assert complaints(name, source) != []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("workbench/generation.py", "from workbench.model import Network\nfrom workbench.edits import Run"),
        ("workbench/corpus.py", "from workbench.weights import cache_folder"),
        ("workbench/dictionaries/neurons.py", "from workbench.dictionaries.protocol import Codes"),
        ("workbench/dictionaries/neurons.py", "from workbench.features import Feature\nimport torch"),
        ("workbench/dictionaries/topk.py", "from workbench.weights import replacing"),
        ("workbench/measures/fidelity.py", "from workbench.splice import splice"),
        ("workbench/model.py", "import transformer_lens"),
        ("analyses/neurons.py", "import plotly\nimport workbench as wb\nfrom workbench.decode import decode_neurons"),
        ("app/views/steer.py", "import streamlit as st\nimport workbench as wb\nfrom app import loading"),
    ],
)
def test_stairs_down_are_free(name: str, source: str) -> None:
    assert complaints(name, source) == []
