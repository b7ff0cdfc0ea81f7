"""Changes of the weights: operations, children with certificates, searches, fine-tunes, merges."""

from workbench.surgery.bake.bake import BakeError as BakeError
from workbench.surgery.bake.direction import direction_of as direction_of
from workbench.surgery.certificate.check import verify_checkpoint as verify_checkpoint
from workbench.surgery.certificate.record import Certificate as Certificate
from workbench.surgery.certificate.texts import compare_texts as compare_texts
from workbench.surgery.child import Child as Child
from workbench.surgery.child import SurgeryError as SurgeryError
from workbench.surgery.finetuning.healer import Decay as Decay
from workbench.surgery.finetuning.healing import heal as heal
from workbench.surgery.finetuning.labelling import Labelled as Labelled
from workbench.surgery.finetuning.labelling import label_scores as label_scores
from workbench.surgery.opening import open_child as open_child
from workbench.surgery.operations.activation_swap import swap_activation as swap_activation
from workbench.surgery.operations.causal_mask import remove_causal_mask as remove_causal_mask
from workbench.surgery.operations.dare import dare as dare
from workbench.surgery.operations.experts import extract_expert as extract_expert
from workbench.surgery.operations.experts import keep_neurons as keep_neurons
from workbench.surgery.operations.kv_heads import merge_kv_heads as merge_kv_heads
from workbench.surgery.operations.merge import merge as merge
from workbench.surgery.operations.pruning import prune as prune
from workbench.surgery.operations.pruning import search_sparsity as search_sparsity
from workbench.surgery.operations.quantising import quantise as quantise
from workbench.surgery.operations.quantising import search_bits as search_bits
from workbench.surgery.operations.sublayers import drop_sublayers as drop_sublayers
from workbench.surgery.registry import apply_operation as apply_operation
from workbench.surgery.registry import find_operations as find_operations

find_operations()
