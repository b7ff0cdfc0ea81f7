"""The fields of SAELens's `cfg.json`, of every version that wrote one: which decide the function, and which don't.

A field that decides is read or refused, and none is replaced by a default of ours. A field that is not known here is
refused unless its value says that there is nothing. Versions: https://pypi.org/project/sae-lens, 0.1 to 6.54.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.normalising import NONE, RULES


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


EXPECTED, WHITENED = "expected_average_only_in", "covariance_whitening"
"""Normalisations of a training's inputs, which SAELens folds into the weights at its end."""
UNFIT = {
    "abstopk": "its latents are kept by the size of their pre-activations, of either sign",
    "matching_pursuit": "it picks latents one after the other from what the earlier ones leave over",
    "temporal": "it predicts each activation from those of earlier tokens, and a dictionary here encodes each alone",
}
"""SAELens's architectures that are no dictionary here, and why."""
RESCALED = ("topk", "batchtopk", "matryoshka_batchtopk")
"""Architectures whose pre-activations may be multiplied by the decoder's norms."""
READ = _words(
    "architecture activation_fn activation_fn_str activation_fn_kwargs k d_in d_sae d_out dtype metadata workbench "
    "apply_b_dec_to_input normalize_activations matryoshka_widths reshape_activations finetuning_scaling_factor "
    "rescale_acts_by_decoder_norm hook_head_index hook_head_index_out hook_point_head_index noise_scale "
    "hook_point hook_name hook_name_out"
)
"""Fields that are read here or by the kinds."""
HARMLESS = _words(
    # where it runs and what it was trained on
    "device act_store_device llm_device model_name model_class_name model_kwargs model_from_pretrained_kwargs "
    "hook_layer hook_point_layer hook_layer_out hook_eval hook_point_eval hf_hook_name hf_hook_name_out "
    "dataset_path dataset_trust_remote_code is_dataset_tokenized streaming context_size prepend_bos seqpos_slice "
    "exclude_special_tokens disable_concat_sequences sequence_separator_token use_chat_formatting "
    "sae_lens_version sae_lens_training_version neuronpedia neuronpedia_id "
    "use_cached_activations cached_activations_path new_cached_activations_path from_pretrained_path shuffle "
    "n_shuffles_final n_shuffles_in_entire_dir n_shuffles_with_last_section shuffle_every_n_buffers buffer_size_gb "
    "hf_is_private_repo hf_num_shards hf_repo_id hf_revision tokens_per_buffer activations_mixing_fraction "
    # how the weights began
    "expansion_factor b_dec_init_method decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm "
    "decoder_init_norm init_encoder_as_decoder_transpose jumprelu_init_threshold seed "
    # losses and steps
    "l1_coefficient l0_coefficient lp_norm l1_warm_up_steps l0_warm_up_steps use_ghost_grads normalize_sae_decoder "
    "scale_sparsity_penalty_by_decoder_norm mse_loss_normalization jumprelu_bandwidth jumprelu_sparsity_loss_mode "
    "jumprelu_ste_to_input jumprelu_tanh_scale pre_act_loss_coefficient target_l0 aux_loss_coefficient "
    "use_matryoshka_aux_loss "
    "topk_threshold_lr use_sparse_activations finetuning_method finetuning_tokens "
    "adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles "
    "train_batch_size train_batch_size_tokens training_tokens total_training_tokens store_batch_size "
    "store_batch_size_prompts model_batch_size n_batches_in_buffer feature_sampling_window feature_sampling_method "
    "dead_feature_window dead_feature_threshold feature_reinit_scale autocast autocast_lm compile_llm "
    "llm_compilation_mode compile_sae sae_compilation_mode "
    # what was written down
    "log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb wandb_project wandb_id wandb_entity "
    "wandb_log_frequency eval_every_n_wandb_logs run_name n_eval_batches n_eval_seqs eval_batch_size_prompts "
    "n_checkpoints checkpoint_path output_path save_final_checkpoint resume resume_from_checkpoint logger verbose "
)
"""Fields that decide nothing of what a trained dictionary computes."""


def declared(config: dict[str, Any], *, ours: bool) -> dict[str, Any]:
    """The fields of a `cfg.json` under their present names, with what the file says or its version means.

    Args:
        config: the content of the file.
        ours: whether it was written here; then the kind reads the settings under `workbench`.

    Returns:
        A copy that has `architecture`, `metadata` with hook points, and `k` and `apply_b_dec_to_input` where the file
        states them or, for the latter, where its absence has a meaning.

    Raises:
        DictionaryError: a field that does not fit a dictionary here, or that contradicts another.
    """
    config = dict(config)
    metadata = dict(config.get("metadata") or {})
    for old in ("hook_point", "hook_name"):
        if old in config:
            metadata.setdefault("hook_name", config[old])
    if "hook_name_out" in config:
        metadata.setdefault("hook_name_out", config["hook_name_out"])
    config["metadata"] = metadata
    _settle_inputs(config, ours=ours)
    if ours:
        return config
    config["architecture"] = _architecture(config)
    if "matryoshka_widths" in config:
        config["widths"] = config["matryoshka_widths"]
    if "apply_b_dec_to_input" not in config and "transcoder" not in config["architecture"]:
        config["apply_b_dec_to_input"] = True  # every version of SAELens reads a file without it so
    return config


def refuse_unknown(config: dict[str, Any], known: Collection[str] = ()) -> None:
    """Refuse fields that no version of SAELens wrote for these dictionaries, unless they say that there is nothing.

    Args:
        config: the content of a `cfg.json`.
        known: further fields that are known, such as the settings of its kind.
    """
    for name, value in config.items():
        empty = value is None or value is False or value in ("", "none", [], {})
        if name not in READ and name not in HARMLESS and name not in known and not empty:
            raise DictionaryError(
                f"its cfg.json has {name} = {shown(value)}, which is not known here and may decide what the dictionary "
                "computes; fold it into the weights, or take it out if it does not"
            )


def _settle_inputs(config: dict[str, Any], *, ours: bool) -> None:
    """The normalisation of activations under its present name; refuses what else would have to happen to them."""
    rule = config.get("normalize_activations")
    if rule is True:  # before 3.0, a switch for what is now called so
        rule = EXPECTED
    if rule is None or rule is False:
        rule = NONE
    known = (*RULES, *(() if ours else (EXPECTED, WHITENED)))
    if not isinstance(rule, str) or rule not in known:
        raise DictionaryError(
            f"it was made for inputs that are normalised first ({shown(rule)}), in a way that is not known here; fold "
            "the normalisation into the weights and save it again"
        )
    config["normalize_activations"] = rule
    for name in ("hook_head_index", "hook_point_head_index", "hook_head_index_out"):
        head = config["metadata"].get(name) if config.get(name) is None else config[name]
        if head is not None:
            raise DictionaryError(
                f"it reads or writes one head alone ({name} = {shown(head)}), and dictionaries here read and write all "
                "heads of a hook point"
            )
    noise = config.get("noise_scale")
    if noise not in (None, 0):
        raise DictionaryError(f"it adds noise to its pre-activations (noise_scale = {shown(noise)}); set that to 0")
    shape, place = config.get("reshape_activations"), str(config["metadata"].get("hook_name") or "")
    if shape not in (None, "none") and not (shape == "hook_z" and place.endswith("_z")):
        raise DictionaryError(
            f"it reshapes activations of {place or 'an unknown place'} as {shown(shape)}, which is not known"
        )


def _architecture(config: dict[str, Any]) -> str:
    """The word of the function that a foreign file describes; puts its `k` in place.

    Before 6.0 a file states the activation function beside the architecture, or alone.
    """
    stated = config.get("architecture")
    functions = {str(config[name]) for name in ("activation_fn", "activation_fn_str") if config.get(name) is not None}
    if len(functions) > 1:
        raise DictionaryError(f"its cfg.json names two activation functions, {' and '.join(sorted(functions))}")
    function = functions.pop() if functions else None
    word = "standard" if stated is None else str(stated)
    if word in UNFIT:
        raise DictionaryError(f"its architecture {word} does not fit a dictionary here: {UNFIT[word]}")
    version = str(config["metadata"].get("sae_lens_version") or "0")
    if function == "topk" and word == "standard" and _major(version) < 6:
        word = "topk"
    if function not in (None, "relu", "topk") or (function is not None and (function == "topk") != (word == "topk")):
        raise DictionaryError(
            f"its cfg.json says the architecture {word} with the activation function {function}, which is no kind of "
            "dictionary here"
        )
    _settle_k(config, word)
    return word


def _major(version: str) -> int:
    """The first number of a version of SAELens.

    Raises:
        DictionaryError: it has none, so that it does not say which fields decide.
    """
    first = version.partition(".")[0]
    if not re.fullmatch("[0-9]{1,9}", first):
        raise DictionaryError(f"its sae_lens_version, {shown(version)}, is no version")
    return int(first)


def _settle_k(config: dict[str, Any], word: str) -> None:
    """The one `k` that a file states, in its place."""
    stated = config.get("activation_fn_kwargs") or {}
    if not isinstance(stated, Mapping):
        raise DictionaryError(f"its activation_fn_kwargs are arguments by name, not {shown(stated)}")
    arguments = dict(stated)
    numbers = [one for one in (config.get("k"), arguments.pop("k", None)) if one is not None]
    strange = next((name for name, value in arguments.items() if value is not None), None)
    if strange is not None:
        raise DictionaryError(f"its activation function has an argument that is not known here, {strange}")
    if len(set(map(repr, numbers))) > 1:
        raise DictionaryError(f"its cfg.json says k = {shown(numbers[0])} and k = {shown(numbers[1])}")
    if word in ("standard", "relu") and numbers:
        raise DictionaryError(f"its cfg.json says k = {shown(numbers[0])}, and the architecture {word} has no k")
    if numbers:
        config["k"] = numbers[0]
