"""Another activation in place of SiLU or GELU, fitted to it on a calibration text; a short `heal` may follow.

PolyReLU, Σ w_i ReLU(x)^i, and PolyNorm, Σ w_i x^i / rms(x^i) + b, where each power is normalised over the neurons of a
token: Zhuo et al., "Polynomial Composition Activations" (2024), arXiv 2411.03884. Series activation,
Σ w_i ReLU(a_i x + b_i): Wang et al., "PanGu-π" (2023), arXiv 2312.17276. All three are linear in w, which is set by
least squares on the inputs of the layer, and all are computed in float32, whatever the model's type is. ReLU is a value
of the configuration and makes an ordinary checkpoint; the others are in no configuration of plain transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, get_args

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.precision import in_float64
from workbench.core.progress import Progress
from workbench.corpus import Corpus, TokenBatch
from workbench.model.hookpoints import HookPointError
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.surgery.child import Child, make_child
from workbench.surgery.child_building import SurgeryError, layers_path
from workbench.surgery.inputs import as_model, calibration, load_calibration
from workbench.surgery.operations.custom import make_custom
from workbench.surgery.registry import Argument, Cancelled, Operation, register

Kind = Literal["relu", "polyrelu", "polynorm", "series"]
SETTINGS = ("hidden_act", "activation_function", "hidden_activation")
"""Names of the activation in configurations."""
MODULES = ("act_fn", "act", "activation_fn")
"""Names of its module in layers."""


def _wide(x: Tensor) -> Tensor:
    """A tensor in float32: powers in 16 bits would be far off."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class PolyReLU(nn.Module):
    """Σ w_i ReLU(x)^i for i from 0 to `order`."""

    def __init__(self, order: int = 3):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(order + 1))

    def terms(self, x: Tensor) -> list[Tensor]:
        """The factors of the weights, each `[..., d_mlp]`."""
        positive = x.relu()
        return [torch.ones_like(x), *(positive**power for power in range(1, len(self.weights)))]

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        value = self.weights[-1] * torch.ones_like(wide)
        positive = wide.relu()
        for weight in self.weights[:-1].flip(0):
            value = value * positive + weight
        return value.to(x.dtype)


class PolyNorm(nn.Module):
    """w_0 + Σ w_i x^i / rms(x^i) for i from 1 to `order`; the root of the mean square is over a token's neurons."""

    def __init__(self, order: int = 3):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(order + 1))

    def terms(self, x: Tensor) -> list[Tensor]:
        """The factors of the weights, each `[..., d_mlp]`."""
        powers = [x**power for power in range(1, len(self.weights))]
        return [torch.ones_like(x), *(one * (one.square().mean(-1, keepdim=True) + 1e-6).rsqrt() for one in powers)]

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        value = self.weights[0] * torch.ones_like(wide)
        for weight, term in zip(self.weights[1:], self.terms(wide)[1:], strict=True):
            value = value + weight * term
        return value.to(x.dtype)


class Series(nn.Module):
    """Σ w_i ReLU(a_i x + b_i), with one more weight for a constant; `order` terms.

    Args:
        order: the number of terms.
        knots: the points from which the terms rise, `[order]`; each rises to the right.
    """

    def __init__(self, order: int, knots: Tensor):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(order + 1))
        self.scales = nn.Parameter(torch.ones(order))
        self.shifts = nn.Parameter(-knots.clone())

    def terms(self, x: Tensor) -> list[Tensor]:
        """The factors of the weights, each `[..., d_mlp]`."""
        return [torch.ones_like(x), *((a * x + b).relu() for a, b in zip(self.scales, self.shifts, strict=True))]

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        value = self.weights[0] * torch.ones_like(wide)
        for weight, term in zip(self.weights[1:], self.terms(wide)[1:], strict=True):
            value = value + weight * term
        return value.to(x.dtype)


@checked(SurgeryError)
def swap_activation(
    model: LanguageModel | Child,
    kind: Kind,
    *,
    corpus: Corpus | None = None,
    tokens: Positive = 1024,
    order: Annotated[Integer, Ge(1), Le(8)] = 3,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Child:
    """A child with another activation in all MLPs; with any but ReLU it can't be saved.

    Args:
        model: a model or a child; it stays as it is.
        kind: "relu", "polyrelu", "polynorm" or "series".
        corpus: texts to fit the new activation on; by default the bundled stories.
        tokens: number of tokens of the fit.
        order: highest power, or number of terms of a series, from 1 to 8.
        seed: of the choice of the texts.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: an unknown kind, or an architecture whose activation is not a module of its own.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    paths = [_path(model, layer) for layer in range(model.network.n_layers)]
    step: dict[str, Any] = {"operation": "swap_activation", "kind": kind}
    if kind == "relu":
        setting = next((name for name in SETTINGS if hasattr(model.network.config.get_text_config(), name)), None)
        if setting is None:
            raise SurgeryError(f"The configuration of {model.name} does not say its activation.")
        return make_child(model, {}, step, config={setting: "relu"})
    corpus = calibration(corpus)
    corpus.check_tokens(model)
    batches = corpus.batches(model, 256, 4, tokens, seed)
    make = functools.partial(_fresh, kind, order)
    fitted = _fitted(model, paths, batches, make, tokens=tokens, progress=progress, cancel=cancel)

    def change(module: Any) -> None:
        for path, new in fitted.items():
            module.set_submodule(path, new)

    step |= {"order": order, "calibrated_on": corpus.name, "corpus_hash": corpus.hash, "tokens": tokens}
    why = f"Plain transformers has no {kind} activation, so this model can't be saved as an ordinary checkpoint."
    return make_custom(model, change, step, why, seed)


def fit(new: nn.Module, old: nn.Module, x: Tensor) -> nn.Module:
    """A new activation with weights set by least squares to the old one's outputs for `x`, `[tokens, d_mlp]`."""
    return _solved(new, _sums(new, old, x))


Sums = tuple[Tensor, Tensor]
"""Of the normal equations: products of the terms with each other, `[terms, terms]`, and with the targets, `[terms]`;
those of several texts add up."""


@torch.no_grad()
def _sums(new: nn.Module, old: nn.Module, x: Tensor) -> Sums:
    activation: Any = new
    terms = in_float64(torch.stack([term.flatten() for term in activation.terms(x)], 1))  # [tokens * d_mlp, terms]
    return terms.T @ terms, terms.T @ in_float64(old(x).flatten())


@torch.no_grad()
def _solved(new: nn.Module, sums: Sums) -> nn.Module:
    """The activation with its weights set; a small ridge splits the weight of terms that don't differ among them."""
    activation: Any = new
    squares, targets = sums
    count = squares[0, 0]  # the first term is 1
    size = (squares.diagonal() / count).sqrt().clamp(min=1e-12)
    squares = squares / count / size / size[:, None]
    alone = 1e-6 * torch.eye(len(size), dtype=size.dtype, device=size.device)
    activation.weights.copy_(torch.linalg.solve(squares + alone, targets / count / size) / size)
    return activation.requires_grad_(False)


def _fresh(kind: Kind, order: int, x: Tensor) -> nn.Module:
    """A new activation; the knots of a series are quantiles of the layer's inputs in the first texts."""
    if kind == "polyrelu":
        return PolyReLU(order)
    if kind == "polynorm":
        return PolyNorm(order)
    some = x.flatten()[:: max(1, x.numel() // 100_000)]
    shares = torch.linspace(0.02, 0.98, order, device=x.device) if order > 1 else x.new_tensor([0.5])
    return Series(order, some.quantile(shares))


def _path(model: LanguageModel, layer: int) -> str:
    """The path of the activation of a layer's MLP among the plain modules."""
    prefix = f"{layers_path(model)}.{layer}."
    paths = [
        path
        for path, _ in model.network.module.named_modules()
        if path.startswith(prefix) and path.rpartition(".")[2] in MODULES
    ]
    if len(paths) != 1:
        raise SurgeryError(f"The activation of {model.name} is not one module in each layer; it can't be swapped.")
    return paths[0]


def _fitted(
    model: LanguageModel,
    paths: Sequence[str],
    batches: Iterator[TokenBatch],
    make: Callable[[Tensor], nn.Module],
    *,
    tokens: int,
    progress: Progress | None,
    cancel: Callable[[], bool] | None,
) -> dict[str, nn.Module]:
    """The new activation of each layer, by path; of each text only sums are kept."""
    points = [f"blocks.{layer}.mlp.hook_pre" for layer in range(model.network.n_layers)]
    news: list[nn.Module] = []
    sums: list[Sums] = []
    done = 0
    for batch in batches:
        if cancel is not None and cancel():
            raise Cancelled("Fitting was stopped; nothing has changed.")
        try:
            with uninterrupted(), torch.inference_mode():
                seen = [_wide(value[batch.content]) for value in model.capture(batch.tokens, points).values()]
        except HookPointError as error:
            raise SurgeryError(f"The input of the activation of {model.name} has no hook point: {error}") from error
        news = news or [make(x).to(x.device) for x in seen]
        olds = [model.network.module.get_submodule(path) for path in paths]
        more = [_sums(new, old, x) for new, old, x in zip(news, olds, seen, strict=True)]
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, more, strict=True)] if sums else more
        done += int(batch.content.sum())
        if progress:
            progress(min(done / tokens, 1.0), f"{done:,} of {tokens:,} tokens")
    return {path: _solved(new, one) for path, new, one in zip(paths, news, sums, strict=True)}


def _run(model: LanguageModel, *, kind: Kind, corpus: str, **how: Any) -> Child:
    return swap_activation(model, kind, corpus=load_calibration(corpus), **how)


register(
    Operation(
        "swap_activation",
        "Swap the activation",
        "Puts another activation into all MLPs, fitted to the old one; only ReLU can be saved.",
        (
            Argument("kind", "Activation", "polynorm", "choice", choices=get_args(Kind)),
            Argument("order", "Highest power, or terms", 3, "whole", low=1, high=8),
            Argument("corpus", "Texts to fit on", "stories", "text"),
            Argument("tokens", "Tokens to fit on", 512, "whole", low=1),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
        neutral="only a model whose activation is ReLU already stays as it is",
    )
)
