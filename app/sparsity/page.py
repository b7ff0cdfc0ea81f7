"""Sparsity: how many neurons a model can do without, the cost in perplexity, and which tokens need most."""

import caching
import streamlit as st
from shared import corpora, session
from shared.waiting import one_sentence, wait_for

from sparsity import neurons, panel, text
from sparsity.panel import INCREASES, SparsityRequest

NONE = "no other"
FEW = 2048  # tokens below which thresholds are coarse: each half has a thousand predictions or fewer


def show() -> None:
    """Draw the settings and the latest results."""
    model = session.current_model()
    source = st.session_state["source"]
    corpus, tokens, other, p, wanted = _ask(source)
    with one_sentence():
        models = [model]
        if other != NONE:
            models.append(wait_for(lambda: session.opening(other), f"Opening {other}"))
        names = [source, other][: len(models)]
        requests = [
            SparsityRequest(name, caching.as_placed(one), corpus, tokens)
            for name, one in zip(names, models, strict=True)
        ]
        if wanted:
            for request, one in zip(requests, models, strict=True):
                panel.begin(one, request)
        panel.show(requests, p)
        measured = [
            (one, request, results[INCREASES.index(p)])
            for one, request in zip(models, requests, strict=True)
            if (results := panel.known(request))
        ]
        if measured:
            text.show(*zip(*measured, strict=True))
            neurons.show(*measured[0])


def _ask(source: str) -> tuple[str, int, str, float, bool]:
    """The widgets: corpus, tokens, the second model, the allowed increase of perplexity; whether to measure."""
    others = [NONE, *(name for name in st.session_state["known models"] if name != source)]
    if st.session_state.get("sparsity other") not in others:
        st.session_state["sparsity other"] = NONE
    texts, count, beside, button = st.columns([3, 1.6, 3, 1.4], vertical_alignment="bottom")
    corpus = corpora.choose("sparsity corpus", texts)
    tokens = count.number_input(
        "Tokens",
        64,
        None,
        2048,
        1024,
        key="sparsity tokens",
        persist_state="session",
        help="Half to find the thresholds on, half to report on. More give narrower intervals and take longer.",
    )
    other = beside.selectbox(
        "Beside it", others, key="sparsity other", persist_state="session", help="A second model, on the same texts."
    )
    p = st.select_slider(
        "Perplexity may rise by",
        INCREASES,
        0.01,
        format_func=lambda share: f"{share:.1%}",
        key="sparsity p",
        persist_state="session",
        help="The cost: how far the perplexity of the texts may rise when neurons are left out.",
    )
    wanted = button.button(
        "Measure", type="primary", icon=":material/blur_on:", width="stretch", key="measure sparsity"
    )
    if tokens < FEW:
        st.caption(
            f":material/info: {int(tokens):,} tokens are few: a rise of {p:.1%} may not be met, and the intervals are "
            f"wide. Take {FEW:,} or more for a number to rely on."
        )
    return corpus, int(tokens), other, p, wanted


if __name__ == "__main__":
    show()
