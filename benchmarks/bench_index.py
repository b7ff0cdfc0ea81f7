"""Feature index: look-ups and searches in a large one, and the speed of building against harvesting alone.

    python benchmarks/bench_index.py [--tokens 500000] [--latents 4608] [--k 32] [--build-tokens 4096]

The large index is written by the product's own writer from random codes with skewed densities (the densest latent is
active on nine tokens of ten) on the tokens of a real corpus, so that it needs no run of the model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import Spent, medians, medians_in_turns

import workbench as wb
from workbench.corpus import Corpus
from workbench.dictionaries.codes import Codes
from workbench.harvest import Harvest
from workbench.index.layout import write_note
from workbench.index.spool import SparseSpool
from workbench.index.tokens import write_tokens
from workbench.index.writer import write_entries

POINT = "blocks.15.hook_resid_post"


def main() -> None:
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="stories")
    parser.add_argument("--tokens", type=int, default=500_000, help="0 leaves the large index out")
    parser.add_argument("--latents", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--keep", type=int, default=None)
    parser.add_argument("--build-tokens", type=int, default=4096, help="0 leaves the comparison with harvesting out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    model, corpus = wb.load_model(), Corpus.load(settings.corpus)
    with tempfile.TemporaryDirectory() as folder:
        if settings.tokens:
            look_up(synthetic(Path(folder), model, corpus, settings))
    if settings.build_tokens:
        build(model, corpus, settings)


def synthetic(
    folder: Path, model: wb.model.LanguageModel, corpus: Corpus, settings: argparse.Namespace
) -> wb.index.FeatureIndex:
    """An index of random codes on real tokens."""
    data, building = folder / "data", folder / "building"
    data.mkdir()
    building.mkdir()
    chance = np.random.default_rng(0)
    batches = list(corpus.batches(model, tokens=settings.tokens))
    columns = {
        "tokens": torch.cat([batch.tokens[batch.content] for batch in batches]),
        "texts": torch.cat([batch.texts[:, None].expand_as(batch.tokens)[batch.content] for batch in batches]),
        "positions": torch.cat([batch.positions[batch.content] for batch in batches]),
    }
    plain = {name: column.numpy().astype(np.int32) for name, column in columns.items()}
    n_tokens = len(plain["tokens"])
    spool = SparseSpool(building, settings.latents)
    files = spool.open(0)
    begun = time.perf_counter()
    for start in range(0, n_tokens, 4096):
        spool.append(random_codes(chance, min(4096, n_tokens - start), settings.latents, settings.k))
    files.commit()
    files.close()
    spooled = time.perf_counter()
    shape = (settings.latents, 10)
    relations = {name: chance.integers(0, 49152, shape).astype(np.int32) for name in ("promoted", "suppressed")}
    relations |= {f"{name}_scores": chance.random(shape, np.float32) for name in ("promoted", "suppressed")}
    relations["neighbours"] = chance.integers(0, settings.latents, (settings.latents, 8)).astype(np.int32)
    relations["neighbour_cosines"] = chance.random((settings.latents, 8), np.float32)
    write_tokens(data, plain, model, corpus, relations["promoted"], relations["suppressed"])
    about = {
        "name": "random",
        "kind": "topk",
        "hash": "0" * 64,
        "reads": POINT,
        "writes": POINT,
        "n_features": settings.latents,
    }
    harvest = {"model": model.name, "model_hash": model.hash}
    note = {"dictionary": about, "harvest": harvest, "n_tokens": n_tokens, "keep": settings.keep, "signed": False}
    write_entries(data, spool, note, relations, lambda share: None)
    write_note(data, note)
    size = sum(file.stat().st_size for file in data.iterdir())
    print(
        f"{n_tokens:,} tokens, {settings.latents:,} latents, k {settings.k}, keep {settings.keep}: {size / 1e6:.1f} MB"
    )
    took = time.perf_counter() - spooled
    rate = n_tokens / took
    print(f"  spooling random codes {spooled - begun:.1f} s, sorting and writing {took:.1f} s, {rate:,.0f} tokens/s")
    return wb.open_index(folder)


def random_codes(chance: np.random.Generator, n: int, latents: int, k: int) -> Codes:
    """Codes of `n` tokens, `[n, k]`: about k latents each, low numbers far more often than high ones."""
    drawn = np.sort((latents * chance.random((n, k + k // 2)) ** 3).astype(np.int64), axis=1)
    first = np.append(np.ones((n, 1), bool), drawn[:, 1:] != drawn[:, :-1], axis=1)
    keep = first & (chance.permuted(np.broadcast_to(np.arange(drawn.shape[1]), drawn.shape), axis=1) < k + 8)
    values = np.where(keep, chance.exponential(2.0, drawn.shape) + 0.01, 0).astype(np.float32)
    return Codes(torch.from_numpy(values), torch.from_numpy(drawn), latents)


def look_up(index: wb.index.FeatureIndex) -> None:
    """Print the times of the look-ups that a page makes."""
    active = index.statistics["active"]
    densest = np.argsort(-active)[:50].tolist()
    print(f"  densest latent: {active.max():,} tokens ({active.max() / index.n_tokens:.0%}), rarest {active.min():,}")
    some = np.random.default_rng(1).permutation(index.n_features)[:950].tolist() + densest
    measured("top 20 of a latent", [lambda i=i: index.top(i, 20) for i in some], "p99 < 5 ms")
    measured("top 20 of the densest", [lambda i=i: index.top(i, 20) for i in densest], "p99 < 5 ms")
    measured("top 20 in context", [lambda i=i: index.examples(i) for i in some[::3]], "p99 < 5 ms")
    measured("top 20 in context, the densest", [lambda i=i: index.examples(i) for i in densest], "p99 < 5 ms")
    measured("whole card", [lambda i=i: index.feature(i) for i in some[::3]], "")
    measured("whole card, the densest", [lambda i=i: index.feature(i) for i in densest], "")
    words = ["dog", "the", "river", "house", "and", "happy", "princess", "a", "ran", "tree"]
    measured("text search", [lambda word=word: index.search(word) for word in words * 3], "< 100 ms")
    index.search(regex="warm up")
    patterns = ["dog", r"the (\w)", r"\bran to", "happy", r"(?i)once upon", r"\.", "princess", r" (settings)"]
    measured("regex search", [lambda one=one: index.search(regex=one) for one in patterns], "")
    counts = {one: len(index.search(regex=one, min_recall=0)) for one in patterns[:2]}
    print(f"  found with any recall, at most 50: {counts}")


def measured(what: str, calls: list[Callable[[], object]], wanted: str) -> None:
    """Print the median and the 99th percentile of the calls' wall-clock and CPU times, after one to warm up."""
    calls[0]()
    wall, cpu = [], []
    for call in calls:
        begun, worked = time.perf_counter(), time.thread_time()
        call()
        wall.append(1e3 * (time.perf_counter() - begun))
        cpu.append(1e3 * (time.thread_time() - worked))
    shown = "   ".join(
        f"{name} p50 {np.percentile(times, 50):7.3f} p99 {np.percentile(times, 99):7.3f} ms"
        for name, times in (("wall", wall), ("CPU", cpu))
    )
    print(f"  {what:<30} {shown}" + (f"   (wanted: {wanted})" if wanted else ""))


def build(model: wb.model.LanguageModel, corpus: Corpus, settings: argparse.Namespace) -> None:
    """Print the time of building an index beside that of harvesting the same activations."""
    sae = wb.TopKSAE(model.network.d_model, settings.latents, settings.k, hook_point=POINT)
    passes: list[Spent] = []

    def harvest() -> None:
        for _ in Harvest(model, corpus, POINT, tokens=settings.build_tokens):
            pass

    def index() -> None:
        begun = Spent(time.perf_counter(), time.process_time())
        ends: list[Spent] = []

        def note_end_of_pass(share: float, words: str) -> None:
            if words.startswith("Sorting") and not ends:
                ends.append(Spent(time.perf_counter() - begun.wall, time.process_time() - begun.cpu))

        with tempfile.TemporaryDirectory() as folder:
            wb.build_index(model, sae, corpus, folder, tokens=settings.build_tokens, progress=note_end_of_pass)
        passes.extend(ends)

    spent = medians_in_turns({"harvest": harvest, "build_index": index}, settings.rounds, lambda *_: None)
    spent["pass of build_index"] = medians(passes[1:])
    sizes = f"{settings.build_tokens:,} tokens of {POINT}, {settings.latents:,} latents"
    print(f"\nBuilding on {sizes}  (wanted: at least 0.8)")
    for name, one in spent.items():
        of, of_cpu = spent["harvest"].wall / one.wall, spent["harvest"].cpu / one.cpu
        speed = f"{one.wall:6.2f} s {settings.build_tokens / one.wall:6,.0f} tokens/s   {of:.2f} of harvest's speed"
        print(f"  {name:<20} {speed}   {one.cpu:6.2f} s of CPU, {of_cpu:.2f} of harvest's")
    fixed = spent["build_index"].cpu - spent["pass of build_index"].cpu
    print(
        f"  of what comes behind the pass ({fixed:.1f} s of CPU) most does not grow with the tokens: LM head, cosines"
    )


if __name__ == "__main__":
    main()
