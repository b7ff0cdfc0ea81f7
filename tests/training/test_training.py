"""Training: stopped, killed or shared among processes, it ends with the same weights; what can't work is refused."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchrun_forks import forked_as_by_torchrun

import workbench as wb
from workbench.core import products
from workbench.core.hashing import fingerprint
from workbench.dictionaries.protocol import Dictionary
from workbench.harvest import Activations, process_shard
from workbench.training import ramp, read_history

TEXTS = [f"Story {number}. " + "The dog ran to the river. " * (number % 7 + 1) for number in range(40)]
POINT = "blocks.1.hook_resid_post"
KINDS = sorted(
    (k for k in Dictionary.kinds.values() if issubclass(k, wb.dictionaries.Trainable)), key=lambda kind: kind.kind
)
SMALL: dict[str, Any] = {"batch_size": 64, "block": 256, "dead_after": 500, "lr": 3e-3}


class Synthetic:
    """A source without end: sparse mixtures of directions, the same for the same place.

    Args:
        part: `(rank, count)`: of each batch of 64, this process gets the `rank`-th part.
        end: no more than so many rows.
    """

    def __init__(self, part: tuple[int, int] = (0, 1), end: int | None = None, seed: int = 0, scale: float = 1.0):
        self.part, self.end, self.seed, self.scale = part, end, seed, scale
        chance = torch.Generator().manual_seed(4711 + seed)  # not a dictionary's seed, whose rows would be the same
        self.directions = torch.nn.functional.normalize(torch.randn(24, 8, generator=chance), dim=1)
        self.read = torch.randn(8, 8, generator=chance)

    def run(self, skip: int = 0) -> Iterator[Activations]:
        rank, count = self.part
        size = 64 // count
        number, rest = divmod(skip, size)
        while self.end is None or number * size < self.end:
            chance = torch.Generator().manual_seed(self.seed * 1000 + number)
            amounts = torch.rand(64, 24, generator=chance) * (torch.rand(64, 24, generator=chance) < 0.08)
            x = ((amounts @ self.directions + 0.3) * self.scale)[rank * size : (rank + 1) * size]
            rows = torch.arange(size)
            both = {"in": x, "out": x @ self.read}
            parts = {f"{name}.{n}": one for name, z in both.items() for n, one in enumerate(z.chunk(2, 1))}
            yield Activations(both | parts, rows, rows, rows)[rest:]
            number, rest = number + 1, 0

    def settings(self) -> dict[str, Any]:
        return {"model": "synthetic", "seed": self.seed, "end": self.end}


def trained(
    kind: type[wb.dictionaries.Trainable] = wb.TopKSAE, tokens: int = 2560, **how: Any
) -> wb.dictionaries.Trainable:
    """A small dictionary after 40 steps on synthetic activations."""
    reads, writes = ("in.0 + in.1", "out.0 + out.1") if kind.across else ("in", "out")
    target = writes if kind.transcodes else ""
    how = SMALL | {"source": Synthetic()} | how
    return wb.train(kind.example(), hook_point=reads, target=target, tokens=tokens, **how)


def after(calls: int) -> Any:
    """A `cancel` that says yes after so many questions."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are made in the order that one thread makes them; with more threads the last bits are others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def corpus() -> wb.Corpus:
    return wb.Corpus(TEXTS, "forty")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_kind_learns_and_goes_on_where_it_was_stopped(
    kind: type[wb.dictionaries.Trainable], tmp_path: Path
) -> None:
    whole = trained(kind, folder=tmp_path / "whole")
    history = read_history(tmp_path / "whole")
    assert history[-1]["fvu"] < history[0]["fvu"]
    assert [line["step"] for line in history] == list(range(1, 41))
    for calls in (7, 60, 37):
        trained(kind, folder=tmp_path / "parts", cancel=after(calls))
    parts = trained(kind, folder=tmp_path / "parts")
    assert parts.hash == whole.hash
    assert (parts.unit_in, parts.unit_out) == (whole.unit_in, whole.unit_out)
    timing = ("seconds", "tokens_per_second")
    plain = [{name: value for name, value in line.items() if name not in timing} for line in history]
    resumed = read_history(tmp_path / "parts")
    assert [{name: value for name, value in line.items() if name not in timing} for line in resumed] == plain
    assert all(one["seconds"] < other["seconds"] for one, other in itertools.pairwise(resumed))


def test_dead_latents_are_counted_and_resampled(tmp_path: Path) -> None:
    class Watched(wb.dictionaries.StandardSAE):
        revived = 0

        def resample(self, *arguments: Any, **how: Any) -> int:
            self.revived += super().resample(*arguments, **how)
            return self.revived

    sae = Watched(8, 24)
    sae.b_enc[:6] = -100.0
    sae.unit_out = sae.unit_in = 0.5
    how = SMALL | {"source": Synthetic(), "hook_point": "in", "fresh": False}
    wb.train(sae, tokens=4096, folder=tmp_path, **how)
    assert sae.revived >= 6
    dead = {line["tokens"]: line["dead"] for line in read_history(tmp_path)}
    assert dead[448] == 0  # nothing is dead before so many tokens have passed
    assert dead[512] == 0 or dead[512] >= 6 / 24
    assert dead[4096] < 6 / 24


def test_the_contract(llama: wb.model.LanguageModel, corpus: wb.Corpus, tmp_path: Path) -> None:
    sae = wb.TopKSAE(d_in=32, width=64, k=4)
    said: list[tuple[float, str]] = []
    lines: list[Any] = []
    how = {"batch_size": 128, "block": 512, "context": 24, "lr": 3e-3}
    made = wb.train(
        sae, llama, POINT, corpus, tokens=6000, progress=lambda *word: said.append(word), log=lines.append, **how
    )
    assert made is sae
    assert corpus.count_tokens(llama) < 6000  # more than one time through the texts
    assert lines[-1]["tokens"] == 6016
    assert lines[-1]["fvu"] < 0.5 * lines[0]["fvu"]
    assert {"loss", "fvu", "l0", "dead", "seconds", "tokens_per_second", "lr", "gradient"} <= lines[0].keys()
    assert said[-1][0] == 1.0
    assert "left" in said[-2][1]
    assert (sae.reads, sae.writes) == (POINT, POINT)
    record = sae.provenance
    assert (record["model_hash"], record["corpus_hash"]) == (llama.hash, corpus.hash)
    assert {"versions", "command", "seed", "settings", "model_name", "tokens"} <= record.keys()
    again = wb.train(wb.TopKSAE(d_in=32, width=64, k=4), llama, POINT, corpus, tokens=6000, **how)
    assert again.hash == sae.hash
    other = wb.train(wb.TopKSAE(d_in=32, width=64, k=4), llama, POINT, corpus, tokens=6000, seed=1, **how)
    assert other.hash != sae.hash
    sae.save(tmp_path / "sae")
    loaded = wb.load_dictionary(tmp_path / "sae")
    assert loaded.provenance == record
    assert isinstance(loaded, wb.TopKSAE)
    bias = loaded.b_dec.clone()
    wb.train(loaded, llama, POINT, corpus, tokens=128, **how | {"lr": 1e-9})
    torch.testing.assert_close(loaded.b_dec, bias)  # one that is trained already is not set from a sample again


def test_a_transcoder_and_a_store(llama: wb.model.LanguageModel, corpus: wb.Corpus, tmp_path: Path) -> None:
    points = ["blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out"]
    store = wb.harvest.Store.write(
        wb.harvest.Harvest(llama, corpus, points, tokens=1000), tmp_path / "store", dtype="float32"
    )
    coder = wb.dictionaries.TopKTranscoder(32, 64, k=8)
    lines: list[Any] = []
    wb.train(coder, source=store, hook_point=points[0], target=points[1], tokens=4096, log=lines.append, **SMALL)
    assert lines[-1]["fvu"] < 0.8 * lines[0]["fvu"]
    assert (coder.reads, coder.writes) == tuple(points)
    assert coder.provenance["model_hash"] == llama.hash
    same = wb.dictionaries.TopKTranscoder(32, 64, k=8, reads=points[0], writes=points[1])
    wb.train(same, llama, corpus=corpus, tokens=256, **SMALL)
    assert same.provenance["tokens"] == 256


def test_schedules_in_closed_form() -> None:
    shares = [ramp(step, 100, 0.1, 0.2) for step in range(100)]
    wanted = [(n + 1) / 10 for n in range(10)] + [1.0] * 70 + [(20 - n) / 20 for n in range(20)]
    assert shares == pytest.approx(wanted)
    assert [ramp(step, 10, 0, 0) for step in range(10)] == [1.0] * 10
    assert ramp(0, 1, 1, 1) == 1.0
    lines: list[Any] = []
    trained(tokens=6400, lr=1e-3, warmup=0.1, decay=0.2, log=lines.append)
    assert [line["lr"] for line in lines] == pytest.approx([1e-3 * share for share in wanted])


def test_clipping_bounds_the_gradient_in_units_of_the_activations() -> None:
    def gradients(scale: float, clip: float | None) -> list[float]:
        lines: list[Any] = []
        trained(source=Synthetic(scale=scale), clip=clip, log=lines.append, tokens=320)
        return [line["gradient"] for line in lines]

    free = gradients(1.0, None)
    assert gradients(100.0, None) == pytest.approx(free, rel=1e-3)
    assert gradients(1.0, max(free) * 1.01) == free
    assert gradients(1.0, min(free) / 2)[1:] != free[1:]


def test_without_a_folder_a_cancelled_training_returns_what_there_is() -> None:
    sae = trained(cancel=after(60))
    assert 0 < sae.provenance["tokens"] < 2560
    assert trained(cancel=lambda: True).tensors_hash == wb.TopKSAE.example().tensors_hash


# Killed


def killed_at(instant: int) -> None:
    """End this process without warning at its `instant`-th contact with the disk."""
    left = [instant]

    def wrapped(function: Any) -> Any:
        def call(*arguments: Any, **how: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **how)

        return call

    for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (shutil, "rmtree"), (os, "unlink")):
        setattr(module, name, wrapped(getattr(module, name)))


def fork_and_train(folder: Path, instant: int) -> None:
    """A training in a copy of this process, which is killed at this instant."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        signal.alarm(120)
        killed_at(instant)
        trained(wb.dictionaries.BatchTopKSAE, tokens=320, folder=folder, checkpoint_every=0.0)
    finally:
        os._exit(0)


INSTANTS = [*range(1, 70, 7), *range(72, 87, 3), 87, 88]
"""Of the 88 contacts with the disk that five steps make."""


@pytest.mark.usefixtures("one_thread")  # as the processes that are killed: forked ones can't have more
def test_killed_at_any_instant_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trained(wb.dictionaries.BatchTopKSAE, tokens=320)
    for instant in INSTANTS:
        fork_and_train(tmp_path / str(instant), instant)
    steps, ends = set(), 0
    for folder in sorted(tmp_path.iterdir(), key=lambda path: int(path.name)):
        ended = (folder / "progress.json").exists()
        found = [] if ended else sorted(folder.glob("step-*"))
        steps |= {path.name for path in found}
        ends += ended
        resumed = trained(wb.dictionaries.BatchTopKSAE, tokens=320, folder=folder)
        assert resumed.hash == whole.hash, folder.name
        assert [line["step"] for line in read_history(folder)] == list(range(1, 6))
        assert wb.load_dictionary(folder).hash == whole.hash
    assert steps == {f"step-{step:08d}" for step in range(1, 5)}
    assert ends


def test_checkpoints_of_format_2_are_continued(tmp_path: Path) -> None:
    """In that format the optimiser's state has the name `silent` for `tokens_since_fired`."""

    def begun(**how: Any) -> wb.dictionaries.StandardSAE:
        sae = wb.dictionaries.StandardSAE(8, 24)
        sae.b_enc[:6] = -100.0  # which never fire until they are resampled, after 500 tokens
        sae.unit_out = sae.unit_in = 0.5
        return wb.train(sae, tokens=1280, source=Synthetic(), hook_point="in", fresh=False, **SMALL | how)

    whole = begun()
    begun(folder=tmp_path, cancel=after(28))
    folder = next(tmp_path.glob("step-*"))
    tensors = load_file(folder / "optimiser.safetensors")
    tensors["silent"] = tensors.pop("tokens_since_fired")
    assert 0 < int(tensors["silent"].max()) <= 500
    save_file(tensors, folder / "optimiser.safetensors")
    note = json.loads((folder / "progress.json").read_text())
    assert note["format"] == 3
    note |= {"format": 2, "optimiser_sha256": fingerprint(tensors)}
    (folder / "progress.json").write_text(json.dumps(note))
    assert begun(folder=tmp_path).hash == whole.hash


def test_a_finished_training_returns_at_once(tmp_path: Path) -> None:
    sae = trained(folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cfg.json",
        "history.jsonl",
        "progress.json",
        "sae_weights.safetensors",
    ]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = trained(folder=tmp_path, cancel=lambda: pytest.fail("it works again"))
    assert again.hash == sae.hash
    assert again.provenance == sae.provenance
    assert again.name == sae.name == str(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_only_checkpoints_are_cleared(tmp_path: Path) -> None:
    mine = [tmp_path / name / "mine" for name in ("step-notes", "step-1-notes", "step-00000001-copy")]
    for note in mine:
        note.parent.mkdir(parents=True)
        note.touch()
    trained(folder=tmp_path)
    (tmp_path / "step-00000001").mkdir()  # as a process that is killed at the end leaves it
    trained(folder=tmp_path)
    assert all(note.exists() for note in mine)
    assert not (tmp_path / "step-00000001").exists()


# Several processes


SHARED = (wb.TopKSAE, wb.dictionaries.BatchTopKSAE, wb.dictionaries.StandardSAE, wb.dictionaries.TopKTranscoder)


def learn_together(folder: Path, model: wb.model.LanguageModel, corpus: wb.Corpus) -> None:
    """What each of two processes does."""
    share: dict[str, Any] = {"source": Synthetic(process_shard()), "block": 64}
    for kind in SHARED:
        trained(kind, folder=folder / kind.kind, **share)
    trained(folder=folder / "again", cancel=after(30), **share)
    trained(folder=folder / "again", **share)
    wb.train(wb.TopKSAE(32, 64, 4), model, POINT, corpus, tokens=4096, folder=folder / "model", **SMALL)


def test_two_processes_learn_what_one_does(llama: wb.model.LanguageModel, corpus: wb.Corpus, tmp_path: Path) -> None:
    forked_as_by_torchrun(lambda: learn_together(tmp_path, llama, corpus))
    for kind in SHARED:
        alone: list[Any] = []
        trained(kind, block=64, log=alone.append)
        together = read_history(tmp_path / kind.kind)
        rel = 0.1 if kind is wb.dictionaries.BatchTopKSAE else 1e-4  # half a batch has another k·batch-th value
        for name in ("loss", "l0", "lr", "dead"):
            assert [line[name] for line in together] == pytest.approx([line[name] for line in alone], rel=rel), name
        fvu = [line["fvu"] for line in alone]
        assert [line["fvu"] for line in together] == pytest.approx(fvu, rel=0.15)  # each half has its own mean
    stopped = wb.load_dictionary(tmp_path / "again").hash
    assert stopped == wb.load_dictionary(tmp_path / "topk").hash
    alone = []
    wb.train(wb.TopKSAE(32, 64, 4), llama, POINT, corpus, tokens=4096, log=alone.append, **SMALL)
    together = read_history(tmp_path / "model")
    assert together[-1]["tokens"] == alone[-1]["tokens"]
    assert mean(together[-10:], "fvu") == pytest.approx(mean(alone[-10:], "fvu"), rel=0.1)


def mean(lines: list[Any], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


# Refusals


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"tokens": 0}, "tokens is a whole number from 1, not 0"),
        ({"tokens": 1e6}, "tokens is a whole number"),
        ({"batch_size": -1}, "batch_size is a whole number"),
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"lr": float("nan")}, "lr is a number above 0 to 3e\\+38, not nan"),
        ({"lr": 0.0}, "lr is a number above 0"),
        ({"clip": -1.0}, "clip is a number above 0"),
        ({"warmup": 1.5}, "warmup is a number from 0 to 1, not 1.5"),
        ({"decay": float("nan")}, "decay is a number from 0 to 1, not nan"),
        ({"checkpoint_every": float("nan")}, "checkpoint_every is a number"),
        ({"hook_point": "middle"}, "The source holds activations at in, out.*, not at middle"),
        ({"hook_point": ""}, "Name the hook point"),
        ({"source": None}, "Give a model, a hook point and a corpus"),
        ({"source": Synthetic(end=512)}, "ends after 512 of 2,560 tokens"),
        ({"source": Synthetic(end=0)}, "ends after 0 of 2,560 tokens"),
        ({"source": Synthetic(scale=float("nan"))}, "not finite numbers"),
        ({"lr": 1e30}, "The loss is (nan|inf) in step"),
    ],
)
def test_bad_settings_are_refused(how: dict[str, Any], words: str) -> None:
    how = SMALL | {"source": Synthetic(), "hook_point": "in", "tokens": 2560} | how
    with pytest.raises(ValueError, match=words) as caught:
        wb.train(wb.TopKSAE.example(), **how)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_model_is_refused(llama: wb.model.LanguageModel, corpus: wb.Corpus) -> None:
    with pytest.raises(wb.training.TrainingError, match="hook_resid_post is 32 wide, and topk reads activations of 8"):
        wb.train(wb.TopKSAE(8, 16, 2), llama, POINT, corpus, tokens=100)
    with pytest.raises(wb.model.HookPointError, match="did you mean"):
        wb.train(wb.TopKSAE(32, 64, 2), llama, "blocks.1.hook_resid", corpus, tokens=100)
    with pytest.raises(wb.training.TrainingError, match="holds no token"):
        wb.train(wb.TopKSAE(32, 64, 2), llama, POINT, wb.Corpus(["<|end|><|user|>"]), tokens=100)
    with pytest.raises(wb.training.TrainingError, match="corpus is a Corpus, or None, not 'stories'"):
        wb.train(wb.TopKSAE(32, 64, 2), llama, POINT, "stories", tokens=100)  # type: ignore[arg-type]
    with pytest.raises(wb.training.TrainingError, match="a source, not both"):
        wb.train(wb.TopKSAE(32, 64, 2), llama, POINT, corpus, source=Synthetic(), tokens=100)
    with pytest.raises(wb.training.TrainingError, match="writes elsewhere than it reads"):
        wb.train(wb.dictionaries.TopKTranscoder(32, 64, 2), llama, POINT, corpus, tokens=100)
    with pytest.raises(wb.training.TrainingError, match=r"reads blocks\.0\.hook_resid_post, so it can't be trained at"):
        wb.train(wb.TopKSAE(32, 64, 2, hook_point="blocks.0.hook_resid_post"), llama, POINT, corpus, tokens=100)
    with pytest.raises(wb.training.TrainingError, match="can't be trained"):
        wb.train(llama, llama, POINT, corpus, tokens=100)  # type: ignore[type-var]


def test_a_folder_with_another_training_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trained(folder=folder, cancel=after(60))
    for how, words in [
        ({"lr": 1e-3}, "its lr is 0.003, not 0.001"),
        ({"tokens": 5120}, "its tokens is 2560, not 5120"),
        ({"source": Synthetic(seed=1)}, r"its source\.seed is 0, not 1"),
        ({"kind": wb.dictionaries.BatchTopKSAE}, r"its dictionary\.kind is 'topk', not 'batchtopk'"),
    ]:
        with pytest.raises(wb.training.TrainingError, match=words):
            trained(folder=folder, **how)
    with pytest.raises(wb.training.TrainingError, match="began with other weights"):
        wb.train(wb.TopKSAE(8, 24, 4, seed=5), hook_point="in", source=Synthetic(), tokens=2560, folder=folder, **SMALL)
    file = next(folder.glob("step-*")) / "optimiser.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(wb.training.TrainingError, match="not what was written"):
        trained(folder=folder)
    file.write_bytes(whole[:100])
    with pytest.raises(wb.training.TrainingError, match="can't be read"):
        trained(folder=folder)
    (file.parent / "progress.json").write_text(json.dumps({"committed": 3}))
    with pytest.raises(wb.training.TrainingError, match="not the note of a training"):
        trained(folder=folder)
    shutil.rmtree(folder)
    trained().save(folder)
    with pytest.raises(wb.training.TrainingError, match="not trained there"):
        trained(folder=folder)


def test_a_checkpoint_goes_on_in_the_form_of_product_in_which_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    used: list[str] = []
    for name, form in products.FORMS.items():
        monkeypatch.setitem(products.FORMS, name, lambda *what, name=name, form=form: used.append(name) or form(*what))
    monkeypatch.setattr("workbench.dictionaries.coder.form_of", lambda *what: "numpy")
    whole = trained(folder=tmp_path / "whole")
    trained(folder=tmp_path / "parts", cancel=after(60))
    assert set(used) == {"numpy"}
    monkeypatch.setattr("workbench.dictionaries.coder.form_of", lambda *what: "torch")  # another machine chooses so
    parts = trained(folder=tmp_path / "parts", cancel=after(37))
    (note,) = (tmp_path / "parts").glob("step-*/progress.json")
    assert set(used) == {"numpy"}
    assert parts.product_form == "numpy"

    config = note.parent / "cfg.json"  # as it was before checkpoints named a form
    content = json.loads(config.read_text())
    assert content["workbench"]["provenance"].pop("product") == "numpy"
    config.write_text(json.dumps(content))
    assert trained(folder=tmp_path / "parts").product_form == "whole"
    assert whole.product_form == "numpy"
