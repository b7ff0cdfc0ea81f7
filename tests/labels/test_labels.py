"""Labels by a language model and scores of labels, against planted features and a small server."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import workbench as wb
from workbench.index import FeatureIndex
from workbench.labels import AskedJudge, LabelError, RuleJudge, Server, Writer, explain_with, output_score, score_label
from workbench.labels.asking import Notebook
from workbench.labels.prompts import as_label, as_numbers

WORDS = ("dog", "cat", "boat", "green", "and", "the", "water", ".")
DOG = json.dumps({"join": "and", "conditions": [{"slot": "word", "values": ["dog"]}]})
NEVER = json.dumps({"join": "and", "conditions": [{"slot": "word", "values": ["zebra"]}]})


@pytest.fixture(scope="module")
def index(llama, tmp_path_factory) -> FeatureIndex:
    """An index in which feature 0 is active on the word dog, and feature 1 on random tokens."""
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(WORDS, 90, p=[0.02, *[0.14] * 7]).tolist()) for _ in range(80)]
    sae = wb.TopKSAE(32, 24, 4, hook_point="blocks.1.hook_resid_post", name="tiny-sae")
    found = wb.build_index(llama, sae, wb.Corpus(texts), tmp_path_factory.mktemp("l") / "i", context=128, batch=8)
    dog = [text.strip() == "dog" for text in found.tokens.strings(found.tokens.ids)]
    masks = [np.array(dog), chance.random(found.n_tokens) < 0.01]
    entries = found.entries
    rows = [np.flatnonzero(mask) for mask in masks]
    rest = entries.rows[entries.offsets[2] :]
    sizes = [len(one) for one in rows]
    values = entries.values[entries.offsets[2] :]
    offsets = np.concatenate([[0], np.cumsum(sizes), sum(sizes) + entries.offsets[3:] - entries.offsets[2]])
    entries.rows, entries.offsets = np.concatenate([*rows, rest]), offsets
    entries.values = np.concatenate([np.ones(sum(sizes), np.float16), values])
    entries.counts = np.diff(offsets)
    return found


class Answers:
    """A server that answers by a function from prompts to the bytes of an answer."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.reply: Callable[[str], bytes] = lambda prompt: b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.prompts.append(body["messages"][0]["content"])
                content = outer.reply(outer.prompts[-1])
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Answers]:
    answers = Answers()
    yield answers
    answers.http.shutdown()
    answers.http.server_close()


def completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {}}).encode()


def knows_dogs(prompt: str) -> bytes:
    """Names what is marked, and finds it again, as a good model would."""
    if "Which of these" not in prompt:
        words = re.findall("«(.*?)»", prompt.split("around them.")[1])
        return completion(f"<b>the word {words[0].strip()}</b>\nand more")
    word = re.search(r"marks this: <b>the word (\S*)</b>", prompt)
    assert word is not None
    lines = re.findall(r"^(\d+)\. (.*)$", prompt, re.M)
    held = [number for number, text in lines if word[1] in text.split("»")[0].split("«")[-1]]
    return completion(", ".join(held) or "None")


def test_scores_of_rules(index: FeatureIndex) -> None:
    right = score_label(index, 0, RuleJudge(index, DOG))
    assert right.detection is not None
    assert (right.detection.value, right.fuzzing.value, right.intruder.value) == (1.0, 1.0, 1.0)  # type: ignore[union-attr]
    assert right.simulation is not None
    assert right.simulation.value == pytest.approx(1.0)
    assert right.detection.low > 0.85
    wrong = score_label(index, 0, RuleJudge(index, NEVER))
    assert (wrong.detection.value, wrong.fuzzing.value, wrong.simulation.value) == (0.5, 0.5, 0.0)  # type: ignore[union-attr]
    assert wrong.intruder is not None
    assert wrong.intruder.value == pytest.approx(0.2)
    shuffled = score_label(index, 1, RuleJudge(index, DOG))
    for one in (shuffled.detection, shuffled.fuzzing):
        assert one is not None
        assert one.low < 0.5 < one.high + 0.1
    assert abs(shuffled.simulation.value) < 0.15  # type: ignore[union-attr]


def test_a_server_writes_labels_that_are_tested(index: FeatureIndex, server: Answers, tmp_path: Path) -> None:
    server.reply = knows_dogs
    found = explain_with(index, Server(server.address, "big"), [0, 1], tmp_path)
    label = found.labels[0]
    assert label.text == "<b>the word dog</b>"
    assert label.score == 1.0
    assert found.states[1] == "chance"
    assert index.labels_by("big") == dict(found.labels)
    asked = len(server.prompts)
    assert explain_with(index, Server(server.address, "big"), [0, 1], tmp_path).labels == found.labels
    assert len(server.prompts) == asked  # every answer was kept
    scores = score_label(
        index, 0, AskedJudge(index, Notebook(Server(server.address, "big"), tmp_path), label.text), n=8
    )
    assert scores.detection is not None
    assert scores.detection.value == label.score
    assert index.names()[0].text == label.text
    index.label(0, "mine")
    assert index.names()[0].text == "mine"
    index.label(0, "")


def test_a_limit_on_calls_and_a_stop_lose_nothing(index: FeatureIndex, server: Answers, tmp_path: Path) -> None:
    server.reply = knows_dogs
    with pytest.raises(LabelError, match="limit of 1 prompts"):
        explain_with(index, Server(server.address, "one"), [0], tmp_path, limit=1)
    assert len(server.prompts) == 1
    with pytest.raises(LabelError, match="cancelled"):
        explain_with(index, Server(server.address, "one"), [0], tmp_path, cancel=lambda: True)
    with open(tmp_path / "answers.jsonl", "ab") as file:
        file.write(b'{"key": "half')  # what a killed process leaves
    assert explain_with(index, Server(server.address, "one"), [0], tmp_path).labels[0].score == 1.0
    assert len(server.prompts) == 2
    before = index.labels_by("one")
    server.reply = lambda prompt: b"{}"
    with pytest.raises(LabelError):
        explain_with(index, Server(server.address, "one"), [2], tmp_path)
    assert index.labels_by("one") == before


@pytest.mark.parametrize(
    "line", [b"no json", b"[]", b'{"key": 1, "prompt": "a", "answer": "b"}', b"\xff", b'{"key": "a"}']
)
def test_a_damaged_file_of_answers_is_refused(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "answers.jsonl").write_bytes(line + b"\n")
    with pytest.raises(LabelError, match="is no file of answers"):
        Notebook(Server("http://127.0.0.1:9", "one"), tmp_path)


def test_answers_are_not_read_from_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "answers.jsonl")
    with pytest.raises(LabelError, match="no ordinary file"):
        Notebook(Server("http://127.0.0.1:9", "one"), tmp_path)


@pytest.mark.parametrize(
    "answer",
    [b"", b"no json", b"[]", b'{"choices": []}', b'{"choices": [{}]}', b"\xff\xfe", b"x" * (2**20 + 1)],
)
def test_a_server_that_answers_nonsense(answer: bytes, server: Answers) -> None:
    server.reply = lambda prompt: answer
    with pytest.raises(LabelError, match="answers with something else"):
        Server(server.address, "m", tries=1).ask("Hello")


def test_a_server_that_is_slow_or_not_there(server: Answers) -> None:
    def slow(prompt: str) -> bytes:
        time.sleep(0.3)
        return completion("late")

    server.reply = slow
    with pytest.raises(LabelError, match="gives no answer"):
        Server(server.address, "m", timeout=0.05, tries=1).ask("Hello")
    with pytest.raises(LabelError, match="gives no answer"):
        Server("http://127.0.0.1:9/v1", "m", timeout=0.5).ask("Hello")
    for address in ("file:///etc/passwd", "ftp://x/y", "localhost:80", ""):
        with pytest.raises(LabelError, match="begins with http"):
            Server(address, "m")
    assert "secret" not in repr(Server(server.address, "m", key="secret"))


def test_a_model_that_is_open_here_answers(index: FeatureIndex, tmp_path: Path) -> None:
    small = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    found = explain_with(index, Writer(small, 3), [0], tmp_path, examples=2, tested=2)
    assert found.states[0] in ("chance", "labelled")
    assert (tmp_path / "answers.jsonl").exists()


def test_output_scores_see_what_a_feature_makes_the_model_say(llama, tmp_path: Path) -> None:
    """A latent whose direction is the unembedding of a token raises that token, and others do not."""
    sae = wb.TopKSAE(32, 24, 4, hook_point="blocks.2.hook_resid_post", name="tiny-sae")
    (wanted,) = llama.tokenizer(" the", add_special_tokens=False)["input_ids"]
    head = llama.network.lm_head
    with torch.no_grad():
        rows = torch.cat([part for _, part in head.pieces()])
        sae.W_dec[3] = rows[wanted] / rows[wanted].norm()
        sae.W_enc_T[3] = torch.ones(32) / 3
    wb.build_index(llama, sae, wb.Corpus(["The dog ran to the river.", "A cat sat."] * 4), tmp_path, context=32)
    opened = wb.open_index(tmp_path, llama, sae)
    opened.statistics["highest"] = np.full(24, 30.0)
    right = output_score(opened, 3, [" the"], ["The dog", "My cat"], controls=20)
    assert right.value == 1.0
    assert right.low > 0.8
    others = [output_score(opened, one, [" the"], ["The dog"], controls=10).value for one in (5, 6, 7, 8)]
    assert np.mean(others) < 0.9
    with pytest.raises(LabelError, match="one token each"):
        output_score(opened, 3, [" the dog ran"], ["The dog"])
    with pytest.raises(LabelError, match="open the index with"):
        output_score(wb.open_index(tmp_path), 3, [" the"], ["The dog"])


def test_answers_are_text() -> None:
    assert as_label("\n **“dogs\u202e”**\nmore") == "dogs"
    assert as_label("...\n--") == ""
    assert len(as_label("x" * 900)) == 200
    assert as_numbers("1, 3 and 12", 12) == {1, 3, 12}
    assert as_numbers("None of them.", 5) == set()
    assert as_numbers("I think 99", 5) is None
    assert as_numbers("maybe", 5) is None


def test_numbers_without_a_look_at_the_texts_are_chance(index: FeatureIndex, server: Answers, tmp_path: Path) -> None:
    """Who names the first half of the texts, whatever they say, knows nothing."""

    def first_half(prompt: str) -> bytes:
        count = len(re.findall(r"^\d+\. ", prompt, re.M))
        return completion(", ".join(str(number) for number in range(1, count // 2 + 1)))

    server.reply = first_half
    scores = score_label(index, 0, AskedJudge(index, Notebook(Server(server.address, "m"), tmp_path), "dogs"), n=12)
    assert scores.detection is not None
    assert scores.detection.low < 0.5
    assert scores.fuzzing is not None
    assert scores.fuzzing.low < 0.5


@pytest.mark.parametrize("name", ["rule", "a person", " "])
def test_a_name_that_labels_cannot_have_is_refused_before_anything_is_asked(
    name: str, index: FeatureIndex, server: Answers, tmp_path: Path
) -> None:
    with pytest.raises(LabelError, match="under the name"):
        explain_with(index, Server(server.address, name), [0], tmp_path)
    assert not server.prompts


def test_answers_of_other_weights_of_one_name_are_not_taken(tmp_path: Path) -> None:
    small, other = (tiny.build("llama") for _ in range(2))
    with torch.no_grad():
        other.lm_head.weight.copy_(other.lm_head.weight.flip(0))
    answers = []
    for module in (small, other, small):
        model = wb.load_model(module, tokenizer=tiny.tokenizer())
        notebook = Notebook(Writer(model, 4), tmp_path)
        answers.append((notebook.ask("The dog"), notebook.sent))
    assert [sent for _, sent in answers] == [1, 1, 0]
    assert answers[0][0] == answers[2][0] != answers[1][0]
