"""Every public function refuses what it can't mean in one sentence of the package's own, and takes nothing in silence.

Each argument of a small valid call is replaced by values that nobody means. The suite tries a seeded sample of the
calls; `make fuzz` tries all of them (`WORKBENCH_FUZZ=0`).
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import random
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fuzz_examples import FUNCTIONS, METHODS, OBJECTS, World, public
from fuzz_values import SUSPECT, VALUES, meant, parameters, short, wrong_sentence
from shown import faults

import workbench as wb
from workbench.core.display import Shown

pytestmark = pytest.mark.usefixtures("tiny_cache")

CASES = int(os.environ.get("WORKBENCH_FUZZ", "600"))
"""Calls to try; 0 for all of them."""
SEED = int(os.environ.get("WORKBENCH_FUZZ_SEED", "0"))
"""Of the sample."""
ROOM = 3 << 30
"""Bytes of memory that the calls may take."""
PATIENCE = 20
"""Seconds that a call may take."""

NOT_CALLED = {
    "core",
    "figures",
}
"""Rooms without functions that take what a person writes."""
RECORDS = {
    "attribution": "DeEmbedding Edge Graph GroupVerification HeadDrive Node Supernodes TokenScores Verification "
    "ViewerGraph ViewerLink ViewerNode",
    "circuits": "AlignedPair Alignment DiscreteCircuit EncodedTask GroundTruth OpenedCell PatchingResult "
    "PositionPatching ScoreEvaluation TaskResult",
    "corpus": "TokenBatch",
    "differences": "DecodingDifference DictionaryDifference Difference EditDifference Graft LatentDifference "
    "LayerDifference ModelDifferences Passage TensorDifference TextDifferences UnitDifference WeightDifferences",
    "directions": "Probe Separation",
    "dictionaries": "Codes Dictionary Step Trainable",
    "evaluation": "Estimate TextSums",
    "harvest": "Activations Source",
    "index": "Example Explanations ExportedExample ExportedFeature ExportedLabel Families FeatureExport "
    "FeatureCard FeatureHit FeatureIndex FeatureLabel Histogram Matches Neighbour Partner QuantileExample RegexScore "
    "Remark TokenFeatures TokenScore TokenTable",
    "interventions": "Choice FeatureIntervention InterventionKind",
    "findings": "Ablation Finding Scan",
    "labels": "LabelScores Score",
    "lens": "AttendedPair Attention Doubt EarlyExit HeadCard HeadHit HeadScores JacobianLens Lens LensFidelity "
    "LensGrid LensRecord LogitAttribution Share TextWords TunedLens WrittenTokens",
    "measures": "Comparison Fidelity",
    "neurons": "NeuronTable",
    "sparsity": "Sparsity SparsityOutcome",
    "steering": "DirectionSearch DirectionTrial",
    "surgery": "Certificate Child",
    "synthetic": "StateCounts",
}
"""Classes that functions return, and bases: nobody calls their constructors."""
SILENT = {
    "Source": "a protocol",
    "TextSums": "sums inside a measure",
    "TokenTable": "the tokens of an index",
    "FeatureIntervention": "written as the call that makes it",
    "InterventionKind": "written as the call that makes it",
}
"""Records that are no results, with what they are."""
FOR_ROOMS = {
    "LanguageModel": "is_named take_hash",
    "TopKSAE": "adopt begin calibrate centre config constrain encode_stage force from_config fields initialise "
    "intervene is_named reconstruct_stage "
    "kind_called loss_and_gradients origin parameter_groups pre_activations resample splice splice_terms take_origin "
    "tensors widen",
    "Codebook": "adopt begin calibrate check direction drawn_like feature force from_config group_of initialise "
    "intervene is_named kind_called loss_and_gradients origin parameter_groups pass_through prepare resample save "
    "encode_stage reconstruct_stage splice splice_terms take_origin widen write",
    "KeyValueBottleneck": "check direction feature force from_config intervene is_named kind_called reconstruct save "
    "encode_stage reconstruct_stage splice write",
    "JacobianLens": "carried check_model fits from_tensors kind_called to transport",
    "TunedLens": "carried check_model fits from_tensors kind_called to transport",
    "Harvest": "collect",
    "Steer": "affine_changes bind change condition edits example fits from_settings settle to_python value_change "
    "variants",
    "Store": "settings",
}
"""Methods that the package's own rooms call with what they have checked, by class."""
SLOW = {"surgery.verify_checkpoint", "Child.save_pretrained", "interventions.save_model", "surgery.open_child"}
"""Not in the sample of the suite."""
REFUSED = {"circuits.docstring", "circuits.greater_than", "circuits.ioi", "steering.lm_eval_model"}
"""Needs a package of its own, or the tiny model's tokenizer has no words for them."""

TEXTS = {"an empty text", "a NUL", "a long text", "a word"}
TEXTS_OF = {"a list of a NUL", "a list of empty texts"}
LISTS = {"an empty list", "an empty range", "an empty mapping"}
PASSES: dict[str, set[str]] = {
    "seed skip written start keep max_latents heads epochs distractors last n index id layer head row rank state": {
        "0"
    },
    "min_precision min_recall max_rank warmup decay sparsity_warmup auxiliary l0 l1 weight smoothing of text_id": {"0"},
    "examples top factor rest rise fall step steps until sparsity distance loss bits": {"0"},
    "min_new_tokens": {"0"},
    "commit_every checkpoint_every temperature": {"0", "3e38"},
    "above below": {"0", "-1", "3e38"},
    "value factor amount mean min_score commit_every checkpoint_every weight lr clip values": {"0", "-1", "3e38"},
    "rise fall step steps": {"0", "-1", "3e38"},
    "name about slug scan of note label text source word prompt message messages target": TEXTS,
    "hook_point model_name reads writes dictionary hash token column pattern only": TEXTS,
    "texts names words labels": {"a word", "an empty text"},
    "edits interventions dictionaries indexes keep layers pinned tasks note about config beside": LISTS,
    "source interventions heads edges per_part sparsities spliced baselines picked kinds direction": LISTS,
    "keep pinned layers": {"a list of -1", "a long list"},
    "tokens positions written": {"a long list"},
    "texts": {"a list of a NUL", "a list of empty texts"},
    "TokFSM.walk.seed after": {"a long list", "an empty list", "an empty range"},
    "LanguageModel.capture.tokens": {"a NUL", "a long text"},
    "surgery.dare.weights LanguageModel.text_pieces.after": {"a list of -1"},
    "LanguageModel.prompt_batch.prompts LanguageModel.generate_batch.prompts": {"a list of a NUL"},
    "positions": {"0", "a set", "2**31"},
    "value factor amount mean above below thresholds": {"2**63", "10**400"},
    "thresholds": {"0", "a half", "1e39", "1e-320", "3e38", "2**31", "a tensor of no axis", "a tensor of three"},
    "at_most target source interventions.Limit.share": {"0"},
    "steering.PatternShare.prompts steering.Projection.prompts steering.Repetition.prompts": TEXTS_OF,
    "steering.WordProbability.prompts steering.WordProbability.words steering.Divergence.texts": TEXTS_OF,
    "steering.Perplexity.texts steering.optimise_direction.prompts": TEXTS_OF,
    "steering.Projection.vector": {"a list of -1", "a long list"},
    "steering.optimise_direction.continuation": {"a NUL", "a word"},
    "steering.WordProbability.words": {"a NUL", "a long text", "a word"},
    "steering.search_direction.checkpoint": {"a word"},
    "lens.attribute_logit.position start_tokens": {"0"},
    "lens.head_card.sources": {"a list of a NUL", "a long list"},
    "Doubt.spans.at_most": {"0", "-1", "3e38", "2**63", "10**400"},
    "sign position": {"-1"},
    "Graph.prune.keep ViewerGraph.prune.keep": {"a set"},
    "JacobianLens.swap.first JacobianLens.swap.second LensGrid.rank.token LensGrid.log_probability.token": {"0"},
    "circuits.EmbeddingNoise.place": TEXTS,
    "differences.compare_models.parts": {"an empty list", "an empty range"},
    "labels.output_score.prompts": {"a list of a NUL"},
    "differences.compare_models.prompts": {"an empty list", "an empty range", "a list of a NUL"},
    "circuits.EmbeddingNoise.scale": {"3e38"},
    "circuits.align_prompts.answers circuits.align_prompts.wrong": {
        "an empty list",
        "an empty range",
        "a list of a NUL",
    },
    "circuits.align_prompts.spans circuits.align_task.spans": {"an empty mapping"},
    "evaluation.repetition.tokens directions.Direction.provenance": LISTS,
    "measures.dose_response.values": {*LISTS, "a list of -1", "a long list"},
    "synthetic.state_column.written index.text_ends.texts": LISTS,
    "LanguageModel.text_pieces.tokens LanguageModel.token_texts.tokens LanguageModel.to_text.tokens": LISTS,
    "LanguageModel.token_labels.tokens": LISTS,
    "circuits.Task.positives circuits.Task.negatives circuits.Task.answers circuits.Task.wrong": {"a list of a NUL"},
    "model.Sampling.stop": {"a list of a NUL"},
    "attribution.attribute.position attribution.attribute.first": {"0"},
    "TopKSAE.to.device Codebook.to.device KeyValueBottleneck.to.device": {"None"},
    "hook_points counted picked transcoders": LISTS,
    "folder path": {"a word"},
    "direction": {
        "an empty tensor",
        "a tensor of three",
        "a tensor of whole numbers",
        "a double tensor",
        "a list of -1",
        "a long list",
    },
}
"""Values that arguments of these names may have, for a reason: a seed of 0, a name of any letters, a pattern that
`heal` checks against the model, a direction that `bind` does."""


def rooms() -> Iterator[tuple[str, ModuleType]]:
    """The rooms of the public face."""
    for name in wb.__all__:
        value = getattr(wb, name)
        if isinstance(value, ModuleType) and name not in NOT_CALLED:
            yield name, value


def public_functions() -> dict[str, Any]:
    """Every public function and constructor by room and name, without errors and records."""
    found = {}
    for room, module in rooms():
        for name, value in public(module):
            record = name in RECORDS.get(room, "").split()
            error = isinstance(value, type) and issubclass(value, BaseException)
            if parameters_of(value) and not record and not error and not getattr(value, "_is_protocol", False):
                found[f"{room}.{name}"] = value
    known = [*found.values(), *(class_called(name) for names in RECORDS.values() for name in names.split())]
    for name, value in public(wb):
        if not any(value is one for one in known) and not issubclass(type(value), type):
            found[f"wb.{name}"] = value
    return found


def public_methods() -> dict[str, str]:
    """Every public method with arguments of the classes in `OBJECTS`, by class and method."""
    found = {}
    for kind in OBJECTS:
        cls = class_called(kind)
        for one in cls.__mro__:
            if one.__module__.startswith("workbench."):
                for name, function in public(one):
                    if inspect.isfunction(function) and len(parameters_of(function)) > 0:
                        found[f"{kind}.{name}"] = name
    return {key: name for key, name in found.items() if name not in FOR_ROOMS.get(key.split(".")[0], "").split()}


def class_called(name: str) -> type:
    """A public class."""
    return next(getattr(module, name) for _, module in rooms() if hasattr(module, name))


def parameters_of(function: Any) -> list[str]:
    with contextlib.suppress(ValueError, TypeError):
        names = list(inspect.signature(function).parameters)
        return [name for name in names if name not in ("self", "cls")]
    return []


def test_every_public_function_has_an_example() -> None:
    missing = sorted({*public_functions(), *public_methods()} - {*FUNCTIONS, *METHODS})
    assert not missing, f"Give each a small valid call in tests/laws/fuzz_examples.py: {', '.join(missing)}"


def test_a_new_function_is_asked_for_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted measure: every law over public functions knows it, and says what to add."""

    def count(model: Any, cancel: Any = None) -> int:
        return model.network.n_layers

    count.__module__ = "workbench.measures.count"
    monkeypatch.setattr(wb.measures, "count", count, raising=False)
    assert "measures.count" in public_functions()
    with pytest.raises(AssertionError, match=r"a small valid call in tests/laws/fuzz_examples\.py: measures\.count"):
        test_every_public_function_has_an_example()


def callable_of(key: str, world: World) -> Callable[..., Any]:
    first, name = key.split(".")
    if key in METHODS:
        return getattr(OBJECTS[first](world), name)
    return getattr(wb if first == "wb" else getattr(wb, first), name)


def call(function: Callable[..., Any], how: dict[str, Any]) -> Any:
    """Call it and read what it returns: some items of an iterator, the inside of a context."""
    result = function(**how)
    if inspect.isgenerator(result):
        list(itertools.islice(result, 3))
        result.close()
    elif isinstance(result, contextlib._GeneratorContextManager):
        with result:
            pass
    return result


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """A limit on what is asked of the memory, so that no size takes the machine down."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def patience() -> Iterator[None]:
    def over(*_: Any) -> None:
        raise TimeoutError(f"it took more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def allowed(key: str, name: str, label: str) -> bool:
    """Whether a suspect value of an argument is meant."""
    return any(label in labels for names, labels in PASSES.items() if {name, f"{key}.{name}"} & set(names.split()))


def complaint(key: str, world: World, name: str, form: Any, label: str) -> str:
    """What is wrong with the outcome of one call; empty where nothing is."""
    example = FUNCTIONS.get(key) or METHODS[key]
    value = VALUES[label]()
    how = example(world) | {name: value}
    where = f"{key}({name}={label})"
    try:
        with patience(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(callable_of(key, world), how)
    except wb.WorkbenchError as error:
        wrong = wrong_sentence(error)
        return f"{where}: {wrong}: {short(str(error))}" if wrong else ""
    except TimeoutError as error:
        return "" if label == "2**31" else f"{where}: {error}"  # a number of steps may be as large as is asked for
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
        return f"{where}: {type(error).__name__}: {short(str(error))}"
    if allowed(key, name, label):
        return ""
    if form is Any or not meant(form, value):
        return f"{where}: it passed in silence"
    return f"{where}: it passed" if label in SUSPECT and form is not object else ""


def cases(world: World, *, slow: bool) -> list[tuple[str, str, Any, str]]:
    """Function, argument, its annotation and the label of a value."""
    found = []
    for key, example in sorted({**FUNCTIONS, **METHODS}.items()):
        if key in SLOW and not slow:
            continue
        function = callable_of(key, world)
        forms = dict(parameters(function))
        for name in sorted({*forms, *example(world)}):
            form = forms.get(name) or form_of(key, name, world)
            calls = "Callable" in str(form)  # what a caller's own function raises is the caller's
            found += [(key, name, form, label) for label in VALUES if not (calls and label == "a class")]
    return found


BEHIND = {
    "circuits.find_heads_discrete": "circuits.find_circuit_discrete",
    "index.build_index": "index.build_indexes",
    "measures.compare": "measures.compare_steps",
    "measures.measure_fidelity": "measures.measure_fidelities",
    "sparsity.measure_sparsity": "sparsity.measure_sparsities",
    "LanguageModel.generate": "LanguageModel.generate_batch",
    "LanguageModel.chat": "LanguageModel.generate_batch",
}
"""Functions that hand further arguments on, and to which."""


def form_of(key: str, name: str, world: World) -> Any:
    """The annotation of an argument that a function hands on."""
    if key == "Child.certify":
        from workbench.surgery.certificate.certificate import certify

        return dict(parameters(certify))[name]
    return dict(parameters(callable_of(BEHIND[key], world))).get(name, Any) if key in BEHIND else Any


def test_every_example_is_valid_and_its_result_shows_itself(world: World) -> None:
    """Whatever a function returns has a short `repr`, and HTML, tables and figures without the markup of any text."""
    wrong: list[str] = []
    known: set[type] = set()
    for key, example in {**FUNCTIONS, **METHODS}.items():
        if key not in SLOW and key not in REFUSED:
            wrong += faults(key, call(callable_of(key, world), example(world)), known)
    for kind, make in OBJECTS.items():
        wrong += faults(kind, make(world), known)
    assert not wrong, "\n".join(wrong)


def test_every_result_shows_itself() -> None:
    named = {name: class_called(name) for names in RECORDS.values() for name in names.split()}
    silent = {name for name, kind in named.items() if not issubclass(kind, Shown)}
    assert silent == set(SILENT), "A new result derives from Shown or Tabular of workbench/core/display.py."


def test_nothing_foreign_is_raised_and_nothing_passes_in_silence(world: World) -> None:
    every = cases(world, slow=CASES == 0)
    tried = random.Random(SEED).sample(every, min(CASES, len(every))) if CASES else every
    before = torch.get_rng_state()
    with little_memory():
        wrong = [words for one in tried if (words := complaint(one[0], world, one[1], one[2], one[3]))]
    torch.set_rng_state(before)
    if path := os.environ.get("WORKBENCH_FUZZ_REPORT"):
        Path(path).write_text("\n".join(wrong), encoding="utf-8", errors="replace")
    assert not wrong, f"{len(wrong)} of {len(tried)} calls:\n" + "\n".join(wrong[:60])
