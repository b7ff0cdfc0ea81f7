"""Builds that are killed, cancelled or combined give equal files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from index_models import HOW, contents, make_sae

import workbench as wb
from workbench.corpus import Corpus


def build_until_killed(model: wb.model.LanguageModel, corpus: Corpus, folder: Path, share: float) -> None:
    """Build in a forked process, which kills itself once more than a share of the work is done."""

    def on_progress(done: float, words: str) -> None:
        if done > share:
            for file in folder.glob("*/building/features.bin"):
                with open(file, "ab") as opened:
                    opened.write(b"work that was never committed")
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            wanted = {folder / "sae": make_sae(), folder / "neurons": "neurons.0.post"}
            wb.index.build_indexes(model, wanted, corpus, **HOW, commit_every=0.0, progress=on_progress)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_killed_build_goes_on_with_equal_results(llama, corpus: Corpus, unbroken: Path, tmp_path: Path) -> None:
    shares = (0.3, 0.92, 0.97)  # in the pass; while the first index is sorted; while the second is
    for share in shares:
        build_until_killed(llama, corpus, tmp_path / str(share), share)
        sae, neurons = tmp_path / str(share) / "sae", tmp_path / str(share) / "neurons"
        if share < 0.95:
            with pytest.raises(wb.index.FeatureIndexError, match="interrupted"):
                wb.open_index(sae)
        shares_done: list[float] = []
        wanted = {sae: make_sae(), neurons: "neurons.0.post"}
        wb.index.build_indexes(
            llama, wanted, corpus, **HOW, progress=lambda done, words, mine=shares_done: mine.append(done)
        )
        assert shares_done == sorted(shares_done)
        assert shares_done[0] > 0.25
        assert shares_done[-1] == pytest.approx(1.0)
        for path in (sae, neurons):
            assert contents(path) == contents(unbroken / path.name)
            assert not (path / "building").exists()


def test_several_at_once_are_those_built_alone(llama, corpus: Corpus, unbroken: Path, tmp_path: Path) -> None:
    wb.build_index(llama, make_sae(), corpus, tmp_path / "sae", **HOW)
    wb.build_index(llama, "neurons.0.post", corpus, tmp_path / "neurons", **HOW)
    for name in ("sae", "neurons"):
        assert contents(tmp_path / name) == contents(unbroken / name)
    before = (tmp_path / "sae" / "data" / "index.json").stat().st_mtime_ns
    wb.build_index(llama, make_sae(), corpus, tmp_path / "sae", **HOW)  # it is there already
    assert (tmp_path / "sae" / "data" / "index.json").stat().st_mtime_ns == before


def test_cancelling_and_going_on(llama, corpus: Corpus, unbroken: Path, tmp_path: Path) -> None:
    def after(times: int) -> Iterator[bool]:
        yield from [False] * times
        while True:
            yield True

    for times in (0, 4, 10):
        answers = after(times)
        with pytest.raises(wb.index.FeatureIndexError, match="cancelled"):
            wb.build_index(
                llama, make_sae(), corpus, tmp_path / "sae", **HOW, cancel=lambda answers=answers: next(answers)
            )
    wb.build_index(llama, make_sae(), corpus, tmp_path / "sae", **HOW, cancel=lambda: False)
    assert contents(tmp_path / "sae") == contents(unbroken / "sae")


def test_interventions_in_force_do_not_matter(llama, corpus: Corpus, unbroken: Path, tmp_path: Path) -> None:
    with llama.intervening([wb.Clamp(wb.Feature.parse("neurons.0.post:7"), 30.0)]):
        wb.build_index(llama, make_sae(), corpus, tmp_path / "sae", **HOW)
    assert contents(tmp_path / "sae") == contents(unbroken / "sae")
