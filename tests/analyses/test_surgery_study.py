"""The analysis of surgery on a tiny model: all of it runs, goes on where it stopped, and judges by its rules."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import workbench as wb
from analyses.shared.report import Notes
from analyses.surgery import claims as surgery_claims
from analyses.surgery import skipping
from analyses.surgery import study as surgery
from analyses.surgery import tasks as surgery_tasks
from analyses.surgery.bench import Bench
from analyses.surgery.page import write_page
from analyses.surgery.plan import SMALLEST

pytestmark = pytest.mark.usefixtures("tiny_cache")

PLAN = dataclasses.replace(SMALLEST, more_splits=(2,), searches=2)


@pytest.fixture(scope="module")
def done(zoo, _tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("surgery")
    real = wb.Corpus([f"{line} {number}" for number in range(4) for line in tiny.TEXT.strip().split("\n")])
    before = pytest.MonkeyPatch()
    before.setenv("WORKBENCH_CACHE", str(_tiny_cache))
    # three key and value heads, as the default model has
    module = tiny.build("llama", num_attention_heads=6, num_key_value_heads=3, hidden_size=48, head_dim=8)
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    results = surgery.experiment(model, real, PLAN, folder)
    notes = (folder / "work" / "notes.jsonl").read_text()
    again = surgery.experiment(model, real, PLAN, folder)
    assert (folder / "work" / "notes.jsonl").read_text() == notes  # nothing was measured twice
    assert json.dumps(again, sort_keys=True) == json.dumps(results, sort_keys=True)
    before.undo()
    return results, folder


def test_every_operation_is_in_the_table(done: tuple[dict[str, Any], Path]) -> None:
    results, folder = done
    operations = {row["operation"] for row in results["rows"]}
    assert operations == {"skip sublayers", "skip layers", "prune", "round", "join heads", "swap activation"}
    assert all(row["kl_articles"] > 0 and row["perplexity_stories"] > 1 for row in results["rows"])
    central = [row for row in results["rows"] if row.get("share") == 0.2 and row["operation"] == "skip sublayers"]
    assert {row["method"] for row in central} == {"evopress", "greedy", "ranked", "uniform"}
    assert all(len(row["skipped"]) == 1 for row in central)
    # on each choice of halves: for each number of positions a greedy search and EvoPress twice, and scores of single
    # parts; a uniform one on the first
    assert [row["halves"] for row in central] == [1] * 7 + [2] * 7 + [1]
    assert [row["passes"] for row in central[:7]] == [300] * 3 + [400] * 3 + [300]
    assert set(results["experts"]) == {"code", "list", "all"}
    assert set(results["labels"]) == {"no layer", "first half", "last half", "all layers"}
    assert [(one["p"], one["rescale"]) for one in results["dare"]["drops"]] == [
        (0.0, True),
        *[(0.9, True)] * 2,
        *[(0.9, False)] * 2,
    ]
    assert results["dare"]["drops"][0]["accuracy"] == results["dare"]["tuned"]  # nothing dropped
    text = write_page(folder, results).read_text()
    assert len(surgery_claims.claims(results)) == 13
    for row in results["rows"]:
        assert row["setting"].replace("→", "") in text.replace("→", "")
    assert (folder / "skipping.json").exists()
    assert (folder / "dare.json").exists()


def test_evopress_may_run_what_the_greedy_search_took(zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo["llama"]
    real = wb.Corpus([f"{line} {number}" for number in range(4) for line in tiny.TEXT.strip().split("\n")])
    took, asked, search = [], [], skipping.search

    def spied(*args: Any, passes: int, **how: Any) -> Any:
        found = search(*args, passes=passes, **how)
        if args[3] == "greedy":
            took.append(found.token_forwards)
        elif args[3] == "evopress" and len(took) > len(asked):
            asked.append(passes)
        return found

    monkeypatch.setattr(skipping, "search", spied)
    plan = dataclasses.replace(PLAN, searches=1)
    bench = Bench(model, real, plan, Notes(tmp_path / "notes.jsonl", ["once"]))
    skipping.skipping(bench)
    assert asked == took
    assert len(took) == 4
    assert took[0] < took[1]


def test_claims_are_judged_by_their_rules(done: tuple[dict[str, Any], Path]) -> None:
    results = json.loads(json.dumps(done[0]))

    def all_said(own: float, other: tuple[float, float] | None, seen: float, at: int = 400) -> list[Any]:
        """The claims of skipping.

        EvoPress's KL is `own` and rivals' 1, on other halves these two, and on what is searched on `seen`; where it
        may not run `at` positions it is 0.99.
        """
        for row in results["rows"]:
            row["kl_articles"] = row["kl_many"] = row["kl_seen"] = 1.0
            if row.get("method") == "evopress":
                row["kl_many"], row["kl_seen"] = (own, seen) if row["passes"] == at else (0.99, 0.99)
            if other and row.get("halves") == 2:
                row["kl_many"] = other[row["method"] != "evopress"]
        return [one for one in surgery_claims.claims(results) if one.operation == "skip sublayers"]

    def said(own: float, other: tuple[float, float] | None = None, seen: float = 0.8) -> surgery_claims.Claim:
        """Of most positions, beside a greedy search."""
        return all_said(own, other, seen)[2]

    # scores of single parts, 5% worse; then a greedy search with 300 positions, and with 400
    assert [one.holds for one in all_said(0.84, None, 0.84)] == [False, False, True]
    assert [one.holds for one in all_said(0.84, None, 0.84, at=300)] == [True, True, False]
    assert [one.holds for one in all_said(0.96, None, 0.84, at=300)] == [False, False, False]
    assert [one.rule.split(" on")[0] for one in all_said(1, None, 1)] == ["5% lower", *["15% lower"] * 2]
    assert all_said(1.01, None, 0.84, at=300)[0].here.count("(ranked 1.000)") == 4
    assert "in the mean 1% higher" in all_said(1.01, None, 0.84, at=300)[0].here
    assert not said(0.86).holds
    assert said(0.84).holds
    assert not said(0.84, seen=0.86).holds
    assert said(0.84).here.count("0.840 (greedy 1.000)") == 2
    # both are twice as high on other halves, and 10% apart
    assert not said(0.84, (1.8, 2.0)).holds
    assert "1.800 (greedy 2.000), in the mean 13% lower" in said(0.84, (1.8, 2.0)).here
    dare = results["dare"]
    for scaled, bare, holds in ((0.895, 0.5, True), (0.88, 0.5, False), (0.9, 0.895, False)):
        dare["tuned"] = 0.9
        for one in dare["drops"]:
            one["accuracy"] = scaled if one["rescale"] else bare
        assert {one.operation: one for one in surgery_claims.claims(results)}["DARE"].holds is holds


def test_naming_kinds_asks_at_the_last_token(llama: wb.model.LanguageModel) -> None:
    learn, test = surgery_tasks.kinds(("code", "list"), 12, 3, 0)
    assert not set(learn.texts) & set(test.texts)
    assert sorted(test.kinds) == ["code"] * 3 + ["list"] * 3
    question = llama.to_tokens(surgery_tasks.QUESTION, start=False)[0].tolist()
    answers = test.answers(llama)
    row = 0
    for batch in test.batches(llama, batch=2, shuffle=False):
        for ids, labels, mask in zip(batch.tokens, batch.labels, batch.mask, strict=True):
            wanted = llama.to_tokens(test.texts[row])[0, :12].tolist() + question
            assert ids[mask].tolist() == wanted
            at = (labels >= 0).nonzero()[:, 0].tolist()
            assert at == [len(wanted) - 1]
            assert int(labels[at[0]]) == answers[test.names.index(test.kinds[row])]
            row += 1
    assert row == 6
    right = 0
    for text, kind in zip(test.texts, test.kinds, strict=True):
        with torch.no_grad():
            ids = llama.to_tokens(text)[0, :12].tolist() + question
            logits = llama(torch.tensor([ids]))[0, -1]
        right += kind == test.names[int(logits[answers].argmax())]
    assert surgery_tasks.accuracy(llama, test) == right / 6
