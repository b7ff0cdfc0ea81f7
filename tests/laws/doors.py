"""Doors through which a stranger's input comes in, each with about 1 MB of the worst kind for it.

`measure` opens one in a process that `prepare` has made ready, and says what came of it, how long it took and by how
much the memory grew.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ggufs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
from fuzz_examples import NEURON, POINT, World
from lying_parquet import lying

import workbench as wb
from workbench.core.forms import parse_json

MEGABYTE = 10**6
UNMERGED = "\x01" * MEGABYTE
"""A token for each character."""
WORDS = " ".join(f"w{number}" for number in range(150_000))
DEEP = "[" * (MEGABYTE // 2) + "]" * (MEGABYTE // 2)
DEEP_OBJECT = '{"a":' * (MEGABYTE // 5)
DIGITS = "9" * 5000
ENDLESS = r"((\w)+\.?)+!"
HALF = "a\ud800b"

PASSES = {
    "texts: one line",
    "a token to search among neurons",
    "search: repetitions that compile",
    "search: words in a long note",
    "a table of one field",
    "a label",
}
"""Doors whose input is unusual and means something."""
LONG = re.compile(
    "of a long context|a token a character|texts: one line|a text of 30 MB|without end|table of delim|wrong values"
    "|template: (loops|a large|long texts|a doubling|no templ)|claims (hidden|vocab|interm)"
    "|address with (a n|a l|a N|len|long)|large tensors|of objects|in a long note"
)
"""Doors that take long, and more of a kind, which `WORKBENCH_TORTURE` opens."""
HUGE = ("texts: one line of 200 MB", "a text of 30 MB")
"""Doors of more than a megabyte."""


class Hostile(World):
    """A world with a model of a long context, and folders to alter."""

    def __init__(self, folder: Path):
        super().__init__(wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer()), folder)
        long = tiny.build("llama", max_position_embeddings=300_000)
        self.long = wb.load_model(long, tokenizer=tiny.tokenizer())
        self.plain = folder / "plain"
        tiny.build("llama").save_pretrained(self.plain)
        tiny.tokenizer().save_pretrained(self.plain)

    def new(self, ending: str = "") -> Path:
        """A path where nothing is yet, in any fork."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / f"new{ending}"

    def model_with(self, name: str, content: bytes | str) -> Path:
        """The folder of a model, one file of which has this content."""
        folder = self.new()
        folder.mkdir()
        for file in self.plain.iterdir():
            (folder / file.name).symlink_to(file)
        return self._put(folder, name, content)

    def claiming(self, **sizes: int) -> Path:
        """The folder of a model whose configuration claims these sizes."""
        config = json.loads((self.plain / "config.json").read_text())
        return self.model_with("config.json", json.dumps(config | sizes))

    def dictionary_with(self, name: str, content: bytes | str) -> Path:
        """The folder of a dictionary, one file of which has this content."""
        folder = self.new()
        folder.mkdir()
        for file in self.saved_sae.iterdir():
            (folder / file.name).symlink_to(file)
        return self._put(folder, name, content)

    def file(self, ending: str, content: bytes | str) -> Path:
        """A file with this content."""
        path = self.new(ending)
        return self._put(path.parent, path.name, content) / path.name

    def chatting(self, template: str) -> Any:
        """The model with a chat template."""
        model = copy.copy(self.model)
        model.tokenizer = copy.deepcopy(tiny.tokenizer())
        model.tokenizer.chat_template = template
        return model

    @staticmethod
    def _put(folder: Path, name: str, content: bytes | str) -> Path:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder


def _parquet(w: Hostile, column: pa.Array, times: int = 1) -> Path:
    path, table = w.new(".parquet"), pa.table({"text": column})
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(times):
            writer.write_table(table)
    return path


def _lying(w: Hostile) -> Path:
    path = w.new(".parquet")
    path.write_bytes(lying(path))
    return path


def _repeated() -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(MEGABYTE, np.int32), ["a b " * 100_000])


def _header(claim: int, header: bytes = b"{}") -> bytes:
    return struct.pack("<Q", claim) + header


def _tensors(count: int) -> bytes:
    claims = {f"t{n}": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]} for n in range(count)}
    header = json.dumps(claims).encode()
    return _header(len(header), header)


def _gguf(tensors: int, fields: int, content: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + content


def _gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _gguf_field(kind: int, content: bytes) -> bytes:
    return _gguf_text(b"general.name") + struct.pack("<I", kind) + content


def _gguf_tensor(number: int, *shape: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _gguf_text(b"%d" % number) + sizes + struct.pack("<IQ", 0, 0)


CIRCLE = json.dumps(
    {
        "metadata": {"slug": "x", "scan": "x", "prompt_tokens": ["a"], "prompt": "a"},
        "qParams": {},
        "nodes": [
            {"node_id": f"0_{one}_0", "feature": one, "layer": "0", "ctx_idx": 0, "feature_type": kind, "jsNodeId": ""}
            for one, kind in enumerate(["logit"] + ["lorsa"] * 4000)
        ],
        "links": [{"source": f"0_{one + 1}_0", "target": f"0_{one}_0", "weight": 1} for one in range(4000)]
        + [{"source": "0_0_0", "target": "0_4000_0", "weight": 1}],
    }
)
GGUF: dict[str, bytes] = {
    "fields that it lacks": _gguf(0, 2**40),
    "tensors that it lacks": _gguf(2**40, 0, bytes(MEGABYTE)),
    "a long text": _gguf(0, 1, _gguf_field(8, struct.pack("<Q", 2**60))),
    "many texts": _gguf(0, 1, _gguf_field(9, struct.pack("<IQ", 8, 2**40) + bytes(MEGABYTE))),
    "many empty texts": _gguf(0, 1, _gguf_field(9, struct.pack("<IQ", 8, MEGABYTE // 8) + bytes(MEGABYTE))),
    "many numbers": _gguf(0, 1, _gguf_field(9, struct.pack("<IQ", 12, 2**60))),
    "bytes": _gguf(0, 1, _gguf_field(9, struct.pack("<IQ", 0, MEGABYTE) + bytes(MEGABYTE))),
    "lists of lists": _gguf(0, 1, _gguf_field(9, struct.pack("<IQ", 9, 1) * (MEGABYTE // 12))),
    "huge tensors": _gguf(8000, 0, b"".join(_gguf_tensor(number, 2**31, 2**31) for number in range(8000))),
    "tensors of nothing": _gguf(25_000, 0, b"".join(_gguf_tensor(number, 1) for number in range(25_000))),
    "zeros": _gguf(0, 0, bytes(MEGABYTE)),
}
"""Damaged files, by what they claim."""


def _gguf_model(**changes: Any) -> Callable[[Hostile], Path]:
    return lambda w: ggufs.write(w.new(".gguf"), tiny.build("llama"), tiny.tokenizer(), **changes)


def _gguf_vocabulary(words: list[str], **changes: Any) -> Callable[[Hostile], Path]:
    """A model of small rows with this vocabulary."""
    stated: dict[str, Any] = {"tokenizer__ggml__tokens": words, "tokenizer__ggml__token_type": [1] * len(words)}
    stated |= {"tokenizer__ggml__scores": [float(-number) for number in range(len(words))]}
    stated |= {"tokenizer__ggml__model": "llama", "tokenizer__ggml__pre": "default", "tokenizer__ggml__eos_token_id": 0}
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    return lambda w: ggufs.write(
        w.new(".gguf"), tiny.build("llama", vocab_size=len(words), **sizes), tiny.tokenizer(), **stated | changes
    )


GGUF_MODELS: dict[str, Callable[[Hostile], Path]] = {
    "many layers": _gguf_model(llama__block_count=2**31),
    "wide heads": _gguf_model(llama__attention__key_length=2**30, llama__attention__value_length=2**30),
    "many heads": _gguf_model(llama__attention__head_count=2**30),
    "a wide stream": _gguf_model(llama__embedding_length=2**31),
    "a wide MLP": _gguf_model(llama__feed_forward_length=2**31),
    "a long token": _gguf_vocabulary(["a", "a" * MEGABYTE]),
    "tokens within tokens": _gguf_vocabulary(["a" * number for number in range(1, 900)], llama__vocab_size=899),
    "merges without tokens": _gguf_model(tokenizer__ggml__merges=["a b"] * (MEGABYTE // 11)),
    "control tokens": _gguf_vocabulary(
        [f"<{number}>" for number in range(30_000)], tokenizer__ggml__token_type=[3] * 30_000, tokenizer__ggml__pre="x"
    ),
}
"""Models whose fields are hostile."""


def _page(w: Hostile, **query: str) -> None:
    """A page at an address; it may show one sentence, and must not fail."""
    import pages

    page = pages.start(w.plain, **query)
    if page.exception:
        raise RuntimeError(page.exception[0].value)
    if page.error:
        raise wb.WorkbenchError(page.error[0].value.replace("\\", ""))


def _upload(w: Hostile, data: str) -> None:
    from steer import storage

    storage.read(w.model, data.encode())


def _searched(w: Hostile, note: str, **how: Any) -> None:
    with contextlib.suppress(wb.WorkbenchError):
        w.index.note(3, note)
    w.index.search(**how)


def _heal(w: Hostile, **how: Any) -> None:
    wb.surgery.heal(w.model, w.corpus, tokens=40, context=16, batch=2, **how)


def _claims(d_sae: int) -> Callable[[Hostile], Any]:
    def act(w: Hostile) -> Any:
        config = json.loads((w.saved_sae / "cfg.json").read_text())
        return wb.load_dictionary(w.dictionary_with("cfg.json", json.dumps(config | {"d_sae": d_sae})))

    return act


def _prompts() -> dict[str, Callable[[Hostile], Any]]:
    doors: dict[str, Callable[[Hostile], Any]] = {}
    for name, text in {"": "a" * MEGABYTE, ", a token a character": UNMERGED, ", half a character": HALF}.items():
        for size, of in {"": lambda w: w.model, " of a long context": lambda w: w.long}.items():
            doors |= {
                f"a prompt{name}{size}": lambda w, of=of, text=text: of(w).generate(text, 1),
                f"a chat{name}{size}": lambda w, of=of, text=text: of(w).chat(text, 1),
            }
        doors |= {
            f"a comparison{name}": lambda w, text=text: wb.compare(w.long, text, w.edits, 2),
            f"an attribution{name}": lambda w, text=text: wb.attribute(w.long, w.transcoders, text),
            f"a target{name}": lambda w, text=text: wb.attribute(w.model, w.transcoders, "The dog", text),
            f"a capture{name}": lambda w, text=text: w.long.capture(text, [POINT]),
            f"firing{name}": lambda w, text=text: w.index.fires_on(text),
            f"a dose{name}": lambda w, text=text: wb.measures.dose_response(
                w.model, "The dog", text, [1.0], lambda value: [wb.Clamp(NEURON, value)]
            ),
        }
    return doors | {
        "many messages": lambda w: w.model.chat([{"role": "user", "content": ""}] * 30_000, 1),
        "a text of 30 MB": lambda w: w.long.generate(UNMERGED * 30, 1),
    }


TEMPLATES = {
    "a range": "{{ range(10**9) }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a long text": "{{ 'a' * 10**10 }}",
    "long texts": "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "a large number": "{{ (10**9) ** (10**9) }}",
    "a doubling": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "no template": "{{" * 10**5,
    "half a character": r"{{ '\ud800' }}",
}
SEARCHES: dict[str, dict[str, Any]] = {
    "words": {"text": WORDS},
    "one word": {"text": "a" * MEGABYTE},
    "words of a label": {"label": WORDS},
    "repetitions": {"regex": "a{1000000000}"},
    "repetitions of repetitions": {"regex": "(a{1000}){1000}"},
    "repetitions that compile": {"regex": "(?:(?:[a-z]?){99}){99}z"},
    "a pattern without end": {"regex": r"(\w+ ?){1,60}\d"},
    "a pattern of groups": {"regex": "(" * 400 + "a" + ")*" * 400},
    "a long pattern": {"regex": "a|" * (MEGABYTE // 2)},
    "half a character": {"text": HALF},
    "half a character in a pattern": {"regex": HALF},
}


def _searches() -> dict[str, Callable[[Hostile], Any]]:
    note = "ab ba " * 20_000
    many = " ".join(["a", "b", "ab", "ba"] * 99)[:1000]
    return {
        **{f"search: {name}": lambda w, how=how: w.index.search(**how) for name, how in SEARCHES.items()},
        "search: words in a long note": lambda w: _searched(w, note, text=f"{many} x"),
        "a token to search among neurons": lambda w: w.table.search("a" * MEGABYTE, match="contains"),
        "a token that neurons write": lambda w: wb.neurons.neurons_writing(w.model, HALF),
        "a label": lambda w: w.index.label(3, "a " * (MEGABYTE // 2)),
        "a label of half a character": lambda w: w.index.label(3, HALF),
        "a feature": lambda w: w.model.generate("The", 1, interventions=[wb.Clamp("a" * MEGABYTE, 1.0)]),
        "a feature of digits": lambda w: w.model.generate("The", 1, interventions=[wb.Clamp(f"n:{DIGITS}", 1.0)]),
        "a layer of digits": lambda w: w.model.generate(
            "The", 1, interventions=[wb.Clamp(f"neurons.{DIGITS}.post:1", 1.0)]
        ),
        "a hook point": lambda w: w.model.capture("The", ["blocks." * (MEGABYTE // 7)]),
        "a hook point of digits": lambda w: w.model.capture("The", [f"blocks.{DIGITS}.hook_out"]),
        "a rank": lambda w: _heal(w, rank=10**6),
        "names to train": lambda w: _heal(w, only=ENDLESS),
        "a pattern of weights": lambda w: wb.surgery.prune(w.model, 0.5, pattern=f"2:{DIGITS}"),
    }


def _files() -> dict[str, Callable[[Hostile], Any]]:
    wrong = json.dumps({"dictionary": "x", "features": {str(number): 1 for number in range(60_000)}})
    numbers = "[" + "1," * (MEGABYTE // 2) + "1]"
    doors: dict[str, Callable[[Hostile], Any]] = {
        "labels: wrong values": lambda w: w.index.import_labels(w.file(".json", wrong)),
        "labels: a million wrong values": lambda w: parse_json(numbers, list[str], wb.WorkbenchError, "This is wrong"),
        "labels: a table of one field": lambda w: w.index.import_labels(w.file(".csv", "feature,x\n" + "a" * MEGABYTE)),
        "labels: delimiters": lambda w: w.index.import_labels(w.file(".csv", "feature" + "," * MEGABYTE)),
        "a table of one field": lambda w: wb.Corpus.load(w.file(".csv", 'text\n"' + "a b " * (MEGABYTE // 4) + '"')),
        "a table of quotes": lambda w: wb.Corpus.load(w.file(".csv", '"' * (MEGABYTE + 1))),
        "a table of delimiters": lambda w: wb.Corpus.load(w.file(".csv", "a,;|\t\n" * (MEGABYTE // 6))),
        "texts: one line": lambda w: list(wb.Corpus.load(w.file(".txt", UNMERGED)).batches(w.model, batch=4)),
        "texts: one line of 200 MB": lambda w: list(wb.Corpus.load(w.file(".txt", UNMERGED * 200)).batches(w.model)),
        "texts: a Parquet file that repeats": lambda w: wb.Corpus.load(_parquet(w, _repeated())),
        "texts: a Parquet file of one letter": lambda w: wb.Corpus.load(_parquet(w, pa.array(["a" * 10**7]), 9)),
        "texts: a Parquet file whose page claims 2 GB": lambda w: wb.Corpus.load(_lying(w)),
        "texts: a Parquet file of nothing": lambda w: wb.Corpus.load(_parquet(w, pa.nulls(2 * 10**6, pa.string()))),
        "a dictionary of a long header": lambda w: wb.load_dictionary(
            w.dictionary_with("sae_weights.safetensors", _header(2**40))
        ),
        "a dictionary of large tensors": lambda w: wb.load_dictionary(
            w.dictionary_with("sae_weights.safetensors", _tensors(8000))
        ),
        "a dictionary that claims to be large": _claims(10**12),
        "a model of a long header": lambda w: wb.load_model(w.model_with("model.safetensors", _header(2**40))),
        "a model of large tensors": lambda w: wb.load_model(w.model_with("model.safetensors", _tensors(8000))),
        "an upload": lambda w: _upload(w, DEEP),
        "an upload of objects": lambda w: _upload(w, DEEP_OBJECT),
        "an upload of digits": lambda w: _upload(w, '{"interventions": ' + "9" * MEGABYTE + "}"),
    }
    doors |= {
        f"a GGUF file of {name}": lambda w, content=content: wb.load_model(w.file(".gguf", content))
        for name, content in GGUF.items()
    }
    doors |= {
        f"a control vector of {name}": lambda w, content=content: wb.directions.load_direction(w.file(".gguf", content))
        for name, content in GGUF.items()
    }
    doors["a published graph of links in a circle"] = lambda w: wb.attribution.load_viewer_graph(
        w.file(".json", CIRCLE)
    )
    doors |= {
        f"a GGUF file of {name}": lambda w, make=make: wb.load_model(make(w)) for name, make in GGUF_MODELS.items()
    }
    for name, text in {"lists": DEEP, "objects": DEEP_OBJECT}.items():
        doors |= {
            f"edits of {name}": lambda w, text=text: wb.interventions.load_interventions(
                w.file(".json", text), w.model
            ),
            f"a graph of {name}": lambda w, text=text: wb.attribution.load_graph(w.file(".json", text)),
            f"a published graph of {name}": lambda w, text=text: wb.attribution.load_viewer_graph(
                w.file(".json", text)
            ),
            f"a task of {name}": lambda w, text=text: wb.circuits.load_task(w.file(".jsonl", text)),
            f"texts of {name}": lambda w, text=text: wb.Corpus.load(w.file(".jsonl", text)),
            f"a dictionary of {name}": lambda w, text=text: wb.load_dictionary(w.dictionary_with("cfg.json", text)),
            f"a configuration of {name}": lambda w, text=text: wb.load_model(w.model_with("config.json", text)),
            f"a tokenizer of {name}": lambda w, text=text: wb.load_model(w.model_with("tokenizer.json", text)),
        }
    large = {"num_hidden_layers": 10**9, "hidden_size": 10**9, "vocab_size": 10**10, "intermediate_size": 10**10}
    for field, size in large.items():
        doors[f"a model that claims {field}"] = lambda w, claim={field: size}: wb.load_model(w.claiming(**claim))
    return doors


def _addresses() -> dict[str, Callable[[Hostile], Any]]:
    values = {"digits": DIGITS, "length": "a" * (MEGABYTE // 2), "a layer of digits": f"neurons.{DIGITS}.post:1"}
    values |= {"a number of digits": f"neurons.1.post:{DIGITS}", "a NUL": "a\0b:1"}
    doors: dict[str, Callable[[Hostile], Any]] = {
        f"an address with {name}": lambda w, value=value: _page(w, feature=value) for name, value in values.items()
    }
    return doors | {
        "an address with a long model": lambda w: _page(w, feature=NEURON, model="a" * (MEGABYTE // 2) + "@b"),
        "an address with long changes": lambda w: _page(w, changes="a" * (MEGABYTE // 2), feature="abc"),
    }


DOORS: dict[str, Callable[[Hostile], Any]] = {
    **_prompts(),
    **{
        f"a chat template: {name}": lambda w, text=text: w.chatting(text).chat("hi", 1)
        for name, text in TEMPLATES.items()
    },
    **_searches(),
    **_files(),
    **_addresses(),
}


def prepare(folder: str) -> None:
    """Make everything that doors need, so that a fork finds it."""
    global world  # noqa: PLW0603 - forks find it here
    os.chdir(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["WORKBENCH_CACHE"] = str(Path(folder) / "cache")
    sys.path.insert(0, str(Path(__file__).parents[2] / "app"))
    world = Hostile(Path(folder))
    for name in ("corpus", "sae", "saved_sae", "transcoders", "table", "index", "edits"):
        getattr(world, name)


world: Hostile


def _kilobytes(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def _processor() -> float:
    """Seconds of the processor, of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def measure(name: str) -> None:
    """Open a door; prints what came of it, seconds of the clock and of the processor, and megabytes."""
    before, begun, used = _kilobytes("VmHWM"), time.monotonic(), _processor()
    outcome, kind = "", ""
    signal.alarm(300)  # whatever comes of it, the process ends
    try:
        DOORS[name](world)
    except wb.WorkbenchError as error:
        kind, outcome = "refused", str(error)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
        kind, outcome = type(error).__name__, str(error)[:300]
    seconds = [round(time.monotonic() - begun, 2), round(_processor() - used, 2)]
    grown = (_kilobytes("VmHWM") - before) / 1000
    said = outcome.encode("utf-8", "backslashreplace").decode()
    print(json.dumps({"kind": kind, "said": said, "seconds": seconds, "megabytes": grown}))
