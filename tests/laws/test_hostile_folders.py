"""Opening a folder or file of a stranger runs no code, fetches nothing and reads nothing outside of it.

What is opened comes through the public loaders, in a fork that may use the network and would answer yes to a question.
The suite tries every attack of `HOSTILE` and those on the files of a seeded sample of what is saved; `make torture`
tries all files.
"""

from __future__ import annotations

import ast
import os
import pickle
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers.dynamic_module_utils
from fuzz_examples import World
from fuzz_files import KEPT
from fuzz_values import parameters
from hostile_folders import HOSTILE, Payload, Place, attacks_on_files, good_model, secrets
from safetensors import safe_open
from test_floors import sources
from test_fuzz_arguments import callable_of, public_functions, public_methods
from watched_forks import watched

import workbench as wb
from workbench.surgery.certificate.check import SCRIPT

pytestmark = pytest.mark.usefixtures("tiny_cache")

WHOLE = bool(os.environ.get("WORKBENCH_TORTURE")) or os.environ.get("WORKBENCH_FUZZ") == "0"
SEED = int(os.environ.get("WORKBENCH_FUZZ_SEED", "0"))
SAMPLE = 5
"""Kinds of things whose files the suite attacks."""
SLOW = {"training", "fine-tuning", "model with dictionaries"}
"""Not in the sample."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(scope="module")
def secret(world: World, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside") / "secret"
    folder.mkdir()
    secrets(world, base, folder)
    return folder


@pytest.fixture
def place(world: World, base: Path, secret: Path, tmp_path: Path) -> Place:
    (tmp_path / "stranger").mkdir()
    (tmp_path / "secret").symlink_to(secret)
    return Place(world, tmp_path / "stranger", secret, tmp_path / "marker", base)


def test_every_attack_fails(world: World, base: Path, secret: Path, tmp_path: Path) -> None:
    works = []
    for number, one in enumerate(HOSTILE):
        folder = tmp_path / str(number) / "stranger"
        folder.mkdir(parents=True)
        (folder.parent / "secret").symlink_to(secret)
        works.append((one.name, one.plant(Place(world, folder, secret, tmp_path / "marker", base))))
    reports = watched(works, secret, tmp_path / "marker")
    assert len(reports) == len(HOSTILE)
    assert not [report.wrong for report in reports if report.wrong]
    for one, report in zip(HOSTILE, reports, strict=True):
        assert not one.refused or (report.ending == "refused" and one.refused in report.words), report


def sampled() -> list[str]:
    quick = sorted(KEPT.keys() - SLOW)
    return sorted(KEPT) if WHOLE else sorted(random.Random(SEED).sample(quick, SAMPLE))


@pytest.mark.parametrize("name", sampled())
def test_a_link_is_refused_and_a_pickle_is_nothing(name: str, place: Place) -> None:
    attacks = list(attacks_on_files(name, place))
    reports = watched([attack[:2] for attack in attacks], place.secret, place.marker)
    assert len(reports) == len(attacks)
    assert not [report.wrong for report in reports if report.wrong]
    for (_, _, must), report in zip(attacks, reports, strict=True):
        assert not must or report.ending == "refused", report


def test_what_is_watched_is_seen(secret: Path, tmp_path: Path) -> None:
    """The watch itself: each thing that is forbidden, done on purpose."""
    marker = tmp_path / "marker"
    address = ("127.0.0.1", 9)
    works: list[tuple[str, Any]] = [
        ("open", (secret / "secret.txt").read_text),
        ("opened", lambda: safe_open(secret / "model" / "model.safetensors", "pt")),
        ("socket.connect", lambda: socket.create_connection(address, 1)),
        ("pickle.find_class", lambda: pickle.loads(pickle.dumps(Payload(str(marker))))),  # noqa: S301 - what is watched for
        ("code of the file ran", marker.touch),
        ("builtins.input", input),
        ("subprocess.Popen", lambda: os.popen("true").read()),
        ("", lambda: 1),
    ]
    for (word, _), report in zip(works, watched(works, secret, marker), strict=True):
        assert (word in report.wrong) if word else not report.wrong, report


def test_a_person_may_allow_code(place: Place) -> None:
    """In Python, by an argument; the code of the folder then makes the model."""
    folder = place.model(auto_map={"AutoConfig": "own_code.C", "AutoModelForCausalLM": "own_code.M"})
    place.code(folder, "own_code")

    def allow() -> None:
        transformers.dynamic_module_utils.HF_MODULES_CACHE = str(place.folder / "modules")
        opened = wb.load_model(folder, trust_remote_code=True)
        assert type(opened.network.module).__name__ == "M"
        assert opened.hash == wb.load_model(place.base).hash

    (report,) = watched([("allowed", allow)], place.secret, place.marker)
    assert (report.ending, report.events) == ("opened", ["code of the file ran"])


# ---- nothing is left out

EXEMPT = {
    "save_model save_graph save_task save_interventions save_sparsities export_labels Corpus.save TopKSAE.save"
    " save_viewer_graph Direction.save export_features build_from_export TunedLens.save JacobianLens.save "
    "TopKSAE.write Child.save_pretrained": "write, see `test_kills.py`",
    "fit_jacobian_lens": "goes on with one file of safetensors under a seal: `tests/lens/test_jacobian.py`",
    "compare_models": "opens models by `load_model`",
    "explain_with Notebook search_direction": "go on with JSON in a declared form: `tests/labels/`, `tests/steering/`",
    "train build_index build_indexes fine_tune heal fit_tuned_lens Store.write": "resume what is in a folder: attacked "
    "as `training`, `fine-tuning`, `lens`, `index` and `store`",
}
"""Public functions with a path that open nothing of a stranger's in a way of their own, and why."""
OPENS = {
    "load_model verify_checkpoint dare merge open_child load_dictionary load_set open_index Store Corpus.load",
    "load_viewer_graph load_direction load_lens open_export load_graph load_task load_interventions import_labels",
    "read_history",
}
"""Loaders that are attacked above."""


def _takes_a_path(form: Any) -> bool:
    return "Path" in str(form)


def loaders(world: World) -> Iterator[str]:
    """The public functions and methods with an argument that is a path."""
    for key in {**public_functions(), **public_methods()}:
        if any(_takes_a_path(form) for _, form in parameters(callable_of(key, world))):
            yield key


def test_every_loader_is_attacked(world: World) -> None:
    known = {name for names in (*OPENS, *EXEMPT) for name in names.split()}
    found = set(loaders(world))
    left = {key for key in found if not known & {key, key.split(".")[-1]}}
    assert not left, f"Attack each in hostile_folders.py, or say why not: {sorted(left)}"
    assert not {name for name in known if not any(name in (key, key.split(".")[-1]) for key in found)}


def test_models_are_opened_without_code_and_from_safetensors() -> None:
    """Every call of the product that opens something by transformers says so itself."""
    opening = {file: text for file in sources() if "from_pretrained" in (text := file.read_text())}
    wrong = []
    for file, text in opening.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr == "from_pretrained" and ast.unparse(node.args[0]) != "None":
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                kind = ast.unparse(node.func.value)
                if kind.startswith("Auto") and said.get("trust_remote_code") not in ("False", "trust_remote_code"):
                    wrong.append(f"{file.name}: {kind} may run code")
                if "ForCausalLM" in kind and said.get("use_safetensors") != "True":
                    wrong.append(f"{file.name}: {kind} may unpickle")
    assert len(opening) >= 4
    assert wrong == []
    for words in ('"trust_remote_code": False', '"use_safetensors": True', '"local_files_only": True', "**safe)"):
        assert words in SCRIPT
    assert not [file.name for file in sources() if "app" in file.parts and "trust_remote_code" in file.read_text()]
