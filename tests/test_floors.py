"""The house: imports go down only, foreign libraries stay behind their one door, nothing is unpickled."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS: dict[str, int] = {
    **dict.fromkeys(["core"], 1),
    **dict.fromkeys(["model", "corpus", "figures"], 2),
    **dict.fromkeys(["dictionaries", "harvest", "evaluation"], 3),
    **dict.fromkeys(["interventions", "training", "directions"], 4),
    **dict.fromkeys(["neurons", "index", "measures", "sparsity", "lens", "attribution"], 5),
    **dict.fromkeys(["circuits", "synthetic", "surgery"], 5),
    **dict.fromkeys(["differences", "findings", "labels", "steering"], 6),
}
"""The rooms of `workbench/`; above them are the face (7) and the pages, scripts and benchmarks (8)."""
FACE = {"__init__.py", "__init__.pyi", "__main__.py", "console.py", "py.typed"}
"""Files of the face."""
ABOVE = ("app", "analyses", "benchmarks")
DOORS = {
    "transformer_lens": ("workbench/model/network.py", "benchmarks/bench_lens.py"),
    "streamlit": ("app/",),
    "plotly": ("workbench/figures/", "analyses/"),
}
"""Who may import a foreign library."""
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ONE_DOOR = "workbench/core/torch_files.py"
"""The only file that reads and writes what `torch.save` writes, as tensors and plain data."""
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


def modules() -> dict[str, Path]:
    """Every module of the package under its dotted name; a folder is its `__init__`."""
    dotted = {}
    for path in (ROOT / "workbench").rglob("*.py"):
        words = _name(path).removesuffix(".py").removesuffix("/__init__").split("/")
        dotted[".".join(words)] = path
    return dotted


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
        if parts[0] == "workbench" and words[0] == "workbench" and f"{words[1]}.py" not in FACE:
            found += _stairs(name, words, parts)
        if parts[0] == "workbench" and words[0] in ABOVE and any(part.startswith("_") for part in parts):
            found.append(f"{name} takes {parts[-1]} from {parts[1]}")
    return found + _unpickled(name, tree)


def _unpickled(name: str, tree: ast.AST) -> list[str]:
    """What of a file may unpickle something."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in UNPICKLING and name != ONE_DOOR:
                found.append(f"{name} uses {node.value.id}.{node.attr}")
            if node.attr in ("add_safe_globals", "safe_globals"):
                found.append(f"{name} lets the weights-only loader make more")
            if node.attr == "to_pickle":
                found.append(f"{name} uses to_pickle")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            stated = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if stated.get("weights_only") != "True":
                found.append(f"{name} uses torch.load without weights_only=True")
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
        f"imports its neighbour {there}": up == down and here != there,
        f"takes {parts[-1]} from {there}": here != there and any(part.startswith("_") for part in parts),
    }
    return [f"{name} {what}" for what, is_so in wrong.items() if is_so]


def circles() -> list[list[str]]:
    """Groups of modules of the package that import each other, directly or by way of others."""
    known = modules()
    below: dict[str, set[str]] = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = set(imports(ast.parse(path.read_text()), package))
        below[name] = {target for target in found if target in known and known[target].name != "__init__.py"} - {name}
    return [sorted(group) for group in _components(below) if len(group) > 1]


def _components(below: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected groups of a graph."""

    def reached(start: str) -> set[str]:
        seen, ahead = set(), [start]
        while ahead:
            for one in below[ahead.pop()] - seen:
                seen.add(one)
                ahead.append(one)
        return seen

    from_each = {name: reached(name) for name in below}
    groups = {frozenset({name} | {other for other in from_each[name] if name in from_each[other]}) for name in below}
    return [set(group) for group in groups]


@pytest.mark.parametrize("path", sources(), ids=_name)
def test_imports_go_down(path: Path) -> None:
    assert complaints(_name(path), path.read_text()) == []


def test_every_room_has_a_floor() -> None:
    known = {path.name for path in (ROOT / "workbench").iterdir()}
    assert known - FACE - {"__pycache__"} == set(FLOORS)


def table() -> dict[str, tuple[int, set[str]]]:
    """Floor of each room, and what it stands on, as docs/architecture.md says."""
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|[^|]*\|([^|]*)\|$", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    return {room: (int(floor), set(re.findall(r"`(\w+)`", below))) for floor, room, below in rows}


def test_the_architecture_page_says_which_floors_there_are() -> None:
    assert {room: floor for room, (floor, _) in table().items()} == FLOORS


@pytest.mark.parametrize("room", sorted(FLOORS))
def test_the_architecture_page_says_what_a_room_stands_on(room: str) -> None:
    found = set()
    for path in (ROOT / "workbench" / room).rglob("*.py"):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        targets = [target.split(".") for target in imports(ast.parse(path.read_text()), package)]
        found |= {parts[1] for parts in targets if parts[0] == "workbench" and len(parts) > 1 and parts[1] in FLOORS}
    assert found - {room} == table()[room][1]


def test_every_file_that_the_architecture_page_names_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:workbench|app|analyses|tests|benchmarks)/[\w/.]*)`", text)
    paths = [name.replace("NAME.py", "").replace("NAME/", "") for name in named]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_nothing_imports_in_a_circle() -> None:
    assert circles() == []


@pytest.mark.parametrize(
    "path", [path for path in sources() if path.name == "__init__.py" and not _name(path).startswith("app/")], ids=_name
)
def test_init_defines_nothing(path: Path) -> None:
    """The folders of `app/` are pages, whose `__init__` states what the navigation needs."""
    for node in ast.walk(ast.parse(path.read_text())):
        face = path.parent.name == "workbench" and ast.unparse(node).startswith("__getattr__, ")
        assert face or not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.Assign | ast.AnnAssign), (
            f"{path} defines something: {ast.unparse(node)}"
        )


def test_face_offers_the_contract_and_the_rooms() -> None:
    import workbench

    assert dir(workbench) == sorted(workbench.__all__) == sorted({*workbench.__all__})
    assert set(FLOORS) <= set(workbench.__all__)
    for name in workbench.__all__:
        assert hasattr(workbench, name), name


@pytest.mark.parametrize("room", sorted(FLOORS))
def test_no_name_of_a_room_lies_beside_it(room: str) -> None:
    """What a room offers is its own, so that every name has one home."""
    for node in ast.parse((ROOT / "workbench" / room / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert str(node.module).startswith(f"workbench.{room}."), ast.unparse(node)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("workbench/core/files.py", "import workbench.model"),
        ("workbench/core/files.py", "from workbench import figures, model"),
        ("workbench/model/edits.py", "from workbench.dictionaries.features import Feature"),
        ("workbench/model/edits.py", "def late():\n    from workbench.harvest import Store"),
        ("workbench/model/edits.py", "from workbench.corpus import Corpus"),
        ("workbench/model/network.py", "import workbench as wb"),
        ("workbench/model/network.py", "from .. import interventions"),
        ("workbench/model/network.py", "from workbench.core.files import _exchange"),
        ("workbench/dictionaries/neurons.py", "from workbench.harvest import Store"),
        ("workbench/interventions/kinds/steer.py", "from workbench.training import train"),
        ("workbench/neurons/unembedding.py", "from workbench.measures.comparison import compare"),
        ("workbench/surgery/bake/bake.py", "from workbench.circuits.tasks import Task"),
        ("workbench/surgery/child.py", "from workbench.interventions.kinds.steer import _marked"),
        ("workbench/measures/comparison.py", "import app.main"),
        ("workbench/model/language_model.py", "import transformer_lens"),
        ("workbench/figures/common.py", "import streamlit"),
        ("workbench/neurons/unembedding.py", "import plotly.express as px"),
        ("app/main.py", "import plotly"),
        ("app/main.py", "import transformer_lens.utils"),
        ("app/main.py", "import pickle"),
        ("app/main.py", "from workbench.model.weights import _building"),
        ("workbench/model/weights.py", "import torch\ntorch.load('x', weights_only=True)"),
        ("workbench/core/torch_files.py", "import torch\ntorch.load('x')"),
        ("workbench/model/weights.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    ],
)
def test_a_climbing_staircase_is_seen(name: str, source: str) -> None:
    assert complaints(name, source) != []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("workbench/model/language_model.py", "from workbench.model.network import Network"),
        ("workbench/corpus/corpus.py", "from workbench.core.files import replacing"),
        ("workbench/dictionaries/neurons.py", "from workbench.dictionaries.protocol import Codes"),
        ("workbench/dictionaries/neurons.py", "from workbench.model.hookpoints import HookPoint\nimport torch"),
        ("workbench/measures/fidelity.py", "from workbench.interventions.opening import load_model"),
        ("workbench/model/network.py", "import transformer_lens"),
        ("workbench/surgery/bake/bake.py", "from workbench.surgery.child import Child"),
        ("analyses/neurons.py", "import plotly\nimport workbench as wb\nfrom workbench.neurons import decode_neurons"),
        ("app/steer/page.py", "import streamlit as st\nimport workbench as wb\nfrom shared import session"),
    ],
)
def test_stairs_down_are_free(name: str, source: str) -> None:
    assert complaints(name, source) == []
