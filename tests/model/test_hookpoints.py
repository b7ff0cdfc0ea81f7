"""Names of hook points: which there are, how wide, and what is suggested for a wrong one."""

import re

import pytest

import workbench as wb
from workbench.model.hookpoints import HookPoint, HookPoints

POINTS = HookPoints(
    HookPoint(name, (8,))
    for name in [
        "hook_embed",
        *(f"blocks.{n}.{part}" for n in range(12) for part in ("hook_resid_pre", "attn.hook_z", "mlp.hook_post")),
        "ln_final.hook_out",
    ]
)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("blocks.3.hook_resid_per", "blocks.3.hook_resid_pre"),
        ("blocks.11.mlp.hook_pots", "blocks.11.mlp.hook_post"),
        ("blocks.99.mlp.hook_post", "blocks.11.mlp.hook_post"),
        ("blocks.12.attn.hook_z", "blocks.11.attn.hook_z"),
        ("block.4.attn.hook_z", "blocks.4.attn.hook_z"),
        ("blocks.5.attn.hook_Z", "blocks.5.attn.hook_z"),
        ("blocks.attn.hook_z", "blocks.0.attn.hook_z"),
        ("embed", "hook_embed"),
        ("ln_final", "ln_final.hook_out"),
    ],
)
def test_nearest_name(wrong: str, right: str) -> None:
    assert POINTS.nearest(wrong) == right
    with pytest.raises(wb.model.HookPointError) as caught:
        POINTS[wrong]
    assert str(caught.value) == f"The model has no hook point {wrong!r}; did you mean {right!r}?"


def test_a_name_like_nothing_gets_no_suggestion() -> None:
    assert POINTS.nearest("zzzzzzzzzz") is None
    with pytest.raises(wb.model.HookPointError, match=r"^The model has no hook point 'zzzzzzzzzz'\.$"):
        POINTS["zzzzzzzzzz"]


@pytest.mark.parametrize(
    ("name", "others", "right"),
    [
        ("blocks.1.hook_mlp_in", ["ln2.hook_in", "mlp.hook_in", "hook_in"], "blocks.1.ln2.hook_in"),
        ("blocks.1.hook_mlp_in", ["mlp.hook_in", "hook_in"], "blocks.1.mlp.hook_in"),
        ("blocks.1.hook_attn_in", ["ln1.hook_in", "hook_in"], "blocks.1.ln1.hook_in"),
        ("blocks.1.attn.hook_result", ["attn.hook_z", "attn.hook_out"], None),
        ("blocks.1.hook_resid_mid", ["hook_resid_pre", "hook_resid_post"], None),
        ("blocks.1.ln2.hook_out", ["ln1.hook_out"], None),
        ("blocks.1.ln2.hook_otu", ["ln1.hook_out", "ln2.hook_out"], "blocks.1.ln2.hook_out"),
        ("blocks.7.ln2.hook_out", ["ln1.hook_out", "ln2.hook_out"], "blocks.1.ln2.hook_out"),
    ],
)
def test_what_a_model_does_not_compute_gets_no_other_thing(name: str, others: list[str], right: str | None) -> None:
    points = HookPoints(HookPoint(f"blocks.{layer}.{other}", (4,)) for layer in range(2) for other in others)
    assert points.nearest(name) == right
    said = f"did you mean '{right}'" if right else "which it does not compute; see model.hook_points."
    with pytest.raises(wb.model.HookPointError, match=re.escape(said)):
        points[name]


def test_mapping() -> None:
    assert len(POINTS) == len(list(POINTS)) == 38
    assert list(POINTS)[:2] == ["hook_embed", "blocks.0.hook_resid_pre"]
    assert "blocks.3.attn.hook_z" in POINTS
    assert "blocks.12.attn.hook_z" not in POINTS
    assert POINTS.get("nope") is None
    assert HookPoint("x", (3, 4)).width == 12


WIDTHS = {  # what SmolLM2-135M is known to be: d_model 576, d_mlp 1,536, 9 heads and 3 key-value heads of 64
    "hook_embed": (576,),
    "hook_resid_pre": (576,),
    "hook_resid_mid": (576,),
    "hook_resid_post": (576,),
    "hook_attn_out": (576,),
    "hook_mlp_out": (576,),
    "attn.hook_q": (9, 64),
    "attn.hook_k": (3, 64),
    "attn.hook_v": (3, 64),
    "attn.hook_z": (9, 64),
    "mlp.hook_pre": (1536,),
    "mlp.hook_pre_linear": (1536,),
    "mlp.hook_post": (1536,),
    "ln1.hook_normalized": (576,),
}


@pytest.mark.real
def test_default_model_has_the_usual_names(model: wb.model.LanguageModel) -> None:
    for part, shape in WIDTHS.items():
        layers = [""] if part == "hook_embed" else [f"blocks.{layer}." for layer in range(30)]
        for layer in layers:
            assert model.hook_points[layer + part].shape == shape
    with pytest.raises(wb.model.HookPointError, match=r"did you mean 'blocks\.29\.hook_resid_post'\?"):
        model.hook_points["blocks.30.hook_resid_post"]
