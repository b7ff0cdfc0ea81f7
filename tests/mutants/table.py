"""What a planted fault is, and the law tests by short names."""

from __future__ import annotations

from dataclasses import dataclass

LAWS = "tests/laws"
OPERATIONS = f"{LAWS}/test_operation_laws.py"
CODES = f"{LAWS}/test_dictionary_laws.py"
TRAINING = f"{LAWS}/test_training_laws.py"
GRADIENTS = "tests/dictionaries/test_dictionaries_training.py::test_gradients_agree_with_autograd"
DISK = "tests/dictionaries/test_dictionaries_disk.py::test_saving_and_loading_keeps_every_bit"
INTERVENTIONS = f"{LAWS}/test_intervention_laws.py::test_law"
PAGE = f"{LAWS}/test_architectures.py::test_an_architecture_does_what_the_page_says"
BATCHES = f"{LAWS}/test_batches.py"
COMPANY = f"{LAWS}/test_company.py"
ALONE = f"{COMPANY}::test_a_text_is_the_same_alone_and_in_company[llama]"
SIDES = f"{COMPANY}::test_the_sides_of_a_comparison_are_those_written_alone"
KL = f"{COMPANY}::test_the_kl_of_a_comparison_is_that_of_whole_passes"
TOKENIZERS = f"{LAWS}/test_tokenizers.py"
RECOUNTS = f"{LAWS}/test_recounts.py"
FIDELITY = f"{RECOUNTS}::test_fidelity_is_what_a_recount_finds[topk]"
INDEX = f"{RECOUNTS}::test_an_index_holds_what_a_recount_finds"
FILTERS = f"{RECOUNTS}::test_what_is_shown_passes_the_filters_it_was_asked_for"
INTERRUPTED = f"{LAWS}/test_interrupted.py"
KILLS = f"{LAWS}/test_kills.py"
RACES = f"{LAWS}/test_races.py"
CIRCUITS = f"{LAWS}/test_circuit_laws.py"
NEUTRAL = f"{OPERATIONS}::test_nothing_done_changes_nothing"
CHILDREN = f"{OPERATIONS}::test_children_are_plain_checkpoints"
CACHED = "tests/neurons/test_decode.py::test_a_table_in_the_cache_is_of_one_configuration"
CLIPPING = "tests/surgery/test_surgery_architectures.py::test_clipping_shows_where_no_text_reaches_it"
ORDER = f"{LAWS}/test_order.py::test_the_first_use_does_not_matter[falcon-parallel]"
SLOPES = f"{CIRCUITS}::test_slopes_are_small_steps"


@dataclass(frozen=True)
class Mutant:
    """A fault."""

    name: str
    law: str
    """The law that it breaks, as `docs/laws.md` numbers them."""
    file: str
    """Below `workbench/`."""
    old: str
    new: str
    tests: tuple[str, ...]
    """What pytest runs; at least one of them has to fail."""


def planted(mutant: Mutant, source: str) -> str:
    """The text of a file with a fault in it.

    Raises:
        ValueError: the text holds `old` more or less often than once, or the fault changes nothing.
    """
    if source.count(mutant.old) != 1 or mutant.old == mutant.new:
        raise ValueError(
            f"{mutant.name}: {mutant.file} holds {mutant.old!r} {source.count(mutant.old)} times, not once."
        )
    return source.replace(mutant.old, mutant.new)
