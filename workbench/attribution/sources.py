"""The sources of a graph: every vector written into the residual stream on a prompt, and its share of a gradient.

    output of MLP l at a position = sum over its transcoder's latents z_i W_dec[i] + linear path + b_dec + error

Where there is no transcoder, and before the first position where transcoders are used, the MLP's output is one source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.attribution.frozen import FrozenModel, along, mlp_at
from workbench.attribution.graph import Kind, Node
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.normalising import NONE
from workbench.dictionaries.origin import tell_origin
from workbench.dictionaries.sites import follow
from workbench.model.language_model import LanguageModel

Transcoders = Sequence[SparseCoder] | Mapping[str, SparseCoder] | Mapping[int, SparseCoder]


def transcoders_by_layer(model: LanguageModel, transcoders: Transcoders) -> dict[int, SparseCoder]:
    """Transcoders by their layer, in ascending order.

    Where something stands between an MLP and the stream (a norm, a factor), a transcoder may write before it, at
    `mlp.hook_out`, or behind it, at `hook_mlp_out`.

    Raises:
        AttributionError: a transcoder that does not read an MLP's normed input and write its output, or normalises
            it once more, or two of one layer.
    """
    by_layer: dict[int, SparseCoder] = {}
    for one in transcoders.values() if isinstance(transcoders, Mapping) else transcoders:
        layer = _layer_of(model, one)
        if one.normalises != NONE:
            raise AttributionError(
                f"{one.name} normalises each activation that it reads ({one.normalises}), so that its latents are not "
                "linear in what is upstream; give a transcoder that does not."
            )
        follow(one, model)
        if layer in by_layer:
            raise AttributionError(
                f"{by_layer[layer].name} and {one.name} are both of layer {layer}; give one of them."
            )
        by_layer[layer] = one
        tell_origin(one, model)
    return dict(sorted(by_layer.items()))


def _layer_of(model: LanguageModel, one: SparseCoder) -> int:
    points = model.hook_points
    for layer in range(model.network.n_layers):
        norm = "ln2.hook_out" if f"blocks.{layer}.ln2.hook_out" in points else "ln1.hook_out"
        reads, writes = (
            {points[name].key for word in words if (name := f"blocks.{layer}.{word}") in points}
            for words in (("mlp.hook_in", norm), ("hook_mlp_out", "mlp.hook_out"))
        )
        if one.writes not in points or points[one.writes].key not in writes:
            continue
        width = model.network.d_model
        if one.d_in != width or one.d_out != width:
            raise AttributionError(f"{one.name} is {one.d_in:,} wide, and the model's stream is {width:,} wide.")
        if one.reads in points and points[one.reads].key in reads:
            return layer
        break
    raise AttributionError(
        f"{one.name} reads {one.reads or 'nowhere'} and writes {one.writes or 'nowhere'}; features are attributed with "
        "transcoders, which read blocks.L.mlp.hook_in and write blocks.L.hook_mlp_out or blocks.L.mlp.hook_out."
    )


def encoder(transcoder: SparseCoder, index: int) -> tuple[Tensor, float]:
    """A latent's pre-activation as `x @ row + constant`: the row `[d_model]` and the constant."""
    row = transcoder.W_enc_T[index].detach().float()
    constant = float(transcoder.b_enc[index])
    return row, constant - float(transcoder.b_dec.float() @ row) if transcoder.centred else constant


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
        transcoders: Mapping[int, SparseCoder],
        *,
        target: Node,
        first: int,
        texts: list[str],
    ):
        self.nodes = [target, Node(self.BIAS, "bias", -1, -1, 1.0, None, "biases")]
        self._parts: dict[int, list[tuple[int, slice, Tensor]]] = {}  # by layer: position, columns, written vectors
        self._constants: dict[int, Tensor] = {}
        self._latents: list[tuple[slice, Tensor]] = []  # columns, decoder rows in the stream, without norms' scales
        positions = range(len(frozen.tokens))
        for position in positions:
            self._add(-1, position, "embedding", frozen.entering[position], texts[position])
        for layer, (read, written) in enumerate(zip(frozen.read, frozen.written, strict=True)):
            transcoder = transcoders.get(layer)
            past = frozen.layers[layer].past
            if transcoder is not None:
                self._add_latents(layer, transcoder, frozen, first)
                reconstructed = transcoder.reconstruct(read).float()
                self._constants[layer] = transcoder.b_dec.detach().float()
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

    def _add_latents(self, layer: int, transcoder: SparseCoder, frozen: FrozenModel, first: int) -> None:
        read = frozen.read[layer]
        codes = transcoder.encode(read)
        for position in range(first, len(read)):
            active = codes.values[position] != 0
            indices, order = codes.indices[position][active].sort()  # top-k gives another order on each device
            values = codes.values[position][active][order].float()
            if not len(values):
                continue
            columns = slice(len(self.nodes), len(self.nodes) + len(values))
            rows = transcoder.W_dec[indices].detach().float()
            self._parts.setdefault(layer, []).append((position, columns, values[:, None] * rows))
            behind = frozen.layers[layer].mlp_behind
            self._latents.append((columns, rows if behind is None else behind.writer(rows)))
            for value, index in zip(values.tolist(), indices.tolist(), strict=True):
                feature = transcoder.feature(index)
                self.nodes.append(Node(len(self.nodes), "latent", layer, position, value, feature, str(feature)))

    def visitor(self, out: Tensor) -> Callable[[int, Tensor, Tensor], None]:
        """A visitor for `FrozenModel.pull_back` that fills the weights `out` `[n, columns]`; `b_dec` is in the bias."""

        def visit(layer: int, rows: Tensor, gradients: Tensor) -> None:
            length = gradients.shape[1]
            for position, columns, vectors in self._parts[layer]:
                if position < length:
                    out[rows, columns] = gradients[:, position] @ vectors.T
            if layer in self._constants:
                out[rows, self.BIAS] += gradients[:, self.first :].sum(1) @ self._constants[layer]

        return visit

    def invariants(self, readers: Tensor) -> Tensor:
        """Decoder rows times readers of the stream `[n, d_model]`: `[n, columns]`, NaN for all but latents."""
        out = readers.new_full((len(readers), len(self.nodes)), float("nan"))
        for columns, rows in self._latents:
            out[:, columns] = readers @ rows.T
        return out


def _linear_part(model: LanguageModel, layer: int, read: Tensor) -> Tensor:
    """An MLP's Jacobian on the prompt times its input `[pos, d_model]`: the part of its output that gradients pass."""
    return along(mlp_at(model, layer), read[None], read[None])[0]
