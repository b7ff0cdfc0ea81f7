"""The comparison of transcoders and SAEs, small, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from analyses.shared import report
from analyses.transcoder_vs_sae import study as tvs
from workbench.corpus import Corpus

TEXTS = [
    f"{animal} ran to the {place} in the morning, and the {animal} was {how}."
    for animal in ("The dog", "The cat", "A mouse", "My friend")
    for place in ("river", "house", "boat")
    for how in ("small", "green")
]
PLAN = tvs.Plan(1, 48, (2, 6), (0.5,), 1024, 512, 200, 0, batch_size=128, context=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def results(zoo, folder: Path) -> dict[str, Any]:
    return tvs.experiment(zoo["llama"], Corpus(TEXTS), PLAN, folder)


def test_each_dictionary_is_trained_and_measured_on_held_out_texts(zoo, folder: Path, results: dict[str, Any]) -> None:
    names = [row["name"] for row in results["rows"]]
    assert names == ["transcoder k=2", "SAE k=2", "transcoder k=6", "SAE k=6", "transcoder l1=0.5", "SAE l1=0.5"]
    assert all(row["l0"] <= 6 for row in results["rows"][:4])
    _, held_out = Corpus(TEXTS).split(tvs.HELD_OUT, PLAN.seed)
    for row in results["rows"]:
        dictionary = wb.load_dictionary(
            folder / "work" / row["name"].replace("SAE", "sae").replace(" k=", "-k").replace(" l1=", "-l1-")
        )
        assert dictionary.hash == row["hash"]
        found = wb.measure_fidelity(zoo["llama"], dictionary, held_out, tokens=PLAN.measured, context=PLAN.context)
        assert found.to_dict() == {key: row[key] for key in found.to_dict()}


def test_a_second_run_makes_nothing_anew(zoo, folder: Path, results: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setattr(tvs, "measure_fidelities", lambda *_, **__: pytest.fail("measured again"))
    again = tvs.experiment(zoo["llama"], Corpus(TEXTS), PLAN, folder)
    assert again["rows"] == results["rows"]


def test_pairs_count_as_apart_only_where_their_intervals_are() -> None:
    def row(kind: str, value: float, half: float) -> dict[str, Any]:
        own = {"kind": kind, "sparsity": "k=2", "l0": 2.0, "ce_spliced": 1.0, "loss_recovered": value}
        return own | {"intervals": {"loss_recovered": [value - half, value + half]}}

    for half, better in ((0.01, "transcoder"), (0.2, "")):
        (found,) = tvs.compare_pairs([row("transcoder", 0.9, half), row("SAE", 0.8, half)])
        assert found["better"] == better


def test_page_and_summary(folder: Path, results: dict[str, Any]) -> None:
    said = tvs.write_page(folder, results).read_text()
    assert "transcoder l1=0.5" in said
    assert {path.stem for path in folder.glob("*.json")} >= {"ce", "loss_recovered", "kl", "fvu", "density"}
    report.write_json(folder / "summary.json", tvs.summary(results))
    assert len(json.loads((folder / "summary.json").read_text())["rows"]) == 6
