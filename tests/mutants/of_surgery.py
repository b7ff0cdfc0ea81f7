"""Faults in operations of surgery."""

from __future__ import annotations

from mutants.table import BATCHES, CHILDREN, CLIPPING, INTERVENTIONS, NEUTRAL, OPERATIONS, PAGE, RECOUNTS, Mutant

SURGERY = "surgery/operations"

MUTANTS = [
    # ---- operations of surgery
    Mutant(
        "prune drops a weight where none is to go",
        "1",
        f"{SURGERY}/masks.py",
        "gone = int(sparsity * rows.shape[1] + 1e-6)",
        "gone = int(sparsity * rows.shape[1] + 1)",
        (f"{NEUTRAL}[prune-llama]",),
    ),
    Mutant(
        "quantise at half the scale",
        "1",
        f"{SURGERY}/quantising.py",
        ".round_().mul_(scale)",
        ".round_().mul_(scale * 0.5)",
        (f"{OPERATIONS}::test_rounding_to_16_bits_changes_no_more_than_it_rounds[llama]",),
    ),
    Mutant(
        "quantise rounds the parent's own weights",
        "2",
        f"{SURGERY}/quantising.py",
        "(weight / scale.where(scale > 0, 1)).round_()",
        "weight.div_(scale.where(scale > 0, 1)).round_()",
        (f"{CHILDREN}[quantise]",),
    ),
    Mutant(
        "a child without its parent's buffers",
        "1",
        "surgery/child.py",
        "old = state_of(parent.network.module)\n",
        "old = state_of(parent.network.module)\n"
        "    old |= {name: torch_buffer * 0 for name, torch_buffer in buffers_of(parent.network.module).items()}\n",
        (f"{NEUTRAL}[prune-apertus]",),
    ),
    Mutant(
        "a hash that leaves buffers out",
        "1",
        "model/weights.py",
        "return values_fingerprint(tensors)",
        "return values_fingerprint(parameters_of(module))",
        (f"{OPERATIONS}::test_a_models_hash_is_that_of_all_its_tensors",),
    ),
    Mutant(
        "DARE adds into its parent",
        "2",
        f"{SURGERY}/dare.py",
        "tensors[name] = total.add_(tensor)",
        "tensors[name] = tensor.add_(total)",
        (f"{CHILDREN}[dare]",),
    ),
    Mutant(
        "DARE adds half of the delta",
        "4",
        f"{SURGERY}/dare.py",
        "alpha=share / (1 - p) if rescale else share",
        "alpha=0.5 * share / (1 - p) if rescale else share",
        (f"{OPERATIONS}::test_the_whole_delta_makes_the_tuned_model",),
    ),
    Mutant(
        "a low rank that is not zero at first",
        "1",
        "surgery/finetuning/learned_weights.py",
        "nn.Parameter(torch.zeros(rows, rank, ",
        "nn.Parameter(torch.full((rows, rank), 0.01, ",
        (f"{NEUTRAL}[heal-llama]",),
    ),
    Mutant(
        "layers that are left stand in reverse",
        "4",
        "surgery/child_building.py",
        'tensors[f"{prefix}.{layers.index(int(match[1]))}.{match[2]}"]',
        'tensors[f"{prefix}.{len(layers) - 1 - layers.index(int(match[1]))}.{match[2]}"]',
        (f"{CHILDREN}[remove_layers]",),
    ),
    Mutant(
        "key heads are summed and not averaged",
        "1",
        f"{SURGERY}/head_weights.py",
        "grouped.mean(1)",
        "grouped.sum(1)",
        (f"{PAGE}[llama-merge heads]",),
    ),
    Mutant(
        "without the causal mask padding is seen",
        "2",
        f"{SURGERY}/causal_mask.py",
        "wide = (seen | seen.transpose(-2, -1)) & real",
        "wide = seen | seen.transpose(-2, -1)",
        (f"{BATCHES}::test_padding_is_not_seen_on_either_side",),
    ),
    Mutant(
        "a power of the new activation is off by one",
        "1",
        f"{SURGERY}/activation_swap.py",
        "*(positive**power for power in range(1, len(self.weights)))",
        "*(positive**power for power in range(2, len(self.weights) + 1))",
        (f"{OPERATIONS}::test_relu_in_place_of_relu_changes_nothing",),
    ),
    Mutant(
        "one matrix is not pruned",
        "3",
        f"{SURGERY}/weights.py",
        'found[path] = Matrix(f"{path}.weight", None, is_conv1d(part), True)',
        'found |= {} if "up_proj" in path else {path: Matrix(f"{path}.weight", None, is_conv1d(part), True)}',
        (f"{RECOUNTS}::test_the_share_that_an_operation_covers_is_counted",),
    ),
    Mutant(
        "a clamp is baked without its bias",
        "4",
        "interventions/affine.py",
        "bias += self.value * weight[:, self.index]",
        "bias += 0.0 * weight[:, self.index]",
        (f"{INTERVENTIONS}[clamp-baked_equals_intervened]",),
    ),
    Mutant(
        "an operation that does not say where it changes nothing",
        "1",
        f"{SURGERY}/pruning.py",
        "low=0.0, high=0.999, neutral=0.0)",
        "low=0.0, high=0.999)",
        (f"{NEUTRAL}[prune-llama]",),
    ),
    Mutant(
        "limits that no text reaches are not seen",
        "4",
        f"{SURGERY}/kv_heads.py",
        "for scale in (FAR, 1 / FAR))",
        "for scale in (1.0,))",
        (CLIPPING,),
    ),
]
