"""Feature index: look-ups and searches in a large one, and the speed of building against harvesting alone.

    python benchmarks/bench_index.py [--tokens 500000] [--latents 4608] [--k 32] [--build-tokens 4096]

The large index is written by the product's own writer from random codes with skewed densities (the densest latent is
active on nine tokens of ten) on the tokens of a real corpus, so that it needs no run of the model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import workbench as wb
from workbench.corpus import Corpus
from workbench.dictionaries.protocol import Codes
from workbench.harvest import Harvest
from workbench.index.finishing import write_entries
from workbench.index.layout import write_note
from workbench.index.spool import SparseSpool
from workbench.index.tokens import write_tokens

POINT = "blocks.15.hook_resid_post"


def main() -> None:
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="stories")
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--latents", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--keep", type=int, default=None)
    parser.add_argument("--build-tokens", type=int, default=4096, help="0 leaves the comparison with harvesting out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    model, corpus = wb.load_model(), Corpus.load(said.corpus)
    with tempfile.TemporaryDirectory() as folder:
        look_up(synthetic(Path(folder), model, corpus, said))
    if said.build_tokens:
        build(model, corpus, said)


def synthetic(folder: Path, model: wb.LanguageModel, corpus: Corpus, said: argparse.Namespace) -> wb.FeatureIndex:
    """An index of random codes on real tokens."""
    data, building = folder / "data", folder / "building"
    data.mkdir()
    building.mkdir()
    chance = np.random.default_rng(0)
    batches = list(corpus.batches(model, tokens=said.tokens))
    columns = {
        "tokens": torch.cat([batch.tokens[batch.content] for batch in batches]),
        "texts": torch.cat([batch.texts[:, None].expand_as(batch.tokens)[batch.content] for batch in batches]),
        "positions": torch.cat([batch.positions[batch.content] for batch in batches]),
    }
    plain = {name: column.numpy().astype(np.int32) for name, column in columns.items()}
    n_tokens = len(plain["tokens"])
    spool = SparseSpool(building, said.latents)
    files = spool.open(0)
    begun = time.perf_counter()
    for start in range(0, n_tokens, 4096):
        spool.append(random_codes(chance, min(4096, n_tokens - start), said.latents, said.k))
    files.commit()
    files.close()
    spooled = time.perf_counter()
    shape = (said.latents, 10)
    relations = {name: chance.integers(0, 49152, shape).astype(np.int32) for name in ("promoted", "suppressed")}
    relations |= {f"{name}_scores": chance.random(shape, np.float32) for name in ("promoted", "suppressed")}
    relations["neighbours"] = chance.integers(0, said.latents, (said.latents, 8)).astype(np.int32)
    relations["neighbour_cosines"] = chance.random((said.latents, 8), np.float32)
    write_tokens(data, plain, model, corpus, relations["promoted"], relations["suppressed"])
    about = {"name": "random", "kind": "topk", "hash": "0" * 64, "reads": POINT, "n_features": said.latents}
    note = {"dictionary": about, "n_tokens": n_tokens, "keep": said.keep, "signed": False}
    write_entries(data, spool, note, relations, lambda share: None)
    write_note(data, note)
    size = sum(file.stat().st_size for file in data.iterdir())
    print(f"{n_tokens:,} tokens, {said.latents:,} latents, k {said.k}, keep {said.keep}: {size / 1e6:.1f} MB")
    print(f"  spooling random codes {spooled - begun:.1f} s, sorting and writing {time.perf_counter() - spooled:.1f} s")
    return wb.open_index(folder)


def random_codes(chance: np.random.Generator, n: int, latents: int, k: int) -> Codes:
    """Codes of `n` tokens, `[n, k]`: about k latents each, low numbers far more often than high ones."""
    drawn = np.sort((latents * chance.random((n, k + k // 2)) ** 3).astype(np.int64), axis=1)
    first = np.append(np.ones((n, 1), bool), drawn[:, 1:] != drawn[:, :-1], axis=1)
    keep = first & (chance.permuted(np.broadcast_to(np.arange(drawn.shape[1]), drawn.shape), axis=1) < k + 8)
    values = np.where(keep, chance.exponential(2.0, drawn.shape) + 0.01, 0).astype(np.float32)
    return Codes(torch.from_numpy(values), torch.from_numpy(drawn), latents)


def look_up(index: wb.FeatureIndex) -> None:
    """Times of what a page asks for."""
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
    patterns = ["dog", r"the (\w)", r"\bran to", "happy", r"(?i)once upon", r"\.", "princess", r" (said)"]
    measured("regex search", [lambda one=one: index.search(regex=one) for one in patterns], "")
    found = {one: len(index.search(regex=one, min_recall=0)) for one in patterns[:2]}
    print(f"  found with any recall, at most 50: {found}")


def measured(what: str, calls: list[Callable[[], object]], wanted: str) -> None:
    """Print the median and the 99th percentile of the times of some calls, after one to warm up."""
    calls[0]()
    times = []
    for call in calls:
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    p50, p99 = np.percentile(times, [50, 99])
    print(f"  {what:<34} p50 {p50:8.3f} ms   p99 {p99:8.3f} ms" + (f"   (wanted: {wanted})" if wanted else ""))


def build(model: wb.LanguageModel, corpus: Corpus, said: argparse.Namespace) -> None:
    """Building an index against harvesting the same activations and throwing them away; rounds alternate."""
    sae = wb.TopKSAE(model.network.d_model, said.latents, said.k, hook_point=POINT)
    kinds: dict[str, list[float]] = {"harvest": [], "pass of build_index": [], "build_index": []}
    for turn in range(said.rounds + 1):
        begun = time.perf_counter()
        for _ in Harvest(model, corpus, POINT, tokens=said.build_tokens):
            pass
        harvested = time.perf_counter()
        read: list[float] = []
        with tempfile.TemporaryDirectory() as folder:

            def told(share: float, words: str, read: list[float] = read) -> None:
                if words.startswith("Sorting") and not read:
                    read.append(time.perf_counter())

            wb.build_index(model, sae, corpus, folder, tokens=said.build_tokens, progress=told)
        ended = time.perf_counter()
        if turn:
            for name, took in zip(kinds, (harvested - begun, read[0] - harvested, ended - harvested), strict=True):
                kinds[name].append(took)
    medians = {name: statistics.median(times) for name, times in kinds.items()}
    print(f"\nBuilding on {said.build_tokens:,} tokens of {POINT}, {said.latents:,} latents  (wanted: at least 0.8)")
    for name, took in medians.items():
        rate = said.build_tokens / took
        print(f"  {name:<22} {took:7.2f} s   {rate:7,.0f} tokens/s   speed {medians['harvest'] / took:5.2f} of harvest")
    fixed = medians["build_index"] - medians["pass of build_index"]
    print(f"  {fixed:.1f} s behind the pass are spent on the LM head and cosines, whatever the number of tokens")


if __name__ == "__main__":
    main()
