"""The language model that a person holds: text in, text out, token by token, with interventions.

Decoding runs on the plain modules with a key-value cache that never copies itself; a step costs little more than
reading the weights once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from workbench.model.decoding import Decoder, TextStreamer
from workbench.model.edits import BoundEdit, EditError, Group, Intervention, Run, Spliceable, check_edits
from workbench.model.network import Network
from workbench.model.plan import Plan
from workbench.model.sampling import PromptError, Sampling


@dataclass(frozen=True)
class Token:
    """One generated token, as it comes."""

    id: int
    text: str
    """What it adds to the text; empty while a character is incomplete."""
    logprob: float
    """Natural logarithm of its probability under the model as it ran, before temperature."""


@dataclass(frozen=True)
class Generation:
    """What a model wrote."""

    prompt: str
    text: str
    """The new text only."""
    tokens: list[int]
    """Ids of the new tokens, without the one that ended the text."""
    logprobs: list[float]
    """Of each new token, under the model as it ran."""
    stopped: Literal["end", "length"]
    """Whether the model ended its turn or ran into `max_new_tokens`."""


class LanguageModel:
    """A model with its tokenizer; made by `load_model`.

    Attributes:
        name: what it was loaded as.
        hash: SHA-256 over its weights; artifacts made with the model record it.
        plain_hash: the same without the dictionaries that it runs through; equal to `hash` where there are none.
        network: the modules and hook points.
        tokenizer: Hugging Face tokenizer, or None for a model that works on token ids alone.
        hook_points: every hook point by name.
        splices: dictionaries that the model always runs through, by hook point; part of the model, not of a call.
        about: what else is recorded with the model, as plain data, such as how it was trained.
    """

    def __init__(self, module: nn.Module, tokenizer: Any, name: str, hash: str):
        self.name = name
        self.hash = self.plain_hash = hash
        self.tokenizer = tokenizer
        self.network = Network(module, tokenizer)
        self.hook_points = self.network.hook_points
        self.stop_tokens = _stop_tokens(module, tokenizer)
        self.splices: Mapping[str, Spliceable] = {}
        self.about: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<{self.name}: {self.network.n_layers} layers, d_model {self.network.d_model}, {self.hash[:12]}>"

    def to_tokens(self, text: str, *, start: bool = True) -> Tensor:
        """Token ids `[1, pos]`, with whatever the tokenizer itself puts in front of a text; nothing if not `start`."""
        return torch.tensor([self._encode(text, start)], dtype=torch.long)

    def to_text(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of token ids `[pos]`; special tokens are left out."""
        return self._tokenizer().decode(torch.as_tensor(tokens).flatten().tolist(), skip_special_tokens=True)

    def token_texts(self, tokens: Tensor | Sequence[int]) -> list[str]:
        """The text of each single token; bytes of a broken character show as �."""
        return self._tokenizer().batch_decode([[token] for token in torch.as_tensor(tokens).flatten().tolist()])

    def chat_prompt(self, messages: str | Sequence[dict[str, str]]) -> str:
        """A user's message, or a list of `{"role", "content"}`, in the model's chat template, ready for the answer."""
        if isinstance(messages, str):
            if not messages.strip():
                raise PromptError("The message is empty; write something for the model to answer.")
            messages = [{"role": "user", "content": messages}]
        listed = isinstance(messages, Sequence) and len(messages) > 0
        if not listed or not all(isinstance(message, Mapping) for message in messages):
            raise PromptError('A chat is a message, or a list of {"role": ..., "content": ...} with at least one.')
        if not getattr(self._tokenizer(), "chat_template", None):
            raise PromptError(
                f"{self.name} has no chat template; use generate() with the prompt as the model wants it."
            )
        try:
            return self._tokenizer().apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise PromptError(f"The chat template of {self.name} refuses this chat: {error}.") from error

    def __call__(self, tokens: Tensor | str, *, mask: Tensor | None = None, prompt_length: int | None = None) -> Tensor:
        """Logits of every position: `[batch, pos, vocab]`, under the interventions in force here.

        Args:
            tokens: `[batch, pos]`, or a text.
            mask: `[batch, pos]`, False where there is padding.
            prompt_length: where the generated part begins, for interventions on "prompt" or "generated" positions;
                without it all positions are the prompt.
        """
        tokens = self._as_tokens(tokens)
        mask = _as_mask(mask, tokens)
        run = self._run(tokens, prompt_length, mask)
        return self.network.run(tokens, run, mask=mask)

    def capture(
        self,
        tokens: Tensor | str,
        hook_points: Sequence[str],
        *,
        mask: Tensor | None = None,
        prompt_length: int | None = None,
    ) -> dict[str, Tensor]:
        """Activations at hook points, `[batch, pos, *shape]` each, under the interventions in force here.

        Where the model has a dictionary of its own (`splices`), it is what this gets, not what it makes of it.

        The run stops after the last hook point asked for; the LM head is never computed for its own sake.
        """
        tokens = self._as_tokens(tokens)
        mask = _as_mask(mask, tokens)
        found: dict[str, Tensor] = {}
        keys = {name: self.hook_points[name].key for name in hook_points}
        run = self._run(tokens, prompt_length, mask, watch={key: _store(found, key) for key in keys.values()})
        assert run is not None
        if keys:
            self.network.capture(tokens, hook_points, run, mask=mask)
        return {name: found[key] for name, key in keys.items()}

    @contextmanager
    def intervening(self, interventions: Sequence[Intervention]) -> Iterator[None]:
        """Apply interventions to every call of this model inside the block, in this thread or task only.

        Blocks nest: inner interventions come after outer ones.
        """
        self.bind(interventions)  # complain here, not at the first use
        token = _in_force.set((*_in_force.get(), *((self, one) for one in interventions)))
        try:
            yield
        finally:
            _in_force.reset(token)

    @contextmanager
    def spliced(self, dictionaries: Mapping[str, Spliceable]) -> Iterator[None]:
        """Let the model run through dictionaries in every call inside the block, in this thread or task only.

        At each hook point the dictionary's reconstruction takes the activation's place, at all positions but padding; a
        dictionary that reads elsewhere reads what the same run has there. Interventions act on the spliced run,
        whichever block is the outer one, and those on a feature of a spliced dictionary change the codes that it
        decodes. Blocks nest: at one hook point an inner dictionary reads what an outer one wrote.

        Args:
            dictionaries: by the hook point where they write, such as `{"blocks.0.attn.hook_z": codebook}`; where the
                model has heads, they are flattened for the dictionary.

        Raises:
            HookPointError: the model has no such hook point.
            DictionaryError: a dictionary of another width, or one that writes at another hook point.
        """
        if not isinstance(dictionaries, Mapping) or not all(hasattr(one, "splice") for one in dictionaries.values()):
            raise EditError('Dictionaries are spliced in by hook point, such as {"blocks.0.attn.hook_z": codebook}.')
        splices = [dictionary.splice(hook_point) for hook_point, dictionary in dictionaries.items()]
        plan = Plan()
        self.network.prepare([edit for one in splices for edit in one.bind(self, plan)])  # complain here
        token = _spliced.set((*_spliced.get(), *((self, one) for one in splices)))
        try:
            yield
        finally:
            _spliced.reset(token)

    def bind(self, interventions: Sequence[Intervention]) -> list[BoundEdit]:
        """Fresh edits for one run: of the splices and the interventions in force here, then of `interventions`."""
        bindable = isinstance(interventions, Sequence) and all(
            hasattr(one, "bind") and not isinstance(one, type) for one in interventions
        )
        if not bindable:
            raise EditError("Interventions are given as a list, such as [Clamp(feature, 20.0)].")
        plan = Plan()
        own = [dictionary.splice(hook_point) for hook_point, dictionary in self.splices.items()]
        outer = [one for model, one in (*_spliced.get(), *_in_force.get()) if model is self]
        standing = [replace(edit, standing=True) for one in own for edit in one.bind(self, plan)]
        called = [edit for one in [*outer, *interventions] for edit in one.bind(self, plan)]
        return self.network.prepare([*standing, *called])

    def generate(self, prompt: str | Tensor, max_new_tokens: int = 64, **how: Any) -> Generation:
        """Continue a prompt; see `generate_batch` for the settings."""
        return self.generate_batch([prompt], max_new_tokens, **how)[0]

    def chat(self, message: str | Sequence[dict[str, str]], max_new_tokens: int = 64, **how: Any) -> Generation:
        """Answer a message, or the last of a list of `{"role", "content"}`; see `generate_batch` for the settings."""
        return self.generate_batch([self.chat_prompt(message)], max_new_tokens, **how)[0]

    def generate_batch(
        self,
        prompts: Sequence[str | Tensor],
        max_new_tokens: int = 64,
        *,
        sampling: Sampling | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        interventions: Sequence[Intervention] = (),
        stop: bool = True,
    ) -> list[Generation]:
        """Continue several prompts at once.

        Args:
            prompts: texts, or token ids `[pos]`.
            max_new_tokens: how many tokens each may get.
            sampling: the four settings after it as one; they are used where it is None.
            temperature: 0 takes the likeliest token.
            top_k: sample from so many likeliest tokens only.
            top_p: sample from the likeliest tokens that make up this share.
            seed: row i draws with seed + i.
            interventions: what to change while the model runs.
            stop: end a row where the model ends its turn.

        Raises:
            PromptError: an empty prompt, one that does not fit into the context, or a bad setting.
        """
        sampling = sampling or Sampling(temperature, top_k, top_p, seed)
        rows: list[list[Token]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        for step in self._decode(prompts, max_new_tokens, sampling, interventions, stop):
            for row, token in enumerate(step):
                if token is None:
                    ended[row] = True
                else:
                    rows[row].append(token)
        texts = [prompt if isinstance(prompt, str) else self._maybe_text(prompt) for prompt in prompts]
        return [
            Generation(
                prompt,
                self._maybe_text([token.id for token in tokens]),
                [token.id for token in tokens],
                [token.logprob for token in tokens],
                "end" if over else "length",
            )
            for prompt, tokens, over in zip(texts, rows, ended, strict=True)
        ]

    def stream(
        self,
        prompt: str | Tensor,
        max_new_tokens: int = 64,
        *,
        sampling: Sampling | None = None,
        interventions: Sequence[Intervention] = (),
        stop: bool = True,
    ) -> Iterator[Token]:
        """Continue a prompt, token by token as it is written. Settings as in `generate_batch`."""
        for (token,) in self._decode([prompt], max_new_tokens, sampling or Sampling(), interventions, stop, text=True):
            if token is not None:
                yield token

    def prompt_batch(self, prompts: Sequence[str | Tensor], max_new_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Prompts as one left-padded tensor `[batch, pos]` with its mask (None if nothing is padded), checked."""
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is a whole number from 1, not {max_new_tokens!r}.")
        if not prompts:
            raise PromptError("There is no prompt; give at least one.")
        rows = [self._encode(p) if isinstance(p, str) else self._one_row(p) for p in prompts]
        longest = max(map(len, rows))
        if longest + max_new_tokens > self.network.n_ctx:
            raise PromptError(
                f"The prompt has {longest:,} tokens and {max_new_tokens:,} are to follow, but {self.name} sees only "
                f"{self.network.n_ctx:,}; shorten the prompt or lower max_new_tokens."
            )
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows], dtype=torch.long)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(longest) >= (longest - lengths)[:, None]
        return tokens, None if bool(mask.all()) else mask

    def _decode(
        self,
        prompts: Sequence[str | Tensor],
        max_new_tokens: int,
        sampling: Sampling,
        interventions: Sequence[Intervention],
        stop: bool,
        *,
        text: bool = False,
    ) -> Iterator[list[Token | None]]:
        """Step by step the new token of each row, None once it has ended; the one loop behind all generation."""
        tokens, mask = self.prompt_batch(prompts, max_new_tokens)
        edits = self.bind(interventions)
        lengths = [tokens.shape[1]] * len(tokens) if mask is None else mask.sum(-1).tolist()
        for length in set(lengths):
            check_edits(edits, length + max_new_tokens - 1, length)
        decoder = Decoder(self.network, [Group(edits)], tokens, mask, max_new_tokens)
        chance = sampling.generators(len(tokens))
        pieces = [TextStreamer(self._maybe_text) if text else None for _ in tokens]
        over = [False] * len(tokens)
        for number in range(max_new_tokens):
            chosen = sampling.choose(decoder.logits, chance)  # [batch]
            logprobs = decoder.logits.gather(-1, chosen[:, None])[:, 0] - decoder.logits.logsumexp(-1)
            step: list[Token | None] = []
            for row, (token, logprob) in enumerate(zip(chosen.tolist(), logprobs.tolist(), strict=True)):
                over[row] = over[row] or (stop and token in self.stop_tokens)
                piece = pieces[row]
                new = piece.add(token, number == max_new_tokens - 1) if piece and not over[row] else ""
                step.append(None if over[row] else Token(token, new, logprob))
            yield step
            if all(over):
                return
            if number < max_new_tokens - 1:
                decoder.feed(chosen[:, None])

    def _run(
        self, tokens: Tensor, prompt_length: int | None, mask: Tensor | None, watch: dict[str, Any] | None = None
    ) -> Run | None:
        if prompt_length is not None and (not isinstance(prompt_length, int) or prompt_length < 1):
            raise PromptError(f"prompt_length is a whole number from 1, not {prompt_length!r}.")
        edits = self.bind(())
        if not edits and watch is None:
            return None
        batch, length = tokens.shape
        check_edits(edits, length if mask is None else int(mask.sum(-1).max()), prompt_length)
        lengths = None if prompt_length is None else torch.full((batch,), prompt_length)
        return Run([Group(edits)], lengths, watch)

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise PromptError(f"{self.name} was loaded without a tokenizer; give token ids, or load it with one.")
        return self.tokenizer

    def _encode(self, text: str, start: bool = True) -> list[int]:
        if not isinstance(text, str) or not text:
            raise PromptError("The prompt is empty; give the model at least one token to start from.")
        encode, first = self._tokenizer(), self._tokenizer().bos_token_id
        ids = encode(text, add_special_tokens=start).input_ids
        if start and ids[:2] == [first, first] and encode(text, add_special_tokens=False).input_ids == ids[1:]:
            return ids[1:]  # a chat template has written the start token already
        return ids

    def _maybe_text(self, tokens: Tensor | Sequence[int]) -> str:
        return "" if self.tokenizer is None else self.to_text(tokens)

    def _one_row(self, tokens: Tensor) -> list[int]:
        row = self._as_tokens(tokens)
        if len(row) != 1:
            raise PromptError(f"A prompt is one row of tokens, not {len(row)}; give generate_batch a list of rows.")
        return row[0].tolist()

    def _as_tokens(self, tokens: Tensor | str) -> Tensor:
        if isinstance(tokens, str):
            tokens = self.to_tokens(tokens)
        try:
            tokens = torch.as_tensor(tokens)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PromptError(f"A prompt is a text or token ids, not {type(tokens).__name__}.") from error
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise PromptError(
                f"Tokens are a tensor [batch, pos] with at least one position, not {tuple(tokens.shape)}."
            )
        if tokens.shape[1] > self.network.n_ctx:
            raise PromptError(
                f"The text has {tokens.shape[1]:,} tokens, but {self.name} sees only {self.network.n_ctx:,}."
            )
        if tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise PromptError(f"Token ids are whole numbers, not {tokens.dtype}.")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.network.vocab_size:
            raise PromptError(f"A token id lies outside the vocabulary, 0 to {self.network.vocab_size - 1:,}.")
        return tokens


_in_force: ContextVar[tuple[tuple[LanguageModel, Intervention], ...]] = ContextVar(
    "workbench_interventions", default=()
)
_spliced: ContextVar[tuple[tuple[LanguageModel, Intervention], ...]] = ContextVar("workbench_splices", default=())


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Set aside all interventions and splices in force here, to measure the plain model."""
    interventions, splices = _in_force.set(()), _spliced.set(())
    try:
        yield
    finally:
        _in_force.reset(interventions)
        _spliced.reset(splices)


def _as_mask(mask: Tensor | None, tokens: Tensor) -> Tensor | None:
    """A mask as True and False, checked; None where it hides nothing."""
    if mask is None:
        return None
    if mask.shape != tokens.shape:
        raise PromptError(f"The mask is {tuple(mask.shape)}, but the tokens are {tuple(tokens.shape)}.")
    return None if bool(mask.all()) else mask.bool()


def _store(found: dict[str, Tensor], key: str) -> Any:
    return lambda value: found.__setitem__(key, value)


def _stop_tokens(module: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a turn: what the generation settings and the tokenizer say."""
    said = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    stops = set(said) if isinstance(said, list) else {said}
    return frozenset({*stops, getattr(tokenizer, "eos_token_id", None)} - {None})
