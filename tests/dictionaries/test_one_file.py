"""A kind of dictionary is one file, and so is a foreign format: nothing else has to know of them."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.dictionaries import formats
from workbench.dictionaries.folder import WEIGHTS, DictionaryError
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.recognition import known_formats
from workbench.dictionaries.relu import StandardSAE
from workbench.dictionaries.topk import TopKSAE

ROOT = Path(__file__).parents[2]
KIND = '''
"""Sparse autoencoder whose values are the positive pre-activations times a gain."""

from typing import Annotated

from workbench.core.checks import Natural, Positive, PositiveNumber, checked
from workbench.dictionaries.activations import Activation, padded_codes
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.settings import Setting, Width
from workbench.dictionaries.sparse import entries_where


class Gain(Activation):
    resamples = True

    def __init__(self, gain: float):
        super().__init__()
        self.gain = gain

    def codes(self, pre):
        values, latents = padded_codes(pre, pre > 0)
        return values * self.gain, latents

    def entries(self, pre, unit):
        entries = entries_where(pre, pre > 0)
        entries.values = entries.pre * self.gain
        return entries

    def backward(self, entries, slopes, unit, strength):
        return super().backward(entries, slopes * self.gain, unit, strength)

    def settings(self):
        return {"gain": self.gain}


class GainSAE(SparseCoder):
    """Sparse autoencoder with a gain."""

    kind = "gain"
    also_called = ("amplified",)

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        gain: Annotated[PositiveNumber, Setting("Gain", "Factor of the values.")] = 1.0,
        *,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        super().__init__(d_in, width, Gain(gain), reads=hook_point, writes=hook_point, name=name, seed=seed)
'''
USE = """
import json, sys
from pathlib import Path
import gain_kind
import pytest
import workbench as wb
from workbench.dictionaries import Dictionary

folder = Path(sys.argv[1])
assert Dictionary.kinds["gain"] is gain_kind.GainSAE
assert [field.title for field in gain_kind.GainSAE.fields()] == ["Latents", "Gain"]
opened = wb.load_dictionary(folder)
assert type(opened) is gain_kind.GainSAE
config = json.loads((folder / "cfg.json").read_text())
del config["workbench"]
(folder / "cfg.json").write_text(json.dumps(config | {"architecture": "amplified"}))
with pytest.raises(wb.WorkbenchError, match="does not say gain"):
    wb.load_dictionary(folder)
(folder / "cfg.json").write_text(json.dumps(config | {"architecture": "amplified", "gain": 2.0}))
again = wb.load_dictionary(folder)
assert again.hash == opened.hash and again.activation.gain == 2.0
print("opened", opened.hash)
root = Path(sys.argv[2]) / "tests"
over_kinds = [one for one in root.glob("dictionaries/test_*.py") if "Dictionary.kinds" in one.read_text()]
tests = [str(one) for one in sorted(over_kinds) if one.name != "test_one_file.py"]
tests += [str(root / one) for one in ("laws/test_dictionary_laws.py", "training/test_training.py")]
passed = []


class Count:
    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            passed.append(report.nodeid)


ended = pytest.main(["-q", "-k", "gain", "-p", "no:cacheprovider", *tests], plugins=[Count()])
print("passed", len(passed))
sys.exit(int(ended))
"""


def test_a_kind_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry, the loader, the trainer and the law tests know a kind once its file is imported."""
    (tmp_path / "gain_kind.py").write_text(KIND)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Dictionary, "kinds", dict(Dictionary.kinds))
    kind: Any = importlib.import_module("gain_kind").GainSAE
    monkeypatch.delitem(sys.modules, "gain_kind")
    assert Dictionary.kinds["gain"] is kind
    saved = kind(8, 24, gain=2.0, hook_point="blocks.0.hook_resid_post")
    saved.save(tmp_path / "saved")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "saved"), str(ROOT)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
    assert f"opened {saved.hash}" in ended.stdout
    assert int(ended.stdout.split()[-1]) >= 25, ended.stdout


FORMAT = '''
"""Dictionaries as lines of text: hook point, k, then the decoder's rows."""

import torch

from workbench.dictionaries.topk import TopKSAE


TITLE = "lines of text"
FILES = ("dictionary.txt",)


def matches(path):
    return (path / "dictionary.txt").is_file()


def parts(path):
    names = (path / "dictionary.txt").read_text().split()
    return [path / one for one in names[1:]] if names[0] == "set" else []


def read(path):
    point, k, *lines = (path / "dictionary.txt").read_text().splitlines()
    rows = torch.tensor([[float(number) for number in line.split()] for line in lines])
    sae = TopKSAE(rows.shape[1], rows.shape[0], int(k), hook_point=point)
    sae.W_dec.copy_(rows)
    return sae
'''


def test_a_format_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "lines_of_text.py").write_text(FORMAT)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "dictionary.txt").write_text("blocks.0.hook_resid_post\n2\n1 0\n0 1\n3 4\n")
    sentence = r"foreign is not a dictionary of .*SAELens.*: it holds dictionary\.txt\.$"
    with pytest.raises(DictionaryError, match=sentence):
        load_dictionary(tmp_path / "foreign")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "code")])
    opened = load_dictionary(tmp_path / "foreign")
    assert isinstance(opened, TopKSAE)
    assert (opened.name, opened.reads) == (str(tmp_path / "foreign"), "blocks.0.hook_resid_post")
    assert opened.W_dec.tolist() == [[1, 0], [0, 1], [3, 4]]
    (tmp_path / "foreign" / "dictionary.txt").write_text("blocks.0.hook_resid_post\nmany\n1 0\n")
    with pytest.raises(DictionaryError, match=r"foreign can't be used: invalid literal") as caught:
        load_dictionary(tmp_path / "foreign")
    assert str(caught.value).count(".\n") == 0
    for names, sentence in (("a b", "holds 2 dictionaries, a and b; give the path of one"), ("a", "There is no .*/a")):
        (tmp_path / "foreign" / "dictionary.txt").write_text(f"set {names}")
        with pytest.raises(DictionaryError, match=sentence):
            load_dictionary(tmp_path / "foreign")
    TopKSAE(8, 16, 2).save(tmp_path / "foreign")
    with pytest.raises(DictionaryError, match="foreign could be a dictionary of lines of text or SAELens; put the"):
        load_dictionary(tmp_path / "foreign")
    TopKSAE(8, 16, 2).save(tmp_path / "ours")
    (tmp_path / "ours" / WEIGHTS).rename(tmp_path / "ours" / "x")
    sentence = r"it holds cfg\.json and x, and for SAELens it has no sae_weights\.safetensors"
    with pytest.raises(DictionaryError, match=sentence):
        load_dictionary(tmp_path / "ours")
    (tmp_path / "ours" / "x").rename(tmp_path / "ours" / WEIGHTS)
    assert load_dictionary(tmp_path / "ours").name == str(tmp_path / "ours")
    monkeypatch.delitem(sys.modules, f"{formats.__name__}.lines_of_text")


def test_one_format_matches_a_folder() -> None:
    for folder in sorted((ROOT / "tests" / "fixtures" / "saelens").iterdir()):
        assert [one.__name__.rpartition(".")[2] for one in known_formats() if one.matches(folder)] == ["saelens"]


def files_with(room: Path, wanted: str) -> dict[str, set[str]]:
    """Modules of a folder in which a class has the attribute `wanted`, with the modules that each imports."""
    found = {}
    for path in room.glob("*.py"):
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        named = [
            target.id
            for one in classes
            for node in one.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        if wanted in named:
            imports = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            found[f"workbench.dictionaries.{path.stem}"] = imports
    return found


def test_kinds_do_not_import_each_other() -> None:
    kinds = files_with(ROOT / "workbench" / "dictionaries", "kind")
    assert {f"workbench.dictionaries.{name}" for name in ("topk", "codebook", "neurons", "key_value")} <= kinds.keys()
    for name, imports in kinds.items():
        assert not imports & kinds.keys() - {name}, name


def test_shared_files_and_formats_import_no_kind() -> None:
    room = ROOT / "workbench" / "dictionaries"
    kinds = files_with(room, "kind").keys()
    for path in (*room.glob("*.py"), *(room / "formats").glob("*.py")):
        if f"workbench.dictionaries.{path.stem}" not in kinds and path.name != "__init__.py":
            tree = ast.parse(path.read_text())
            imports = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not imports & kinds, path.name


def test_kinds_by_other_names() -> None:
    assert Dictionary.kind_called("relu") is StandardSAE
    with pytest.raises(DictionaryError, match=r"kind 'mine', .* it knows batchtopk"):
        Dictionary.kind_called("mine")


def test_the_page_of_formats_has_a_row_for_each() -> None:
    lines = (ROOT / "docs" / "formats.md").read_text().partition("## Formats")[2].partition("##")[0].splitlines()
    rows = {cells[0]: cells for line in lines if len(cells := line.strip("| ").split(" | ")) == 4}
    for one in known_formats():
        assert one.FILES, one.TITLE
        assert one.TITLE in rows, f"docs/formats.md has no row of {one.TITLE}"
        assert (rows[one.TITLE][2] == "yes") == ("write" in vars(one)), one.TITLE
        assert any(letter.isdigit() for letter in rows[one.TITLE][3]), f"{one.TITLE}: against which version?"
