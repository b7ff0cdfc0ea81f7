"""Names of dictionaries, labels, texts, models, runs and certificates are shown letter by letter on every page."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from pages import APP, quiet, start, visit
from streamlit.testing.v1 import AppTest

import workbench as wb

POINT = "blocks.1.hook_resid_post"
IMAGE = "![x](http://127.0.0.1:9/x.png)<img src=http://127.0.0.1:9/y>"
LINK = "[a](javascript:alert(1)) :red[b] `$x$"
NAMES = (IMAGE, LINK)


class Strangers:
    """A tiny model in a folder with such a name, and with such names in all that lies beside it."""

    def __init__(self, root: Path):
        self.folder = root / LINK
        tiny.build("llama").save_pretrained(self.folder)
        tiny.tokenizer().save_pretrained(self.folder)
        self.model = wb.load_model(str(self.folder))
        corpus = wb.Corpus([*tiny.TEXT.strip().splitlines(), "The dog and the cat."] * 3, IMAGE)
        self.sae = wb.TopKSAE(32, 24, k=4, hook_point=POINT, name=LINK)
        for number, name in enumerate(NAMES):
            self.sae.name = name
            self.sae.save(root / "dictionaries" / str(number))
        self.sae.name = LINK
        where = root / "dictionaries" / "1" / "index"
        index = wb.build_index(self.model, self.sae, corpus, where, context=32, batch=4)
        for latent in range(24):
            index.label(latent, NAMES[latent % 2])
            index.note(latent, NAMES[latent % 2])
        run = root / "runs" / LINK
        run.mkdir(parents=True)
        (run / "history.jsonl").write_text('{"step": 1, "tokens": 5.0, "seconds": 1.0}\n')
        request = {"name": LINK, "kind": "topk", "reads": POINT, "writes": IMAGE, "corpus": IMAGE, "tokens": 5}
        for name, settings in ((LINK, {"k": 4}), ("other", {LINK: 4})):
            (root / "runs" / name).mkdir(parents=True, exist_ok=True)
            (root / "runs" / name / "request.json").write_text(json.dumps(request | {"settings": settings}))
        self.child = wb.bake(self.model, [wb.Scale("neurons.1.post:3", 0.5)])
        self.child.certify(corpus, 40, context=16)
        certificate = self.child.certificate
        assert certificate is not None
        certificate.parent["hash"] = f"`{IMAGE}`"
        certificate.corpus["hash"] = certificate.child["name"] = LINK
        certificate.steps[0]["operation"] = certificate.made["command"] = f"`{LINK}{IMAGE}"


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Strangers:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Strangers(tmp_path_factory.mktemp("strangers"))


@pytest.fixture
def strangers(_made: Strangers, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Strangers:
    monkeypatch.setenv("WORKBENCH_DICTIONARIES", str(_made.folder.parent / "dictionaries"))
    monkeypatch.setenv("WORKBENCH_RUNS", str(_made.folder.parent / "runs"))
    from shared import dictionaries

    monkeypatch.setattr(dictionaries.shipped, "HOME", _made.folder.parent / "none")
    return _made


LITERAL = {"code_text", "options", "raw_value", "raw_values", "placeholder", "default", "value", "url", "page", "spec"}
LITERAL |= {"id", "form_id", "page_script_hash", "columns", "config", "element_id", "user_key", "file_name"}
LITERAL |= {"query_string", "json"}
"""Fields that Streamlit shows as they are, or does not show."""
ACTIVE = re.compile(r"(?<!\\)(\]\(|<img|:red\[|\$x)")
"""The names, where Markdown or HTML would take them for more than letters."""
CODE = re.compile(r"(?<!\\)`[^`]*`")
"""Code in a line of Markdown."""
TAGS = re.compile(r"<(img|a|script)\b")


def strings(message: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text that a page sends to the browser, by the name of its field."""
    for field, value in message.ListFields():
        several = value if hasattr(value, "append") and not isinstance(value, str | bytes) else [value]
        for one in several:
            if hasattr(one, "ListFields"):
                yield from strings(one, f"{path}.{field.name}")
            elif isinstance(one, str):
                yield f"{path}.{field.name}", one


def shown(page: AppTest) -> list[tuple[str, str]]:
    """The texts of all elements and containers."""
    found = []
    waiting: list[Any] = [page._tree]
    while waiting:
        node = waiting.pop()
        waiting += getattr(node, "children", {}).values()
        if getattr(node, "proto", None) is not None:
            found += [(f"{type(node).__name__}{path}", text) for path, text in strings(node.proto)]
    return found


def active(texts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The texts in which something of a stranger's is markup."""
    found = []
    for path, text in texts:
        wrong = TAGS.search(text) if path.startswith("Html") else ACTIVE.search(CODE.sub("", text))
        if wrong and path.split(".")[-1] not in LITERAL:
            found.append((path, text))
    return found


def plainly(page: AppTest, *expected: str) -> None:
    """Nothing on the page is markup of a stranger's, and these names are there to be read."""
    quiet(page)
    texts = shown(page)
    assert not active(texts)
    figures = [text for path, text in texts if path.endswith("spec")]
    assert not [text for text in figures if "<img" in text or "\\u003cimg" in text or "<a " in text]
    markdown = "\n".join(re.sub(r"\\(.)", r"\1", text) for path, text in texts if path.split(".")[-1] not in LITERAL)
    for name in expected:
        assert name in markdown, name


def test_browse(strangers: Strangers) -> None:
    page = start(strangers.folder, feature=f"{LINK}:3")
    plainly(page, f"{LINK}, latent 3", IMAGE, LINK)
    page.selectbox(key="dictionary").set_value(IMAGE).run()
    plainly(page)


def test_steer(strangers: Strangers) -> None:
    edits = [wb.Clamp(strangers.sae.feature(1), 2.0)]
    from shared import edits as page_edits

    state = {"rows": [page_edits.Row(0, one) for one in edits]}
    plainly(visit("steer", strangers.folder, state), LINK)


def test_a_link_to_another_model(strangers: Strangers) -> None:
    page = start(strangers.folder, feature=f"{IMAGE}:3", model=f"{IMAGE}@{LINK}")
    assert not page.exception
    assert [error for error in page.error if IMAGE in re.sub(r"\\(.)", r"\1", error.value)]
    assert not active(shown(page))


def test_train(strangers: Strangers) -> None:
    page = visit("train", strangers.folder, {"run": LINK})
    plainly(page, LINK, IMAGE)
    page.selectbox(key="run").set_value("other").run()
    plainly(page)


def test_read(strangers: Strangers) -> None:
    text = f"{IMAGE} {LINK}"
    for colour in ("surprise", "features"):
        page = visit("read", strangers.folder, {"read text": text, "strip colour": colour})
        page.selectbox(key="read row").set_value("1").run()
        plainly(page)
    page.selectbox(key="open head").set_value(1).run()
    plainly(page)
    code = (APP / "read" / "grid.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|DOMParser|setHTML", code)


def test_surgery(strangers: Strangers) -> None:
    page = visit("train", strangers.folder)
    from surgery.panel import STEPS, Step

    page.session_state[STEPS] = [Step(strangers.child, "", {"folder": IMAGE}, IMAGE)]
    page.switch_page("surgery/page.py").run()
    plainly(page, IMAGE, LINK)
    page.text_input(key="surgery folder").set_value(IMAGE).run()
    page.button(key="surgery load").click().run()
    (error,) = page.error
    assert not ACTIVE.search(error.value)


def test_a_bad_name_in_an_error(strangers: Strangers) -> None:
    page = start(f"/nowhere/{IMAGE}")
    assert not page.exception
    assert not active(shown(page))


# ---- no page shows a name without it

SHOW = {"markdown", "caption", "error", "warning", "info", "success", "subheader", "header", "title", "write", "metric"}
SHOW |= {
    "button",
    "toggle",
    "checkbox",
    "page_link",
    "expander",
    "tabs",
    "spinner",
    "progress",
    "popover",
    "text_input",
}
SHOW |= {"text_area", "number_input", "selectbox", "multiselect", "slider", "toast", "status", "select_slider", "pills"}
SHOW |= {"segmented_control", "radio", "file_uploader", "download_button", "link_button"}
"""Functions of Streamlit that take Markdown, in their first argument or in one of `TAKES`."""
TAKES = {"label", "help", "text", "body"}
DECLARED = {
    "words of the app's own code, or of a class or an operation that is registered": """
        main.py:page.title main.py:entries[page].about steer/presets.py:preset.name steer/answer.py:head
        surgery/texts.py:head surgery/arguments.py:one.title shared/edits.py:strength.title
        train/new_training.py:one.title train/new_training.py:one.help circuits/ablated.py:title
        train/run_panel.py:title train/run_panel.py:help shared/latent_card.py:name browse/latent_query.py:noun
        browse/latent_query.py:label browse/latent_query.py:about browse/query.py:label browse/query.py:help
        attribution/node.py:label browse/search.py:word one.noun site SITES[site] side query.weights _part(low)
        name.title() ending.upper() train/new_training.py:_explained(kinds[word]) shared/background.py:stop
        shared/background.py:stopped shared/corpora.py:title compare/fidelity.py:stopped read/cell.py:name
        read/cell.py:about read/strip.py:MEANINGS[by] read/heads.py:title read/heads.py:about
        attribution/groups.py:title circuits/cell.py:title circuits/positions.py:words circuits/positions.py:title
        differences/result.py:title shared/examples.py:names corpora.FIRST""",
    "numbers": """
        layer feature.index latent shared/latent_card.py:number browse/latent_query.py:density result.examples tied
        browse/search.py:count surgery/panel.py:number circuits/ablated.py:size many compare/fidelity.py:texts
        compare/fidelity.py:spans sparsity/panel.py:texts sparsity/panel.py:rises shared/waiting.py:state[0]
        steer/curve.py:share read/neurons.py:cell.layer shared/examples.py:tokens""",
    "escaped by the function that makes it": """
        _tokens(model,sibling) _tokens(model,str(other)) _shown(hits) dictionaries.about(one) _summary(run)
        _summary(query,hits,index,one) browse/opening.py:opened
        browse/opening.py:made_for shared/edits.py:breakable certificate.to_markdown() browse/search.py:first
        steer/page.py:wrong browse/page.py:wrong shared/waiting.py:state[1] read/cell.py:words
        read/neurons.py:answer differences/result.py:link""",
    "one of a few constants": """
        surgery/saving.py:button steer/curve.py:start shared/latent_card.py:help
        browse/rules.py:button states/page.py:more""",
}
"""Expressions in such arguments that are no names of strangers, by the reason; those of one file behind its name."""


def unescaped(source: str, file: str = "") -> Iterator[str]:
    """The expressions in Markdown that neither go through `plain` nor are formatted as a number or declared."""
    known = {word for words in DECLARED.values() for word in words.split()}

    def parts(node: ast.expr) -> Iterator[str]:
        if isinstance(node, ast.JoinedStr):
            for value in node.values:
                if isinstance(value, ast.FormattedValue) and value.format_spec is None:
                    yield from parts(value.value)
        elif isinstance(node, ast.IfExp):
            yield from (*parts(node.body), *parts(node.orelse))
        elif isinstance(node, ast.BinOp):
            yield from (*parts(node.left), *parts(node.right))
        elif isinstance(node, ast.BoolOp):
            yield from (one for value in node.values for one in parts(value))
        elif not isinstance(node, ast.Constant | ast.List) and not (isinstance(node, ast.Name) and node.id.isupper()):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and call == "counted":  # a number with its word
                yield from (one for word in node.args[1:] for one in parts(word))
                return
            text = ast.unparse(node).replace(" ", "")
            if call not in ("plain", "len", "min", "max", "pages.script", "torch.tensor") and not known & {
                text,
                f"{file}:{text}",
            }:
                yield text

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SHOW:
            if ast.unparse(node.func.value) in ("answer", "machine"):  # methods of the same name
                continue
            for value in (*node.args[:1], *(word.value for word in node.keywords if word.arg in TAKES)):
                yield from parts(value)


def test_names_go_through_one_function() -> None:
    files = {str(file.relative_to(APP)): file.read_text() for file in APP.rglob("*.py")}
    found = [f"{file}:{one}" for file, source in files.items() for one in unescaped(source, file)]
    assert sorted(one for one in found if ".join(" not in one) == []
    assert len(found) <= 5, "joined parts are looked at by hand"
    assert list(unescaped("st.markdown(f'**{one.name}**')")) == ["one.name"]
    assert list(unescaped("st.button('a', help=f'{one.title}')", "shared/latent_card.py")) == ["one.title"]
    assert list(unescaped("st.caption(counted(3, one.name))")) == ["one.name"]
    assert not list(unescaped("st.caption(counted(len(texts), 'text'))"))
    assert not list(unescaped("st.markdown(f'**{plain(one.name)}** {number:,}')"))
    assert [file for file, source in files.items() if re.search(r"maketrans|def plain|unsafe_allow", source)] == []
