"""Directions: files of repeng, steering-vectors and lm-eval, and what they do to a model.

`tests/fixtures/directions` is written by repeng and steering-vectors (`scripts/make_direction_fixtures.py`), with the
logits of their own steered models. With WORKBENCH_REPENG_PYTHON, an environment that has them, repeng opens what we
write.
"""

from __future__ import annotations

import os
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.directions import Direction, DirectionError, load_direction
from workbench.interventions.saved import from_json, to_json
from workbench.model import EditError

HERE = Path(__file__).parents[1] / "fixtures" / "directions"
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_direction_fixtures.py"
PEER = os.environ.get("WORKBENCH_REPENG_PYTHON")
EXPECTED = load_file(HERE / "expected.safetensors")
TOKENS = EXPECTED["tokens"]


def vector(seed: int, width: int = 32) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def logits(model: wb.model.LanguageModel, edits: list[Any]) -> torch.Tensor:
    with model.intervening(edits):
        return model(TOKENS[None])[0]


@pytest.mark.parametrize(("file", "amount", "layers"), [("control.gguf", 1.5, (1, 2)), ("steering.pt", 2.0, (0, 2))])
def test_a_vector_of_another_tool_steers_as_it_does_there(
    llama: wb.model.LanguageModel, file: str, amount: float, layers: tuple[int, ...]
) -> None:
    torch.testing.assert_close(logits(llama, []), EXPECTED["plain"], rtol=0, atol=1e-5)
    direction = load_direction(HERE / file)
    assert direction.hook_points == [f"blocks.{layer}.hook_resid_post" for layer in layers]
    edit = wb.Steer.along(direction, amount)
    expected = EXPECTED[Path(file).stem]
    assert float((expected - EXPECTED["plain"]).abs().max()) > 0.1
    torch.testing.assert_close(logits(llama, [edit]), expected, rtol=0, atol=1e-5)
    (back,) = from_json(llama, to_json(llama, [edit]))
    assert back == edit
    child = wb.bake(llama, [edit])
    torch.testing.assert_close(child.model(TOKENS[None])[0], expected, rtol=0, atol=1e-4)


def test_a_layer_is_counted_from_0_and_its_output_is_steered(llama: wb.model.LanguageModel) -> None:
    direction = load_direction(HERE / "control.gguf").at("blocks.1.hook_resid_post")
    plain = tiny.build("llama")
    added = 3.0 * torch.tensor(GGUFReader(HERE / "control.gguf").tensors[0].data)
    plain.model.layers[1].register_forward_hook(
        lambda _, __, out: (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added
    )
    with torch.no_grad():
        wanted = plain(TOKENS[None]).logits[0]
    torch.testing.assert_close(logits(llama, [wb.Steer.along(direction, 3.0)]), wanted, rtol=0, atol=1e-5)
    by_feature = logits(llama, [wb.Steer(direction.feature, 3.0)])
    torch.testing.assert_close(by_feature, wanted, rtol=0, atol=1e-5)


def test_the_value_of_a_feature_is_the_projection(llama: wb.model.LanguageModel) -> None:
    direction = Direction({"blocks.1.hook_resid_post": vector(1)}, "sad")
    assert str(direction.feature) == "sad:0"
    x, v = vector(2), vector(1)
    (value,) = direction.dictionary.encode(x).values.tolist()
    assert value == pytest.approx(float(x @ v / (v @ v)), rel=1e-5)
    seen: list[torch.Tensor] = []
    plain = tiny.build("llama")
    plain.model.layers[1].register_forward_hook(
        lambda _, __, out: seen.append((out[0] if isinstance(out, tuple) else out).detach())
    )
    with torch.no_grad():
        plain(TOKENS[None])
    rest = seen[0] - (seen[0] @ v / (v @ v))[..., None] * v  # nothing along the vector, then 2 of it
    plain.model.layers[1].register_forward_hook(
        lambda _, __, out: (rest + 2 * v, *out[1:]) if isinstance(out, tuple) else rest + 2 * v
    )
    with torch.no_grad():
        wanted = plain(TOKENS[None]).logits[0]
    torch.testing.assert_close(logits(llama, [wb.Clamp(direction.feature, 2.0)]), wanted, rtol=0, atol=1e-4)


def test_a_saved_direction_comes_back(tmp_path: Path) -> None:
    points = ("blocks.10.hook_resid_post", "blocks.2.hook_resid_post")
    direction = Direction(
        {point: vector(place) for place, point in enumerate(points)}, "sad", "tiny", {"model_type": "llama"}
    )
    other = Direction({"blocks.1.mlp.hook_out": vector(3), "blocks.0.hook_resid_pre": vector(4, 8)}, "odd")
    for one, name in ((direction, "sad.gguf"), (direction, "sad.safetensors"), (other, "odd.safetensors")):
        one.save(tmp_path / name)
        (-one).save(tmp_path / name)  # over one of its own
        one.save(tmp_path / name)
        back = load_direction(tmp_path / name)
        assert back.hook_points == one.hook_points
        assert all(torch.equal(back.vectors[point], one.vectors[point]) for point in one.vectors)
        assert (back.name, back.model_name, back.provenance) == (one.name, one.model_name, one.provenance)
    reader = GGUFReader(tmp_path / "sad.gguf")
    assert {one.name: one.data.tolist() for one in reader.tensors} == {
        f"direction.{layer}": direction.vectors[point].tolist() for layer, point in zip((10, 2), points, strict=True)
    }
    assert reader.fields["controlvector.layer_count"].contents() == 2
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    if PEER:
        said = subprocess.run([PEER, str(SCRIPT), "check", str(tmp_path / "sad.gguf")], check=True, capture_output=True)
        rows = {int(row.split()[0]): [*map(float, row.split()[1:])] for row in said.stdout.decode().splitlines()}
        assert rows == {
            layer: pytest.approx(direction.vectors[point].tolist(), rel=1e-6)
            for layer, point in zip((10, 2), points, strict=True)
        }


def control(path: Path, arch: str = "controlvector", **tensors: Any) -> Path:
    writer = GGUFWriter(str(path), arch)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Pickled:
    """What a pickle may hold."""


def steered(**changes: Any) -> dict[str, Any]:
    entry = {"steering_vector": vector(1), "steering_coefficient": 2.0, "action": "add", "bias": None}
    return {"layers.1": entry | changes}


def test_lm_evals_vectors_are_read_times_their_coefficient(tmp_path: Path) -> None:
    content = {**steered(), "layers.2.mlp": {"steering_vector": vector(2)[None], "action": "add", "head_index": None}}
    torch.save(content, tmp_path / "steer.pt")
    read = load_direction(tmp_path / "steer.pt")
    assert read.hook_points == ["blocks.1.hook_resid_post", "blocks.2.mlp.hook_out"]
    torch.testing.assert_close(read.vectors["blocks.1.hook_resid_post"], 2 * vector(1))
    torch.testing.assert_close(read.vectors["blocks.2.mlp.hook_out"], vector(2))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (steered(action="clamp"), "does not add a vector"),
        (steered(bias=vector(1)), "does not add a vector"),
        (steered(head_index=1), "does not add a vector"),
        (steered(scale=1.0), "'scale', which lm-eval does not know"),
        (steered(steering_coefficient="2"), "coefficient of 'layers.1' is no number"),
        (steered(steering_vector=torch.ones(2, 32)), "is no vector"),
        (steered(steering_vector=torch.ones(32, dtype=torch.int64)), "is no vector"),
        (steered(steering_vector=torch.zeros(32)), "is zero or not finite"),
        (steered(steering_vector=torch.full((32,), torch.nan)), "is zero or not finite"),
        (steered() | {"model.layers.1": steered()["layers.1"]}, "two of its modules are at"),
        ({"layers.1.post_attention_layernorm": steered()["layers.1"]}, "is not the name of a block"),
        ({"layer_activations": {0: vector(1)}, "layer_type": "input_layernorm"}, "differs between architectures"),
        ({"layer_activations": {"0": vector(1)}, "layer_type": "mlp"}, "not numbered from 0"),
        ({"layer_activations": {}, "layer_type": "mlp"}, "holds no vector"),
        ({"vector": vector(1)}, "neither lm-eval's"),
        ([vector(1)], "neither lm-eval's"),
        (Pickled(), "holds more than tensors and plain data"),
        (OrderedDict(a=Pickled()), "holds more than tensors and plain data"),
    ],
)
def test_what_is_no_sum_of_vectors_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "steer.pt")
    with pytest.raises(DirectionError, match=words) as caught:
        load_direction(tmp_path / "steer.pt")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_direction_are_refused(tmp_path: Path) -> None:
    ones = vector(1).numpy()
    for path, words in (
        (control(tmp_path / "a.gguf", "llama", **{"direction.1": ones}), "holds 'llama', not a control vector"),
        (control(tmp_path / "b.gguf", **{"direction.x": ones}), "holds 'direction.x'"),
        (control(tmp_path / "c.gguf", **{"direction.1": ones[None]}), r"'direction.1' \[1, 32\]"),
        (control(tmp_path / "d.gguf"), "holds no vector"),
        (control(tmp_path / "e.gguf", **{"direction.1": ones.astype("int8")}), "packed type"),
        (tmp_path / "none.gguf", "no file"),
        (tmp_path / "x.npz", "is a file .gguf, .safetensors or .pt"),
    ):
        with pytest.raises(DirectionError, match=words):
            load_direction(path)
    assert torch.equal(
        load_direction(control(tmp_path / "f.gguf", **{"direction.1": ones.astype("float16")})).vectors[
            "blocks.1.hook_resid_post"
        ],
        vector(1).half().float(),
    )
    (tmp_path / "short.gguf").write_bytes((HERE / "control.gguf").read_bytes()[:-40])
    with pytest.raises(DirectionError, match="cut off"):
        load_direction(tmp_path / "short.gguf")
    save_file({"blocks.1.hook_resid_post": vector(1)}, tmp_path / "g.safetensors")
    with pytest.raises(DirectionError, match="says of no tensor where it belongs"):
        load_direction(tmp_path / "g.safetensors")


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    direction = Direction({"blocks.1.hook_resid_post": vector(1)}, "sad")
    for name in ("sad.gguf", "sad.safetensors"):
        direction.save(tmp_path / name)
        data = bytearray((tmp_path / name).read_bytes())
        data[-1] ^= 1
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DirectionError, match="altered after it was saved"):
            load_direction(tmp_path / name)


def test_what_holds_no_direction_is_not_replaced(tmp_path: Path) -> None:
    direction = Direction({"blocks.1.hook_resid_post": vector(1)}, "sad")
    model = control(tmp_path / "model.gguf", "llama", **{"output.weight": vector(1).numpy()})
    save_file({"a": vector(1)}, tmp_path / "weights.safetensors")
    for path in (model, tmp_path / "weights.safetensors"):
        before = path.read_bytes()
        with pytest.raises(DirectionError, match="left as it is"):
            direction.save(path)
        assert path.read_bytes() == before
    with pytest.raises(DirectionError, match=r"saved as \.gguf or \.safetensors"):
        direction.save(tmp_path / "sad.pt")
    with pytest.raises(DirectionError, match="added to outputs of blocks"):
        Direction({"blocks.1.hook_mlp_out": vector(1)}).save(tmp_path / "mlp.gguf")
    with pytest.raises(DirectionError, match="differ in width"):
        Direction({"blocks.1.hook_resid_post": vector(1), "blocks.2.hook_resid_post": vector(1, 8)}).save(
            tmp_path / "two.gguf"
        )


def test_a_direction_for_another_model_is_refused(llama: wb.model.LanguageModel) -> None:
    several = load_direction(HERE / "control.gguf")
    with pytest.raises(DirectionError, match=r"choose one with \.at\('blocks\.1"):
        _ = several.feature
    with pytest.raises(DirectionError, match="has no vector at"):
        several.at("blocks.0.hook_resid_post")
    wide = Direction({f"blocks.{layer}.hook_resid_post": vector(1, 48) for layer in range(3)})
    with pytest.raises(EditError, match=r"has 144 values, but .* is 32 wide and .*, and 1 more"):
        logits(llama, [wb.Steer.along(wide, 1.0)])
    with pytest.raises(EditError, match="takes no other direction"):
        wb.Steer.along(several, [1.0], 2.0)  # type: ignore[arg-type]
    for vectors in ({}, {"a": torch.zeros(3)}, {"a": torch.ones(2, 2)}, {"a": torch.ones(2, dtype=torch.int64)}):
        with pytest.raises(DirectionError):
            Direction(vectors)
