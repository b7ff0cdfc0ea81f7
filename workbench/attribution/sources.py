"""The sources of a graph: every vector written into the residual stream on a prompt, and its share of a gradient.

    output of MLP l at a position = sum over its transcoder's latents z_i W_dec[i] + linear path + b_dec + error

A latent of a cross-layer transcoder is one source that is written at several layers.

Where there is no transcoder, and before the first position where transcoders are used, the MLP's output is one source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from workbench.attribution.frozen import FrozenModel, along, mlp_at
from workbench.attribution.graph import Kind, Node
from workbench.attribution.parts import Part
from workbench.model.language_model import LanguageModel


class Sources:
    """The columns of a graph: the target, the bias, embeddings, and layer by layer latents, then errors or MLPs.

    Args:
        model: the model.
        frozen: its frozen pass over the prompt.
        transcoders: by layer.
        target: the node of the graph's target, with id 0.
        first: the first position where transcoders are used.
        texts: the text of each token.
    """

    BIAS = 1

    def __init__(
        self,
        model: LanguageModel,
        frozen: FrozenModel,
        transcoders: Mapping[int, Part],
        *,
        target: Node,
        first: int,
        texts: list[str],
    ):
        self.nodes = [target, Node(self.BIAS, "bias", -1, -1, 1.0, None, "biases")]
        self._parts: dict[int, list[tuple[int, slice, Tensor]]] = {}  # by layer: position, columns, written vectors
        self._constants: dict[int, Tensor] = {}
        self._latents: list[tuple[slice, int, Tensor]] = []  # columns, layer, rows in the stream without norms' scales
        self._made: dict[int, Tensor] = {}  # by layer: the sum of the parts' reconstructions
        positions = range(len(frozen.tokens))
        for position in positions:
            self._add(-1, position, "embedding", frozen.entering[position], texts[position])
        for layer, (read, written) in enumerate(zip(frozen.read, frozen.written, strict=True)):
            transcoder = transcoders.get(layer)
            past = frozen.layers[layer].past
            if transcoder is not None:
                self._add_latents(layer, transcoder, frozen, first)
                reconstructed = self._made[layer]
                self._constants[layer] = transcoder.bias
                for position in positions:
                    if position < first:
                        self._add(layer, position, "mlp", written[position], f"MLP {layer}")
                    else:
                        error = (written - reconstructed)[position]
                        self._add(layer, position, "error", error, f"error of {transcoder.name}")
                continue
            rest = written if past is None else written - _linear_part(model, layer, read)
            for position in positions:
                self._add(layer, position, "mlp", rest[position], f"MLP {layer}")
        self.first = first

    def _add(self, layer: int, position: int, kind: Kind, vector: Tensor, label: str) -> None:
        column = len(self.nodes)
        self._parts.setdefault(layer, []).append((position, slice(column, column + 1), vector[None]))
        self.nodes.append(Node(column, kind, layer, position, 1.0, None, label))

    def _add_latents(self, layer: int, transcoder: Part, frozen: FrozenModel, first: int) -> None:
        read = frozen.read[layer]
        codes = transcoder.encode(read)
        for at, made in zip(transcoder.layers, transcoder.written(read), strict=True):
            self._made[at] = self._made[at] + made if at in self._made else made
        for position in range(first, len(read)):
            active = codes.values[position] != 0
            indices, order = codes.indices[position][active].sort()  # top-k gives another order on each device
            values = codes.values[position][active][order].float()
            if not len(values):
                continue
            columns = slice(len(self.nodes), len(self.nodes) + len(values))
            for at, rows in zip(transcoder.layers, transcoder.rows(indices), strict=True):
                self._parts.setdefault(at, []).append((position, columns, values[:, None] * rows))
                behind = frozen.layers[at].mlp_behind
                self._latents.append((columns, at, rows if behind is None else behind.writer(rows)))
            for value, index in zip(values.tolist(), indices.tolist(), strict=True):
                feature = transcoder.feature(index)
                self.nodes.append(Node(len(self.nodes), "latent", layer, position, value, feature, str(feature)))

    def visitor(self, out: Tensor) -> Callable[[int, Tensor, Tensor], None]:
        """A visitor for `FrozenModel.pull_back` that adds to weights `out` `[n, columns]`; `b_dec` is in the bias."""

        def visit(layer: int, rows: Tensor, gradients: Tensor) -> None:
            length = gradients.shape[1]
            for position, columns, vectors in self._parts[layer]:
                if position < length:
                    out[rows, columns] += gradients[:, position] @ vectors.T
            if layer in self._constants:
                out[rows, self.BIAS] += gradients[:, self.first :].sum(1) @ self._constants[layer]

        return visit

    def invariants(self, readers: Tensor, layers: Sequence[int]) -> Tensor:
        """Decoder rows times readers of the stream `[n, d_model]`: `[n, columns]`, NaN for all but latents.

        Of what a latent writes at several layers only that counts which is written before a reader's layer `[n]`.
        """
        out = readers.new_full((len(readers), len(self.nodes)), float("nan"))
        for columns, at, rows in self._latents:
            own = self.nodes[columns.start].layer
            before = torch.tensor([at == own or at < layer for layer in layers], device=out.device)
            share = torch.where(before[:, None], readers @ rows.T, 0.0)
            out[:, columns] = share if at == own else out[:, columns] + share
        return out


def _linear_part(model: LanguageModel, layer: int, read: Tensor) -> Tensor:
    """An MLP's Jacobian on the prompt times its input `[pos, d_model]`: the part of its output that gradients pass."""
    return along(mlp_at(model, layer), read[None], read[None])[0]
