"""The app keeps a bounded number of models and tables, and *Settings* shows and empties what is kept."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import tiny
from pages import quiet, start, switch, words

import workbench as wb
from workbench.core.cache import cache_parts


def test_settings_shows_and_empties_the_cache(own_cache: Path, tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    import caching

    caching.let_go()  # tables that an earlier test decoded
    page = quiet(switch(quiet(start(tmp_path / "m")), "settings"))
    assert {part.name for part in cache_parts() if part.entries} == {"decodings", "hook_points"}
    assert "**Decodings**" in words(page)
    page = quiet(page.button(key="empty decodings").click().run())
    assert {part.name for part in cache_parts() if part.entries} == {"hook_points"}
    assert page.button(key="empty decodings").disabled
    assert caching.held()["tables of decoded neurons"][0] > 0
    quiet(page.button(key="let go").click().run())
    assert caching.held()["tables of decoded neurons"][0] == 0
    assert caching.held()["open models"][0] == 1  # the one that the page shows


def test_a_bounded_number_of_jobs_is_kept_and_not_their_models() -> None:
    import caching

    caching.let_go()
    made = []

    def work(tell: object) -> object:
        made.append(Large())
        return made[-1]

    for number in range(2 * caching.KEPT["table"]):
        caching._job(("table", str(number)), work).wait(10)
        assert caching._job(("table", "0"), work).result() is made[0]  # used all the time
    alive = [weakref.ref(one) for one in made]
    made.clear()
    gc.collect()
    assert sum(one() is not None for one in alive) == caching.KEPT["table"]
    assert alive[0]() is not None
    caching.let_go()
    gc.collect()
    assert not any(one() for one in alive)


class Large:
    """A result."""


def test_an_index_that_is_kept_lets_its_model_go(tiny_cache: Path, tmp_path: Path) -> None:
    import caching

    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    sae = wb.TopKSAE(32, 24, 4, hook_point="blocks.1.hook_resid_post", name="kept")
    sae.save(tmp_path / "d")
    wb.build_index(model, sae, wb.Corpus([tiny.TEXT]), tmp_path / "d" / "index", context=16)
    index = caching.feature_index(str(tmp_path / "d"), str(tmp_path / "d"), "kept", ((1,), (1,)), model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert index.search(limit=1)


def test_visitors_from_elsewhere_empty_nothing(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared import places

    tiny.build("llama").save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    page = quiet(start(tmp_path / "m"))
    monkeypatch.setattr(places, "listens_beyond", lambda: True)
    monkeypatch.setattr("settings.page.listens_beyond", lambda: True, raising=False)
    page = switch(page, "settings")
    assert [
        one.key for one in page.button if one.key and one.key.startswith(("empty", "let")) and not one.disabled
    ] == []
    assert str(own_cache) not in words(page)
