"""A network whose hook points can be read and edited: tokens in, logits out. The only file that imports
TransformerLens.

Two trees of modules share one set of weights. The *plain* one is the Hugging Face model: it runs every forward pass at
its full speed. The *bridge* is TransformerLens 4's `TransformerBridge`: it names the hook points, and runs only where
one of them has no counterpart in the plain tree (attention patterns, rotated queries, norm scales).

Hooks stay in place once a hook point is used. They read the context variable of `edits.py` and do nothing without a
run there, so that no edit is part of the shared model.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.type_words import reason_of
from workbench.core.vocabulary import beyond_vocabulary
from workbench.model.bridge import Bridged, architecture_of, bridge_hook, unopened, unread
from workbench.model.causality import is_causal
from workbench.model.context import context_length
from workbench.model.edits import BoundEdit, Edit, EditError, Group, Run, running
from workbench.model.hookpoint_table import how_far_apart, open_table
from workbench.model.hookpoints import HookPoint
from workbench.model.hooks import attach, read_in_one_piece
from workbench.model.lm_head import LMHead
from workbench.model.logit_map import LogitMap, measure_logit_map
from workbench.model.mlp import check_neurons, unread_weights
from workbench.model.modules import is_conv1d, sharing_copy
from workbench.model.sampling import PromptError
from workbench.model.sharded import WHOLE, Pieces, group_of
from workbench.model.sharded_table import open_sharded_table
from workbench.model.stream import StreamPath, norm_parts, stream_path, stream_path_of_passes
from workbench.model.stream_probe import StreamProbe
from workbench.model.weights import ModelError, whole


class Network:
    """A Hugging Face causal language model with hook points.

    Args:
        module: a causal language model with an adapter in TransformerLens 4. The network works on copies of its modules
            that share its weights, and leaves it unchanged.
        tokenizer: passed to the bridge, which asks the hub for one otherwise.

    Raises:
        ModelError: TransformerLens has no adapter for this architecture, or the weights are damaged.
    """

    def __init__(self, module: nn.Module, tokenizer: Any):
        self.module: Any = sharing_copy(module)
        self.config: Any = self.module.config
        self._tokenizer = tokenizer
        self._hooked: set[tuple[bool, str]] = set()
        self._lock = threading.RLock()
        self._paths: dict[str, StreamPath] = {}  # by the key of the hook point
        versions = {"TransformerLens": version("transformer-lens")}
        self.processes = group_of(self.module)
        self._pieces: dict[str, Pieces] = {}  # of a sharded model, by the key of the hook point
        if self.processes is None:
            self.hook_points = open_table(self.module, versions, self._bridged_over)
        else:
            self.hook_points, self._pieces = open_sharded_table(self.module, self.processes, self._bridged_over)
        read_in_one_piece(self.module.get_output_embeddings())
        sizes = self.config.get_text_config()
        self.n_layers: int = sizes.num_hidden_layers
        self.n_heads: int = sizes.num_attention_heads
        self.d_model: int = sizes.hidden_size
        self.n_ctx: int = context_length(self.module, tokenizer)
        self.vocab_size: int = self.module.get_output_embeddings().weight.shape[0]
        takes = inspect.signature(type(self.module).forward).parameters
        self._cache_name = "cache" if "cache" in takes else "past_key_values"  # as older versions of transformers say

    @property
    def device(self) -> torch.device:
        """Where the tokens go: the device of the embeddings; a run moves its tokens and mask there."""
        return self.module.get_input_embeddings().weight.device

    @property
    def bridge(self) -> Any:
        """The `TransformerBridge`, built at its first use; it shares the weights."""
        return self._bridged.bridge

    @functools.cached_property
    def _bridged(self) -> Bridged:
        if self.processes is not None:
            raise ModelError(f"TransformerLens can't run a model that is sharded over processes; {WHOLE}.")
        with self._lock, torch.inference_mode(False):  # for it splits joint weights, which gradients are taken on later
            return Bridged(self.module, functools.partial(_build_bridge, tokenizer=self._tokenizer))

    def _bridged_over(self, module: Any) -> Bridged:
        """The bridge over the plain module, or over another one."""
        if module is self.module:
            return self._bridged
        return Bridged(module, functools.partial(_build_bridge, tokenizer=self._tokenizer))

    @functools.cached_property
    def causal(self) -> bool:
        """Whether predictions depend on earlier tokens alone; measured at its first use.

        Padding on the right takes no mask where it is True.

        Raises:
            ModelError: its logits are not finite.
        """
        return is_causal(self.run, self.vocab_size, self.n_ctx)

    def run(
        self,
        tokens: Tensor,
        run: Run | None = None,
        *,
        mask: Tensor | None = None,
        cache: Any = None,
        last: int = 0,
    ) -> Tensor:
        """Logits of one forward pass.

        Args:
            tokens: token ids `[batch, pos]`, only the new ones where there is a cache.
            run: its edits come from `prepare`; None for no edits.
            mask: bool `[batch, past + pos]`, False where there is padding; None without padding.
            cache: from `new_cache`; the pass appends to it.
            last: compute logits of so many last positions only; 0 for all.

        Returns:
            Logits `[batch, pos, vocab]`, or `[batch, last, vocab]`.
        """
        tokens, mask = tokens.to(self.device), mask if mask is None else mask.to(self.device)
        batch, new = tokens.shape
        extra: dict[str, Any] = {}
        past = 0 if cache is None else cache.get_seq_length()
        if mask is None:
            positions = torch.arange(past, past + new, device=tokens.device).expand(batch, -1)
            if _touches(run, "pos_embed."):  # else the model embeds the positions of one row for all
                extra = {"position_ids": positions}
        else:
            positions = (mask.long().cumsum(-1) - 1).masked_fill(~mask, -1)[:, past:]
            extra = {"attention_mask": mask.long(), "position_ids": positions.clamp(min=0)}
        if self.processes is not None:
            self.processes.agree(tokens, mask, run, past, last)
        if run is not None:
            run.enter(positions)
        # the input of the LM head is cut to the last positions, so that edits there would miss theirs
        kept = 0 if _touches(run, "unembed.") else last
        with running(run), self.processes.passing() if self.processes else contextlib.nullcontext():
            host: Any = self._host(run)
            try:
                out = host(
                    input_ids=tokens,
                    use_cache=cache is not None,
                    logits_to_keep=kept,
                    **{self._cache_name: cache},
                    **extra,
                )
            except IndexError as error:  # of the embeddings: looking before each step would cost more
                ids, name = tokens.flatten().tolist(), type(self.module).__name__
                complaint = beyond_vocabulary(ids, self.vocab_size, self._tokenizer, name)
                if complaint:
                    raise PromptError(complaint) from error
                raise
            except RuntimeError as error:
                if host is not self.module and (reason := self._bridged.fault(tokens)):
                    raise unread(run, reason, self.module.dtype) from error
                raise
        return out.logits[:, -last:]

    def capture(self, tokens: Tensor, names: Sequence[str], run: Run, *, mask: Tensor | None = None) -> None:
        """Run until the run's `watch` has been called for every hook point in `names`, and no further."""
        wanted = {self.hook_points[name].key for name in names}

        def counting(name: str, watch: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
            def look(value: Tensor) -> None:
                watch(value)
                wanted.discard(name)
                if not wanted:
                    raise _Enough

            return look

        run.watch = {name: counting(name, watch) for name, watch in run.watch.items()}
        with contextlib.suppress(_Enough):
            self.run(tokens, run, mask=mask, last=1)

    def prepare(self, edits: Sequence[BoundEdit]) -> list[BoundEdit]:
        """Edits with checked hook points, under the names that hooks use.

        Raises:
            HookPointError: the model has no such hook point.
            EditError: the hook point has no positions to edit at, or the model computes its logits without it.
        """
        ready = []
        for edit in edits:
            point = self.hook_points[edit.hook_point]
            if self.processes is not None and point.key not in self._pieces:
                raise EditError(_unshared(point))
            if not point.positional:
                raise EditError(f"{point.name} can be read but not edited: its tensor has no position axis.")
            if point.refusal and not edit.reads_only:
                raise EditError(f"{point.name} can be read but not edited: {point.refusal}.")
            ready.append(replace(edit, hook_point=point.key))
        return ready

    @property
    def lm_head(self) -> LMHead:
        """The LM head; its rows and products are in float32 for every dtype of the model.

        Raises:
            ModelError: a head that does not read the residual stream itself.
        """
        head = LMHead(whole(self.module.get_output_embeddings().weight), self.device)
        if head.width != self.d_model:
            raise ModelError(f"The LM head of this model reads {head.width} values, not the stream's {self.d_model}.")
        return head

    @functools.cached_property
    def logit_map(self) -> LogitMap:
        """What the model makes of the LM head's products: a factor (Granite, Cohere) and a soft-cap (Gemma 2)."""
        with self._lock, torch.inference_mode(False):
            return measure_logit_map(self.module)

    def final_norm(self) -> tuple[Tensor, bool]:
        """The final norm's gain `[d_model]` and whether it subtracts the mean."""
        gain, _, centres = self.norm_weights("ln_final.hook_out")
        return gain, centres

    @property
    def neuron_sites(self) -> tuple[str, ...]:
        """The sites of neurons: gate, up and post, or up and post where the MLP is not gated."""
        gated = "blocks.0.mlp.hook_pre_linear" in self.hook_points
        return ("gate", "up", "post") if gated else ("up", "post")

    def neuron_hook_point(self, layer: int, site: str) -> HookPoint:
        """The hook point of the neurons of a layer: the output of `gate` or `up`, or `post`, the input of down.

        Raises:
            ModelError: no such layer or site, or a layer without neurons of its own there, such as one of experts.
        """
        if not 0 <= layer < self.n_layers:
            raise ModelError(
                f"There is no layer {layer}: this model has {self.n_layers} layers, 0 to {self.n_layers - 1}."
            )
        gated = f"blocks.{layer}.mlp.hook_pre_linear" in self.hook_points
        words = {"up": "hook_pre_linear", "gate": "hook_pre"} if gated else {"up": "hook_pre"}
        points = {
            name: self.hook_points.get(f"blocks.{layer}.mlp.{word}")
            for name, word in {"post": "hook_post", **words}.items()
        }
        unseen = points["post"]
        if unseen is not None and unseen.module is None:
            apart = how_far_apart(self.module, self._bridged, unseen.name)
            if apart is not None:
                raise unread_weights("down", unseen, apart, self.module.dtype)
        check_neurons(self.module, layer, points["post"], "post", self.d_model)
        if site not in points:
            raise ModelError(f"There are no {site!r} neurons in this model; it has {', '.join(self.neuron_sites)}.")
        point, post = points[site], points["post"]
        if site != "post":
            check_neurons(self.module, layer, point, site, self.d_model)
        if point is None or post is None or point.width != post.width:
            raise ModelError(f"The MLP of layer {layer} has another number of values at {site!r} than neurons.")
        return point

    def neuron_weights(self, layer: int, weights: str) -> Tensor:
        """Each neuron's row of the gate or up projection or column of the down projection, `[d_mlp, d_model]`.

        Raises:
            ModelError: no such layer or weights, or weights that no matrix was found to hold alone.
        """
        if weights not in ("gate", "up", "down"):
            raise ModelError(f"A neuron's weights are 'gate', 'up' or 'down', not {weights!r}.")
        point = self.neuron_hook_point(layer, "post" if weights == "down" else weights)
        module = self.module.get_submodule(point.module) if point.module else None
        if module is None or not isinstance(getattr(module, "weight", None), Tensor):
            apart = how_far_apart(self.module, self._bridged, point.name)
            raise unread_weights(weights, point, apart, self.module.dtype)
        weight = whole(module.weight).detach().to(self.device).float()
        return weight.T if is_conv1d(module) != (weights == "down") else weight

    def neuron_directions(self, layer: int, weights: str) -> Tensor:
        """Each neuron's vector in the residual stream, `[d_mlp, d_model]`: read by gate and up, written by down.

        As `neuron_weights`, but the vectors that `down` writes are what arrives in the stream, see `written`.

        Raises:
            ModelError: as `neuron_weights` and `into_stream`.
        """
        vectors = self.neuron_weights(layer, weights)
        return vectors if weights != "down" else self.written(self.neuron_hook_point(layer, "post"), vectors)

    def written(self, point: HookPoint, vectors: Tensor) -> Tensor:
        """What vectors at a hook point add to the residual stream, from weights alone: `[..., d_model]`.

        They are `vectors` themselves where nothing lies between. A factor between (a residual multiplier, an embedding
        scale) multiplies them; a norm between (Gemma 2 and 3, OLMo 2, GLM 4) by its gain, after it subtracted their
        mean where it does so. A norm's scale depends on the prompt and is taken as 1.

        Args:
            point: a hook point that is as wide as the stream, or in front of a linear map into it.
            vectors: `[..., d_model]`, behind that linear map.

        Raises:
            ModelError: as `into_stream`.
        """
        return self.into_stream(point).directions(vectors)

    def into_stream(self, point: HookPoint) -> StreamPath:
        """The way from a hook point into the residual stream, measured at its first use.

        Raises:
            ModelError: a tensor that does not arrive in the stream, or changes on its way by more than a norm and a
                factor.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if point.key not in self._paths:
                if point.module is not None:
                    self._paths[point.key] = stream_path(self._probe, point)
                else:
                    streams = [name for name in _streams_behind(point.name) if name in self.hook_points]
                    self._paths[point.key] = stream_path_of_passes(self._read, point, self.d_model, streams)
            return self._paths[point.key]

    def _read(self, names: Sequence[str], added: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors at hook points on the probe's tokens, where tensors are added at some."""
        seen: dict[str, Tensor] = {}
        edits = self.prepare([Edit(name, lambda x, more=more: x + more.to(x.device)) for name, more in added.items()])
        keys = {name: self.hook_points[name].key for name in names}
        watch = {key: lambda value, key=key: seen.__setitem__(key, value.clone()) for key in keys.values()}
        self.capture(self._probe.tokens, names, Run([Group(edits)], watch=watch))
        return {name: seen[key] for name, key in keys.items()}

    def token_parts(self, ids: Tensor) -> Tensor:
        """What tokens `[n]` bring into the first layer, `[n, d_model]` in float32: read there, not looked up.

        Scales of embeddings and norms behind them are contained; position embeddings, which no token decides, are not.
        """
        with self._lock:
            return self._probe.token_parts(ids)

    @functools.cached_property
    def _probe(self) -> StreamProbe:
        with torch.inference_mode(False):
            return StreamProbe(self.module, self.d_model)

    def attention_weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The value and output weights of the heads of a layer.

        Returns:
            Value weights `[kv_heads, d_model, d_head]` and bias `[kv_heads, d_head]`; output weights
            `[n_heads, d_head, d_model]` and bias `[d_model]`. Biases are zeros where the model has none.

        Raises:
            ModelError: weights that are not stored per head.
        """
        try:
            attention = self.bridge.blocks[layer].attn
            value, out = (one.detach().to(self.device).float() for one in (attention.W_V, attention.W_O))
            biases = [getattr(part, "bias", None) for part in (attention.v, attention.o)]
        except (AttributeError, NotImplementedError, RuntimeError) as error:
            reason = reason_of(error).partition(". ")[0]
            raise ModelError(f"The attention weights of this model can't be read per head: {reason}.") from error
        shapes = (value.shape[0], value.shape[2]), (out.shape[2],)
        value_bias, out_bias = (
            out.new_zeros(shape) if bias is None else bias.detach().to(self.device).float().reshape(shape)
            for bias, shape in zip(biases, shapes, strict=True)
        )
        return value, value_bias, out, out_bias

    def norm_weights(self, hook_point: str) -> tuple[Tensor, Tensor, bool]:
        """Gain and bias `[d_model]` of a norm, and whether it subtracts the mean, from its outputs for three inputs.

        Args:
            hook_point: the norm's output, such as `blocks.3.ln1.hook_out`.

        Raises:
            ModelError: the hook point is not the output of a norm module.
        """
        path = self.hook_points[hook_point].module
        if path is None:
            raise ModelError(f"This model has no norm of its own at {hook_point}.")
        gain, bias, centres = norm_parts(self.module.get_submodule(path), self.d_model)
        return gain.to(self.device), bias.to(self.device), centres

    def _host(self, run: Run | None) -> nn.Module:
        """The tree of modules for this run, with the hooks that it needs."""
        if run is None or not run.at:
            return self.module
        for name in run.at if self.processes is not None else ():
            if name not in self._pieces:
                raise ModelError(_unshared(self.hook_points[name]))
        on_bridge = any(self.hook_points[name].module is None for name in run.at)
        for name in run.at:
            if (on_bridge, name) not in self._hooked:
                with self._lock:
                    if (on_bridge, name) not in self._hooked:
                        self._hook(name, on_bridge)
                        self._hooked.add((on_bridge, name))
        return self.bridge.original_model if on_bridge else self.module

    def _hook(self, name: str, on_bridge: bool) -> None:
        """Hook one hook point, for good."""
        point = self.hook_points[name]
        if on_bridge:
            self._bridged.hooks[name].add_hook(bridge_hook(name), is_permanent=True)
            return
        attach(self.module.get_submodule(point.module or ""), name, point, self._pieces.get(name))


class _Enough(Exception):
    """Every hook point asked for has been captured."""


def _streams_behind(name: str) -> list[str]:
    """The hook points of the residual stream behind one, the nearest first."""
    if not name.startswith("blocks."):
        return ["blocks.0.hook_resid_pre"]
    layer = name.split(".")[1]
    words = ("post",) if "mlp" in name else ("mid", "post")
    return [f"blocks.{layer}.hook_resid_{word}" for word in words]


def _unshared(point: HookPoint) -> str:
    return f"{point.name} can't be read or edited while the model is sharded over processes; {WHOLE}."


def _touches(run: Run | None, part: str) -> bool:
    """Whether a run edits or watches hook points whose name begins so."""
    return run is not None and any(name.startswith(part) for name in run.at)


def _build_bridge(module: Any, tokenizer: Any) -> Any:
    """The bridge over `module`, whose modules it takes over."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    architecture = architecture_of(module)
    try:
        bridge = build_bridge_from_module(module, architecture, hf_config=module.config).eval()
    except Exception as error:  # an adapter may raise anything
        raise unopened(module, error) from error
    # set here, since the builder changes a tokenizer in place, or fetches one from the hub
    bridge.tokenizer = tokenizer
    return bridge
