"""Have the default model write the bundled corpus "stories": many kinds of short text on many topics.

    python scripts/write_corpus.py write --out FOLDER --part 0/2 &    # as many processes as there are processors,
    python scripts/write_corpus.py write --out FOLDER --part 1/2 &    # one thread each; resumes where it stopped
    python scripts/write_corpus.py finish --out FOLDER                # filter, then write data/corpora/stories.*

Every batch is a shard of its own, renamed into place when complete: after kill -9, run the same command again and only
the batch under way is written anew. Every text draws from its own seed, so a shard does not depend on who wrote it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import re
import shlex
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import workbench as wb
from workbench.model.kvcache import new_cache
from workbench.model.language_model import LanguageModel

TOPICS = """
a stray dog | a cat on a roof | horses | bees and honey | a whale | wolves in winter | a parrot that talks | ants |
birds flying south | spiders | goldfish | dinosaurs | a dragon | a farm with goats | butterflies | elephants |
bread | soup | chocolate | apples | coffee | tea | a birthday cake | pizza | rice | cheese | spices | ice cream |
a picnic | breakfast | a vegetable garden | mushrooms | salt | a family dinner | the sea | a mountain hike |
a river | the desert | a deep forest | an island | a volcano | a cave | a lake at night | the Arctic | rain | snow |
thunderstorms | the wind | autumn leaves | a flood | drought | the seasons | an earthquake | the moon | the sun |
Mars | black holes | a comet | astronauts | telescopes | satellites | electricity | magnets | atoms |
water and ice | light and colour | sound | gravity | fire | metals | plastic | batteries | cells | the heart |
the brain | sleep | teeth | vaccines | a broken arm | a hospital | doctors and nurses | allergies | exercise |
running a marathon | football | tennis | chess | swimming | cycling | skiing | the Olympic Games | basketball |
a school | exams | a library | a teacher | learning French | homework | university | handwriting | numbers |
triangles | probability | fractions | prime numbers | statistics | measuring things | computers | the internet |
robots | phones | passwords | video games | email | artificial intelligence | a printer | trains | buses |
airplanes | bicycles | ships | cars | bridges | a lost suitcase | a road trip | maps | Paris | Japan | New York |
London | Africa | India | China | Brazil | Australia | Egypt and its pyramids | ancient Rome | knights | pirates |
kings and queens | the Second World War | the invention of printing | the railways | explorers | castles | money |
a bank | taxes | the price of bread | a shop | a job interview | a strike | a factory | farming | insurance |
an election | the mayor | a court case | the police | a stolen necklace | a lawyer | human rights | a newspaper |
music | a piano | a guitar | dancing | painting | photography | a film | theatre | poetry | a museum | sculpture |
friendship | love | anger | loneliness | courage | jealousy | gratitude | grief | patience | a secret | a promise |
lies | a wedding | grandparents | brothers and sisters | a new baby | a neighbour | moving house |
an old photograph | a gift | Christmas | New Year | Ramadan | a festival | a temple | a church bell | ghosts |
dreams | magic | time travel | a lighthouse | a clock | shoes | a red umbrella | a key | glass | paper | soap |
knitting | carpentry | a broken window | recycling | climate change | solar panels | oil | rivers and dams |
endangered species | fashion | a haircut | perfume
"""

KINDS: dict[str, list[str]] = {
    "story": [
        "Write a short story about {topic}. The main character is called {name}.",
        "Tell me a story set {place} in which {topic} matters. One of the people is {name}.",
    ],
    "children": [
        "Write a bedtime story for young children about {topic}, with a child called {name}.",
        "Tell a simple story about {topic} that a five-year-old would enjoy. Use short sentences.",
    ],
    "letter": [
        "Write a letter from {name} to an old friend about {topic}.",
        "Write a letter of complaint from {name} to a company about {topic}.",
    ],
    "howto": [
        "Write step-by-step instructions for a beginner that have to do with {topic}.",
        "Give practical advice on {topic} in numbered steps.",
    ],
    "dialogue": [
        "Write a conversation between {name} and {other} about {topic}. Write each line as 'Name: words'.",
        "Write a short scene for a play {place}: {name} and {other} disagree about {topic}.",
    ],
    "news": [
        "Write a newspaper article, with a headline, about {topic}. Name people and places.",
        "Write a short radio news report about {topic} {place}.",
    ],
    "code": [
        "Write a short Python program that has to do with {topic}, and explain it briefly.",
        "Write a JavaScript function about {topic}, with comments.",
        "Define a Python class for an app about {topic}. Show only the code.",
        "Write an SQL table and two queries for a database about {topic}.",
    ],
    "list": [
        "Make a list of ten facts about {topic}.",
        "List eight ideas for a project about {topic}, one line each.",
    ],
    "description": [
        "Describe {topic} with all the senses: what one sees, hears, smells and feels.",
        "Describe {topic} to someone who knows nothing about it.",
    ],
    "qa": [
        "Write five questions and answers about {topic}. Begin each line with 'Q:' or 'A:'.",
        "What are the most important things to know about {topic}?",
    ],
    "diary": [
        "Write a diary entry by {name} about a day that had to do with {topic}.",
        "Write the diary of {name}, {place}, over three days, in which {topic} comes up.",
    ],
    "essay": [
        "Write a short essay that argues for or against something about {topic}.",
        "Explain the history of {topic} in two paragraphs.",
    ],
    "science": [
        "Explain the science behind {topic} as a textbook would.",
        "Explain to a curious student how and why: {topic}.",
    ],
    "poem": ["Write a poem about {topic}.", "Write a funny poem about {topic} that mentions {name}."],
    "email": [
        "Write a work email from {name} to {other} about {topic}, with a subject line.",
        "Write a short email invitation that has to do with {topic}.",
    ],
    "speech": [
        "Write a short speech that {name} gives {place} about {topic}.",
        "Write a toast or a speech of thanks about {topic}.",
    ],
    "review": [
        "Write a review of a book about {topic}.",
        "Write a customer's review, with stars, of a product or place connected with {topic}.",
    ],
    "advert": ["Write an advertisement that has to do with {topic}.", "Write a travel brochure text about {topic}."],
    "encyclopedia": ["Write an encyclopedia entry about {topic}.", "Define {topic} and give examples."],
    "interview": [
        "Write an interview in which a reporter asks {name}, an expert, about {topic}.",
        "Write a podcast transcript: {name} talks with {other} about {topic}.",
    ],
    "fable": ["Write a fable about {topic} that ends with a moral.", "Write a legend of long ago about {topic}."],
    "mystery": [
        "Write the opening of a detective story about {topic}. The detective is {name}.",
        "Write a scary story {place} about {topic}.",
    ],
    "problem": [
        "Write three mathematics word problems about {topic}, with solutions.",
        "Write a multiple-choice quiz about {topic}, and give the correct answers at the end.",
    ],
    "opinion": [
        "What would {name}, a grumpy old sailor, say about {topic}? Write it in the first person.",
        "Compare two different views on {topic}, and say which is better.",
    ],
}

NAMES = [
    "Amara",
    "Boris",
    "Carmen",
    "Dmitri",
    "Eun-ji",
    "Fatima",
    "Gustav",
    "Hana",
    "Ibrahim",
    "Joanna",
    "Kofi",
    "Lucia",
    "Mateo",
    "Nadia",
    "Oskar",
    "Priya",
    "Quentin",
    "Rosa",
    "Samuel",
    "Tomoko",
    "Ulrich",
    "Vera",
    "Walter",
    "Ximena",
    "Yusuf",
    "Zoe",
    "Agnes",
    "Bilal",
    "Chloe",
    "Daniel",
    "Edith",
    "Felix",
    "Greta",
    "Hugo",
    "Irene",
    "Jamal",
    "Katya",
    "Leon",
    "Mina",
    "Noah",
    "Olga",
    "Peter",
    "Ruth",
    "Stefan",
    "Thea",
    "Victor",
    "Wanda",
    "Henry",
    "Margaret",
    "Arthur",
]

PLACES = """in a small village|on a night train|in a crowded city|at the seaside|in a hospital|on a farm|at school|
in a hotel in winter|on a spaceship|in a kitchen|in the year 1850|in the far future|in the mountains|at an airport|
in a courtroom|in a market|under the ground|in an office|on a sailing ship|in a garden""".replace("\n", "").split("|")

SETTINGS: dict[str, Any] = {"temperature": 0.85, "top_p": 0.95, "top_k": 200, "max_new_tokens": 240}
ROOT = Path(__file__).resolve().parent.parent / "data" / "corpora"


def plan(count: int, batch: int) -> list[list[dict[str, Any]]]:
    """What to write: `count` distinct pairs of topic and kind, in batches of prompts of about the same length."""
    chance = random.Random(0)
    topics = [" ".join(topic.split()) for topic in TOPICS.split("|")]
    assert len(topics) == len(set(topics))
    pairs = [(topic, kind) for topic in topics for kind in KINDS]
    chance.shuffle(pairs)
    rows = []
    for topic, kind in pairs[:count]:
        name, other = chance.sample(NAMES, 2)
        template = chance.choice(KINDS[kind])
        prompt = template.format(topic=topic, name=name, other=other, place=chance.choice(PLACES))
        rows.append({"kind": kind, "topic": topic, "prompt": prompt})
    for seed, row in enumerate(rows):
        row["seed"] = seed
    rows.sort(key=lambda row: len(row["prompt"]))
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    chance.shuffle(batches)
    return batches


@torch.inference_mode()
def write_batch(model: LanguageModel, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the texts that the model wrote; rows that have ended leave the batch."""
    sampling = wb.model.Sampling(SETTINGS["temperature"], SETTINGS["top_k"], SETTINGS["top_p"])
    limit = SETTINGS["max_new_tokens"]
    tokens, mask = model.prompt_batch([model.chat_prompt(row["prompt"]) for row in rows], limit)
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    cache = new_cache(model.network.config, tokens.shape[1] + limit)
    chance = [torch.Generator().manual_seed(row["seed"]) for row in rows]
    written: list[list[int]] = [[] for _ in rows]
    live = list(range(len(rows)))  # which row of the plan a row of the batch is
    ended: set[int] = set()
    for _ in range(limit):
        logits = model.network.run(tokens, mask=mask, cache=cache, last=1)[:, -1]  # [batch, vocab]
        chosen = sampling.choose(logits, [chance[row] for row in live])
        for row, token in zip(live, chosen.tolist(), strict=True):
            if token in model.stop_tokens:
                ended.add(row)
            elif row not in ended:
                written[row].append(token)
        stay = torch.tensor([place for place, row in enumerate(live) if row not in ended], dtype=torch.long)
        if len(stay) == 0:
            break
        if len(stay) <= 0.85 * len(live):
            live = [live[place] for place in stay.tolist()]
            chosen, mask = chosen[stay], mask[stay]
            cache.batch_select_indices(stay)
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return [
        row | {"text": model.to_text(ids).strip(), "tokens": len(ids), "stopped": "end" if place in ended else "length"}
        for place, (row, ids) in enumerate(zip(rows, written, strict=True))
    ]


def write(out: Path, count: int, batch: int, part: tuple[int, int], stop_after: int | None) -> None:
    """Write the shards of this part that are not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = wb.load_model()
    batches = plan(count, batch)
    settings = SETTINGS | {"count": count, "batch": batch, "model": model.name, "model_hash": model.hash}
    note = out / "settings.json"
    if note.exists() and json.loads(note.read_text()) != settings:
        raise SystemExit(f"{out} holds texts written with other settings; choose another folder.")
    if not note.exists():
        _replace(note, json.dumps(settings, indent=2))
    todo = [number for number in range(part[0], len(batches), part[1]) if not (out / _shard(number)).exists()]
    begun, tokens = time.monotonic(), 0
    for done, number in enumerate(todo[:stop_after], start=1):
        rows = write_batch(model, batches[number])
        _replace(out / _shard(number), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        tokens += sum(row["tokens"] for row in rows)
        passed = time.monotonic() - begun
        left = passed / done * (len(todo) - done) / 60
        early = sum(row["stopped"] == "end" for row in rows)
        print(
            f"batch {number}: {done}/{len(todo)} of this part, {early}/{len(rows)} ended by themselves, "
            f"{tokens / passed:.0f} tokens/s, about {left:.0f} minutes left",
            flush=True,
        )


def _shard(number: int) -> str:
    return f"shard-{number:04d}.jsonl"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def fault(text: str) -> str | None:
    """Why a text is left out, or None: too short, looping, or hardly any different words."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    if len(words) < 40:
        return "shorter than 40 words"
    four = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    if len(four) / (len(words) - 3) < 0.6:
        return "fewer than 60 % of its 4-grams are distinct"
    if max(four.values()) > 8:
        return "a 4-gram occurs more than 8 times"
    lines = [line.strip() for line in text.splitlines() if len(line.split()) >= 4]
    if lines and max(Counter(lines).values()) > 2:
        return "a line occurs more than twice"
    letters = sum(character.isalpha() or character.isspace() for character in text) / len(text)
    if letters < 0.55 or "�" in text:
        return "broken characters"
    return None


def finish(out: Path) -> None:
    """Filter what has been written and write `stories.parquet` and `stories.json`."""
    settings = json.loads((out / "settings.json").read_text())
    shards = sorted(out.glob("shard-*.jsonl"))
    if not shards:
        raise SystemExit(f"{out} holds no finished shard yet.")
    rows = [json.loads(line) for shard in shards for line in shard.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: row["seed"])
    kept, left_out, seen = [], Counter(), set()
    for row in rows:
        opening = " ".join(row["text"].lower().split()[:25])
        reason = "opens with the same 25 words as another" if opening in seen else fault(row["text"])
        if reason:
            left_out[reason] += 1
            continue
        seen.add(opening)
        kept.append(row)
    columns = {name: [row[name] for row in kept] for name in ("text", "kind", "topic", "prompt", "seed")}
    ROOT.mkdir(parents=True, exist_ok=True)
    table = ROOT / "stories.parquet"
    temporary = table.with_name(".stories.parquet.part")
    pq.write_table(pa.table(columns), temporary, compression="zstd", compression_level=19)
    os.replace(temporary, table)
    digest = hashlib.sha256()
    for text in columns["text"]:
        digest.update(hashlib.sha256(text.encode()).digest())
    tokenizer: Any = wb.load_model().tokenizer
    note = {
        "name": "stories",
        "source": f"written by {settings['model']} itself, from {len(rows):,} prompts ({len(KINDS)} kinds of text)",
        "licence": "Apache-2.0",
        "licence_note": "Written by a machine, a model under Apache-2.0; names and facts are made up.",
        "texts": len(kept),
        "tokens": sum(len(tokenizer(text).input_ids) for text in columns["text"]),
        "topics": len(set(columns["topic"])),
        "kinds": dict(Counter(columns["kind"]).most_common()),
        "left_out": dict(left_out.most_common()),
        "hash": digest.hexdigest(),
        "model": settings["model"],
        "model_hash": settings["model_hash"],
        "sampling": SETTINGS,
        "seed": "column `seed`: each text draws from a generator of its own",
        "versions": {name: version(name) for name in ("torch", "transformers", "workbench-lm")}
        | {"python": platform.python_version()},
        "command": "python " + shlex.join(["scripts/write_corpus.py", "write", "--out", "FOLDER"]),
    }
    _replace(ROOT / "stories.json", json.dumps(note, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps({key: note[key] for key in ("texts", "tokens", "topics", "kinds", "left_out")}, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "finish", "plan"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--count", type=int, default=3968, help="how many texts")
    parser.add_argument("--batch", type=int, default=64, help="texts written at once")
    parser.add_argument("--part", default="0/1", help="which of how many processes this is")
    parser.add_argument("--stop-after", type=int, help="so many batches only")
    settings = parser.parse_args()
    if settings.what == "finish":
        finish(settings.out)
    elif settings.what == "write":
        which, of = map(int, settings.part.split("/"))
        write(settings.out, settings.count, settings.batch, (which, of), settings.stop_after)
    else:
        batches = plan(settings.count, settings.batch)
        for row in batches[0]:
            print(row["seed"], row["kind"], "|", row["prompt"])
        print(
            len(batches), "batches,", len({row["topic"] for rows in batches for row in rows}), "topics", file=sys.stderr
        )


if __name__ == "__main__":
    main()
