"""Laws of every registered intervention, on a tiny model: what a new one is held to the moment it exists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from pairs import PROMPT, TOKENS, latents
from torch import Tensor

import workbench as wb
from workbench.core.arguments import Argument
from workbench.dictionaries.codes import Change
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import places
from workbench.interventions import FeatureIntervention, InterventionKind, When, choices
from workbench.interventions.affine import NotAffineError
from workbench.interventions.features import dictionary_of
from workbench.interventions.protocol import features_of
from workbench.interventions.saved import from_dict, from_json, to_dict, to_json
from workbench.model.edits import EditError

Model = wb.model.LanguageModel


def shelf(model: Model) -> list[Dictionary]:
    """A dictionary of each sort: neurons behind a matrix and in front of one, latents, codes."""
    torch.manual_seed(5)
    book = wb.Codebook(d_in=32, n_codes=6, k=2)
    book.name, book.reads = "book", "blocks.1.hook_resid_post"
    book.writes = book.reads
    neurons = [dictionary_of(model, f"neurons.1.{site}:0") for site in ("up", "post")]
    return [*neurons, latents("on the residual stream"), book]


def cases(model: Model, kind: type[InterventionKind]) -> list[Any]:
    """Interventions of a kind: one for each way to use it on each dictionary that it fits, on an active feature."""
    if not issubclass(kind, FeatureIntervention):
        return [kind.example(model)]
    found = []
    for dictionary in shelf(model):
        reads, _ = places(dictionary, model)
        x = model.capture(TOKENS, [reads.name])[reads.name].flatten(2)
        index = int(dictionary.encode(x).dense().abs().sum((0, 1)).argmax())
        found += [one.make(dictionary.feature(index)) for one in choices(dictionary) if one.kind is kind]
    return found


def logits(model: Model, edits: list[Any]) -> Tensor:
    with model.intervening(edits):
        return model(TOKENS, prompt_length=PROMPT)


def declares_its_arguments(model: Model, kind: type[InterventionKind]) -> None:
    assert kind.title
    assert kind.about
    names = [one.name for one in kind.arguments]
    assert set(names) <= {one.name for one in fields(kind)}  # type: ignore[arg-type]
    for argument in kind.arguments:
        assert isinstance(argument, Argument)
        if argument.kind != "direction":
            argument.check(argument.default, EditError)
    assert cases(model, kind), "a way to use it"
    assert isinstance(kind.example(model), kind)


def changes_something(model: Model, kind: type[InterventionKind]) -> None:
    for one in cases(model, kind):
        assert not torch.equal(logits(model, [one]), model(TOKENS)), one


def neutral_values_change_no_bit(model: Model, kind: type[InterventionKind]) -> None:
    for one in cases(model, kind):
        for argument in kind.arguments:
            if argument.neutral is not None:
                same = replace(one, **{argument.name: argument.neutral})
                assert torch.equal(logits(model, [same]), model(TOKENS)), same


def outside_its_positions_nothing_changes(model: Model, kind: type[InterventionKind]) -> None:
    if not issubclass(kind, FeatureIntervention):
        return
    for one in cases(model, kind):
        _, writes = places(dictionary_of(model, one.feature), model)
        plain = model.capture(TOKENS, [writes.name])[writes.name]
        with model.intervening([one]):
            everywhere = model.capture(TOKENS, [writes.name])[writes.name]
        for rule in ("prompt", "generated", (0, 3, 7)):
            with model.intervening([replace(one, positions=rule)]):
                edited = model.capture(TOKENS, [writes.name], prompt_length=PROMPT)[writes.name]
            numbers = torch.arange(TOKENS.shape[1])
            inside = {"prompt": numbers < PROMPT, "generated": numbers >= PROMPT}.get(
                str(rule), torch.isin(numbers, torch.tensor((0, 3, 7)))
            )
            assert torch.equal(edited[:, ~inside], plain[:, ~inside]), (one, rule)
            torch.testing.assert_close(edited[:, inside], everywhere[:, inside], rtol=1e-5, atol=1e-5)


def nothing_remains(model: Model, kind: type[InterventionKind]) -> None:
    plain = model(TOKENS)
    for one in cases(model, kind):
        with pytest.raises(ZeroDivisionError), model.intervening([one]):
            1 / model(TOKENS).shape.index(len(TOKENS))  # the batch is the first axis, 0
        assert torch.equal(model(TOKENS), plain), one


def cached_and_uncached_generation_agree(model: Model, kind: type[InterventionKind]) -> None:
    for one in cases(model, kind):
        written = model.generate(TOKENS[0, :PROMPT], 5, interventions=[one], stop=False).tokens
        whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([written])], 1)
        with model.intervening([one]):
            uncached = model(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1]
        assert uncached.argmax(-1).tolist() == written, one


def survives_json(model: Model, kind: type[InterventionKind]) -> None:
    for one in cases(model, kind):
        some = [one, replace(one, positions=(1, 4))] if isinstance(one, FeatureIntervention) else [one]
        sources = [edit.feature.source for edit in some if isinstance(edit, FeatureIntervention)]
        back = from_json(model, to_json(model, some), sources)
        assert back == some
        assert [from_dict(to_dict(edit)) for edit in some] == some
        assert torch.equal(logits(model, back), logits(model, some))


def is_the_affine_map_that_it_states(model: Model, kind: type[InterventionKind]) -> None:
    """Of the feature's value, in float64."""
    values = torch.tensor([-3.0, 0.0, 0.25, 7.5], dtype=torch.float64)
    for one in cases(model, kind):
        settled = one.settle(model)
        affine = settled.as_affine() if isinstance(settled, FeatureIntervention) else None
        if affine is not None:
            change = settled.change(model, dictionary_of(model, settled.feature))
            assert isinstance(change, Change)
            torch.testing.assert_close(change.fn(values), affine.factor * values + affine.value)


def baked_equals_intervened(model: Model, kind: type[InterventionKind]) -> None:
    for one in cases(model, kind):
        try:
            one.settle(model).affine_changes(model)
        except NotAffineError:
            with pytest.raises(wb.surgery.BakeError, match="can't be baked"):
                wb.bake(model, [one])
            continue
        wanted = logits(model, [one])
        found = wb.bake(model, [one]).model(TOKENS)
        assert float((found - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.abs().max())), one


def is_written_in_python(model: Model, kind: type[InterventionKind]) -> None:
    """The call that a script shows makes an equal intervention."""
    for one in cases(model, kind):
        assert eval(one.to_python(), {kind.__name__: kind}) == one


def conditions(model: Model) -> list[When]:
    """One for each scope, on what the embeddings hold, which every intervention comes behind; some tokens meet it."""
    vector = torch.arange(1.0, model.network.d_model + 1).cos()
    x = model.capture(TOKENS, ["hook_embed"])["hook_embed"] @ vector / vector.square().sum()
    middle = float(x.flatten().sort().values[[x.numel() // 2 - 1, x.numel() // 2]].mean())
    scopes: tuple[Any, ...] = ("token", "onwards", "prompt")
    return [When.along("hook_embed", vector, above=middle, scope=scope) for scope in scopes]


def let_through(model: Model, when: When, prompt: int = PROMPT) -> Tensor:
    """Where a condition of `conditions` lets an edit act on `TOKENS`, by a loop."""
    vector = torch.tensor(when.direction)
    x = model.capture(TOKENS, ["hook_embed"])["hook_embed"] @ vector / vector.square().sum()
    found = torch.zeros(TOKENS.shape, dtype=torch.bool)
    for row, values in enumerate(x.tolist()):
        met = False
        for place, value in enumerate(values):
            here = value > when.above and (when.scope != "prompt" or place < prompt)
            met = here if when.scope == "token" else met or here
            found[row, place] = met
    return found


def acts_only_where_its_condition_holds(model: Model, kind: type[InterventionKind]) -> None:
    """At the hook points where it acts first, the conditional run is the plain one or the one of no condition."""
    for one in cases(model, kind):
        for when in conditions(model):
            held = let_through(model, when)
            assert held.any()
            assert not held.all()
            name = next(edit for edit in model.bind([one]) if not edit.reads_only).hook_point
            plain = model.capture(TOKENS, [name])[name]
            with model.intervening([one]):
                everywhere = model.capture(TOKENS, [name])[name]
            with model.intervening([replace(one, when=when)]):
                edited = model.capture(TOKENS, [name], prompt_length=PROMPT)[name]
            assert torch.equal(edited[~held], plain[~held]), (one, when)
            torch.testing.assert_close(edited[held], everywhere[held], rtol=1e-5, atol=1e-5)


def under_a_condition_runs_agree(model: Model, kind: type[InterventionKind]) -> None:
    """With the cache and without, in a batch of unequal rows, as a stream and as JSON; one never met changes no bit."""
    one, whens = cases(model, kind)[0], conditions(model)
    never = replace(whens[0], above=1e6)
    assert torch.equal(logits(model, [replace(one, when=never)]), model(TOKENS))
    for when in whens:
        edit = replace(one, when=when)
        prompts = [TOKENS[0, :PROMPT], TOKENS[1, : PROMPT - 3]]
        alone = [model.generate(prompt, 5, interventions=[edit], stop=False).tokens for prompt in prompts]
        both = model.generate_batch(prompts, 5, interventions=[edit], stop=False)
        assert [row.tokens for row in both] == alone
        whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([alone[0]])], 1)
        with model.intervening([edit]):
            uncached = model(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1]
        assert uncached.argmax(-1).tolist() == alone[0], edit
        sources = [feature.source for feature in features_of(edit)]
        assert from_json(model, to_json(model, [edit]), sources) == [edit]
        assert eval(edit.to_python(), {kind.__name__: kind, "When": When}) == edit
        with pytest.raises(wb.surgery.BakeError, match="can't be baked: it acts when"):
            wb.bake(model, [edit])


LAWS: list[Callable[[Model, type[InterventionKind]], None]] = [
    declares_its_arguments,
    changes_something,
    neutral_values_change_no_bit,
    outside_its_positions_nothing_changes,
    nothing_remains,
    cached_and_uncached_generation_agree,
    survives_json,
    is_the_affine_map_that_it_states,
    baked_equals_intervened,
    is_written_in_python,
    acts_only_where_its_condition_holds,
    under_a_condition_runs_agree,
]
