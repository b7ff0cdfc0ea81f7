"""The language model: text in, text out, token by token, with interventions.

Decoding runs on the plain modules with a preallocated key-value cache; a step costs little more than reading the
weights once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from workbench.core.checks import Flags, Natural, Positive, Raises, Wholes, checked
from workbench.core.display import Rows, Shown
from workbench.core.hashing import HALVES, fingerprint
from workbench.model import prompts as prompt_forms
from workbench.model.blame import blaming
from workbench.model.decoding import Decoder, DecodingStep, decode
from workbench.model.edits import BoundEdit, EditError, Group, Intervention, Run, Spliceable, check_edits
from workbench.model.generation import Generation, Token, generations, streamed
from workbench.model.hookpoints import HookPointError
from workbench.model.identity import plain_identity, spliced_identity, tokenizer_hash
from workbench.model.in_force import acting_on, holding
from workbench.model.network import Network
from workbench.model.plan import Plan
from workbench.model.prompts import ChatPrompt, Prompt, Tokenizer, Tokens
from workbench.model.sampling import PromptError, Sampling
from workbench.model.token_texts import TextStreamer, added_text, token_texts
from workbench.model.weights import ModelError, state_of


class LanguageModel(Shown):
    """A model with its tokenizer; `load_model` opens one.

    Attributes:
        name: the name or folder that it was loaded from.
        weights_hash: SHA-256 over the values of its checkpoint's tensors alone.
        rounded_hash: the same over its tensors as they are, where its type rounds the checkpoint's values; else empty.
        former_hash: what `hash` was in records of older versions; empty for a model that they could not make.
        network: the modules and hook points.
        tokenizer: Hugging Face tokenizer, or None for a model that reads token ids alone.
        hook_points: every hook point by name.
        stop_tokens: ids of the tokens that end a turn.
        splices: dictionaries that the model always runs through, by hook point; part of the model, not of a call.
        about: plain data that is recorded with the model, such as how it was trained.
    """

    opened_by: ClassVar[str] = "wb.load_model"

    @checked(ModelError)
    def __init__(self, module: nn.Module, tokenizer: Tokenizer | None, name: str, hash: str):
        self.name = name
        self.weights_hash = self.former_hash = hash
        self.rounded_hash = ""
        self._own_hash = self._own_plain_hash = ""
        self._identity: tuple[Any, str] | None = None
        self.tokenizer: Any = tokenizer
        self.network = Network(module, tokenizer)
        self.hook_points = self.network.hook_points
        self.stop_tokens = prompt_forms.stop_tokens(module, tokenizer)
        self.splices: Mapping[str, Spliceable] = {}
        self.about: dict[str, Any] = {}

    @property
    def plain_hash(self) -> str:
        """`hash` without the dictionaries that it runs through; equal to it where there are none."""
        if self._own_plain_hash:
            return self._own_plain_hash
        at = (self.weights_hash, tokenizer_hash(self.tokenizer), self.stop_tokens)
        if self._identity is None or self._identity[0] != at:
            self._identity = (
                at,
                plain_identity(self.weights_hash, self.network.config, self.stop_tokens, self.tokenizer),
            )
        return self._identity[1]

    @plain_hash.setter
    def plain_hash(self, hash: str) -> None:
        self._own_plain_hash = hash

    @property
    def hash(self) -> str:
        """SHA-256 over all that decides what it reads, computes and writes; artifacts of the model record it.

        These are its tensors, the settings of its configuration, the tokens that end a turn, its tokenizer, and the
        dictionaries that it runs through.
        """
        return self._own_hash or spliced_identity(self.plain_hash, self.splices)

    @hash.setter
    def hash(self, hash: str) -> None:
        self._own_hash = hash

    @property
    def held_hash(self) -> str:
        """SHA-256 over the values of its tensors as they are: `weights_hash`, but where its type rounds them."""
        return self.rounded_hash or self.weights_hash

    def take_hash(self, held: str, parent: LanguageModel) -> None:
        """Set the hashes of a model that was made from another: the other's where its tensors are the same.

        Args:
            held: SHA-256 over the values of the model's own tensors.
            parent: the other model.
        """
        same = held == parent.held_hash
        self.weights_hash = parent.weights_hash if same else held
        self.rounded_hash = parent.rounded_hash if same else ""

    def is_named(self, recorded: str | None) -> bool:
        """Whether a record means this model: by its `hash`, or as versions did that recorded its tensors alone.

        Records of models in 16 bits may have the hash of their bytes, in place of that of their values.
        """
        if not recorded or recorded in (self.hash, self.former_hash):
            return bool(recorded)
        return self.dtype in HALVES and recorded in self._hashes_of_bytes()

    def _hashes_of_bytes(self) -> tuple[str, ...]:
        """The hashes that older versions gave a model in 16 bits; empty where the type was chosen on opening."""
        if self.rounded_hash:
            return ()
        weights = fingerprint(state_of(self.network.module))
        plain = plain_identity(weights, self.network.config, self.stop_tokens, self.tokenizer)
        return weights, spliced_identity(plain, self.splices)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.network.n_layers} layers, d_model {self.network.d_model}, {self.hash[:12]}>"

    @property
    def device(self) -> torch.device:
        """Where its tokens and results are: the device of its embeddings."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its activations."""
        return self.network.module.dtype

    @checked(PromptError)
    def to_tokens(self, text: str, *, start: bool = True) -> Tensor:
        """Token ids of a text, `[1, pos]`; without tokens that the tokenizer adds behind a text, such as EOS.

        Args:
            text: not empty.
            start: put the tokens in front that the tokenizer itself adds to a text, such as BOS; none in front of a
                `chat_prompt`. False gives the ids of the text as a part of a longer one, such as of " dog".

        Raises:
            PromptError: an empty text, a token that the model lacks, a part of a text that is longer than the context,
                or a model without a tokenizer.
        """
        if not start:
            prompt_forms.check_length(self, text)
        ids = prompt_forms.encode(self.tokenizer, text, self.network.vocab_size, self.name, start=start)
        return torch.tensor([ids], dtype=torch.long, device=self.device)

    @checked(PromptError)
    def to_text(self, tokens: Wholes | Sequence[int], after: Wholes | Sequence[int] = ()) -> str:
        """The text of token ids `[pos]`, without special tokens; behind the tokens `after`, what they add to the text.

        Raises:
            PromptError: a model without a tokenizer.
        """
        tokenizer = prompt_forms.require_tokenizer(self.tokenizer, self.name)
        return added_text(tokenizer, _ids(tokens), _ids(after))

    @checked(PromptError)
    def text_pieces(self, tokens: Wholes | Sequence[int], after: Wholes | Sequence[int] = ()) -> list[str]:
        """The text that each token completes; joined they are `to_text`, and a token inside a character has none.

        Raises:
            PromptError: a model without a tokenizer.
        """
        streamer = TextStreamer(prompt_forms.require_tokenizer(self.tokenizer, self.name), _ids(after))
        ids = _ids(tokens)
        return [streamer.add(token, place == len(ids)) for place, token in enumerate(ids, 1)]

    @checked(PromptError)
    def token_texts(self, tokens: Wholes | Sequence[int]) -> list[str]:
        """The text of each single token inside a text, such as " dog"; bytes of a broken character show as �.

        Special tokens show as they are written; ids that the tokenizer lacks have no text.

        Raises:
            PromptError: a model without a tokenizer.
        """
        return token_texts(prompt_forms.require_tokenizer(self.tokenizer, self.name), _ids(tokens))

    @checked(PromptError)
    def token_labels(self, tokens: Wholes | Sequence[int]) -> list[str]:
        """What to show of each single token: its text as in `token_texts`, or its id where there is no tokenizer."""
        return [str(one) for one in _ids(tokens)] if self.tokenizer is None else self.token_texts(tokens)

    @checked(PromptError)
    def chat_prompt(self, messages: str | Sequence[dict[str, str]]) -> ChatPrompt:
        """The prompt for an answer, in the model's chat template; its tokens are those of the template.

        Args:
            messages: a user's message, or a list of `{"role", "content"}`.

        Raises:
            PromptError: no message, or a model without a chat template.
        """
        said = [messages] if isinstance(messages, str) else [text for one in messages for text in one.values()]
        prompt_forms.check_length(self, "".join(said))
        return prompt_forms.chat_text(self.tokenizer, messages, self.name)

    @checked(PromptError)
    def as_tokens(self, tokens: Tokens) -> Tensor:
        """Token ids `[batch, pos]` of a text, of one row `[pos]`, or of a batch.

        Raises:
            PromptError: an empty text, ids outside the vocabulary, another shape, or more tokens than the context.
        """
        if isinstance(tokens, str):
            prompt_forms.check_length(self, tokens)
            tokens = self.to_tokens(tokens)
        sizes: dict[str, Any] = {
            "n_ctx": self.network.n_ctx,
            "vocab_size": self.network.vocab_size,
            "device": self.device,
        }
        return prompt_forms.token_tensor(tokens, **sizes, tokenizer=self.tokenizer, name=self.name)

    @checked(PromptError)
    def __call__(self, tokens: Tokens, *, mask: Tensor | None = None, prompt_length: int | None = None) -> Tensor:
        """Logits of every position, `[batch, pos, vocab]`, under the interventions in force here.

        Args:
            tokens: `[batch, pos]`, or a text.
            mask: `[batch, pos]`, False where there is padding.
            prompt_length: number of tokens before the generated part, for interventions on "prompt" or "generated"
                positions; None counts all positions as the prompt.

        Raises:
            PromptError: unusable tokens, mask or prompt_length.
            EditError: an intervention in force that can't act in this run.
        """
        tokens = self.as_tokens(tokens)
        mask = prompt_forms.mask_tensor(mask, tokens)
        return self._logits(tokens, self._standing(tokens, mask, prompt_length), mask, prompt_length)

    @checked(PromptError)
    def capture(
        self,
        tokens: Tokens,
        hook_points: Annotated[Sequence[str], Raises(HookPointError)],
        *,
        mask: Tensor | None = None,
        prompt_length: int | None = None,
    ) -> dict[str, Tensor]:
        """Activations at hook points, `[batch, pos, *shape]` each, under the interventions in force here.

        At a hook point in `splices` this is the dictionary's input, not its reconstruction. The run stops after the
        last hook point that is captured.

        Args:
            tokens: `[batch, pos]`, or a text.
            hook_points: names of hook points.
            mask: as in a call of the model.
            prompt_length: as in a call of the model.

        Raises:
            HookPointError: the model has no such hook point.
            PromptError, EditError: as in a call of the model.
        """
        tokens = self.as_tokens(tokens)
        mask = prompt_forms.mask_tensor(mask, tokens)
        captured: dict[str, Tensor] = {}
        keys = {name: self.hook_points[name].key for name in hook_points}
        edits = self._standing(tokens, mask, prompt_length)
        watch = {key: _store(captured, key) for key in keys.values()}
        if keys:
            run = Run([Group(edits)], _lengths(tokens, prompt_length), watch)
            self.network.capture(tokens, hook_points, run, mask=mask)
        return {name: captured[key] for name, key in keys.items()}

    @checked(PromptError)
    def run(
        self,
        tokens: Wholes,
        edits: Sequence[BoundEdit] = (),
        *,
        mask: Flags | None = None,
        prompt_length: Positive | None = None,
        last: Natural = 0,
    ) -> Tensor:
        """Logits of one forward pass under these edits and no others: `[batch, pos, vocab]`, or `[batch, last, vocab]`.

        Interventions in force and the model's own splices act only where `bind` put them among the edits.

        Args:
            tokens: token ids `[batch, pos]`.
            edits: from `bind`, or made by hand.
            mask: bool `[batch, pos]`, False where there is padding; None without padding.
            prompt_length: number of tokens before the generated part; None counts all positions as the prompt.
            last: logits of so many last positions only; 0 for all.

        Raises:
            HookPointError: the model has no such hook point.
            EditError: a hook point without positions to edit at.
            PromptError: a mask of another shape than the tokens.
        """
        mask = prompt_forms.mask_tensor(mask, tokens)
        return self._logits(tokens, self.network.prepare(edits), mask, prompt_length, last)

    @contextmanager
    def intervening(self, interventions: Sequence[Intervention]) -> Iterator[None]:
        """Apply interventions to every call of this model inside the block, in this thread or task only.

        Blocks nest: inner interventions come after outer ones. They may be left in any order and in any thread. A block
        inside a generator acts while the generator runs, and never on its caller's calls. What the model hands out as
        an iterator (`stream`, a harvest's `run`, `compare_steps`) runs to its end under what is in force where it is
        made.

        Raises:
            EditError: something that is no list of interventions, or one that does not fit the model.
        """
        self.bind(interventions)  # raises here, not at the first use
        with holding(self, interventions=interventions):
            yield

    @contextmanager
    def spliced(self, dictionaries: Mapping[str, Spliceable]) -> Iterator[None]:
        """Run the model through dictionaries in every call inside the block, in this thread or task only.

        At each hook point the dictionary's reconstruction replaces the activation, at all positions but padding; a
        dictionary that reads at another hook point reads the same run's activation there. Interventions act on the
        spliced run, whichever block is the outer one; those on a feature of a spliced dictionary change the codes that
        it decodes. Blocks nest: at one hook point an inner dictionary reads what an outer one wrote.

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
        self.network.prepare([edit for one in splices for edit in one.bind(self, plan)])  # raises here
        with holding(self, splices=splices):
            yield

    def bind(self, interventions: Sequence[Intervention]) -> list[BoundEdit]:
        """Fresh edits for one run: of the splices and the interventions in force here, then of `interventions`.

        Raises:
            EditError: something that is no list of interventions, or one that does not fit the model.
        """
        bindable = (
            isinstance(interventions, Sequence)
            and not isinstance(interventions, str | bytes)
            and all(hasattr(one, "bind") and not isinstance(one, type) for one in interventions)
        )
        if not bindable:
            raise EditError("Interventions are given as a list, such as [Clamp(feature, 20.0)].")
        plan = Plan()
        own = [dictionary.splice(hook_point) for hook_point, dictionary in self.splices.items()]
        standing = [replace(edit, standing=True) for one in own for edit in one.bind(self, plan)]
        called = [edit for one in [*acting_on(self), *interventions] for edit in one.bind(self, plan)]
        return self.network.prepare([*standing, *called])

    def generate(self, prompt: Prompt, max_new_tokens: int = 64, **how: Any) -> Generation:
        """The continuation of a prompt; settings as in `generate_batch`."""
        return self.generate_batch([prompt], max_new_tokens, **how)[0]

    def chat(self, message: str | Sequence[dict[str, str]], max_new_tokens: int = 64, **how: Any) -> Generation:
        """The answer to a message, or to a list of `{"role", "content"}`; settings as in `generate_batch`."""
        return self.generate_batch([self.chat_prompt(message)], max_new_tokens, **how)[0]

    @checked(PromptError)
    def generate_batch(
        self,
        prompts: Sequence[Prompt] | Wholes,
        max_new_tokens: int = 64,
        *,
        sampling: Sampling | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        interventions: Annotated[Sequence[Intervention], Raises(EditError)] = (),
        stop: bool = True,
    ) -> Rows[Generation]:
        """The continuations of several prompts, decoded together.

        Args:
            prompts: texts, or token ids `[pos]` each; equally long ones may be one tensor `[batch, pos]`.
            max_new_tokens: tokens of each continuation at most.
            sampling: all settings of how tokens are chosen; None stands for the four after it.
            temperature: 0 takes the likeliest token.
            top_k: sample from so many likeliest tokens only.
            top_p: sample from the likeliest tokens that make up this share.
            seed: row i draws with seed + i.
            interventions: what to change while the model runs.
            stop: end a row where the model ends its turn.

        Raises:
            PromptError: an empty prompt, one that does not fit into the context, or a bad setting.
            EditError: an intervention that can't act in this run.
        """
        sampling = sampling or Sampling(temperature, top_k, top_p, seed)
        rows, steps = self._decode(prompts, max_new_tokens, sampling, interventions, stop, stream=False)
        texts = [prompt if isinstance(prompt, str) else self._text(prompt) for prompt in prompts]
        with blaming(self, rows, [[*acting_on(self), *interventions]] * len(rows)):
            return generations(texts, rows, steps, self._text)

    @checked(PromptError)
    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        *,
        sampling: Sampling | None = None,
        interventions: Annotated[Sequence[Intervention], Raises(EditError)] = (),
        stop: bool = True,
    ) -> Iterator[Token]:
        """The tokens of a continuation, one by one as they are decoded; settings as in `generate_batch`.

        The call itself reads the prompt and takes what is in force there; each token is decoded when it is asked for. A
        token that ends inside a character comes with the one behind it.

        Raises:
            PromptError, EditError: as `generate_batch`, at the call.
        """
        rows, steps = self._decode([prompt], max_new_tokens, sampling or Sampling(), interventions, stop, stream=True)
        return streamed(_blamed(steps, blaming(self, rows, [[*acting_on(self), *interventions]])))

    @checked(PromptError)
    def prompt_batch(
        self, prompts: Sequence[Prompt] | Wholes, max_new_tokens: Positive
    ) -> tuple[Tensor, Tensor | None]:
        """Prompts as one left-padded tensor `[batch, pos]` with its mask; None if nothing is padded.

        Args:
            prompts: a list of texts, or token ids `[pos]`.
            max_new_tokens: tokens that are to follow each.

        Raises:
            PromptError: no prompt, an unusable one, or one that does not fit into the context with the new tokens.
        """
        if not len(prompts):
            raise PromptError("There is no prompt; give at least one.")
        rows = [self._row(prompt) for prompt in prompts]
        longest = max(map(len, rows))
        if longest + max_new_tokens > self.network.n_ctx:
            raise PromptError(
                f"The prompt has {longest:,} tokens and {max_new_tokens:,} are to follow, but {self.name} sees only "
                f"{self.network.n_ctx:,}; shorten the prompt or lower max_new_tokens."
            )
        return prompt_forms.pad_left(rows, self.device)

    def _decode(
        self,
        prompts: Sequence[Prompt] | Wholes,
        max_new_tokens: int,
        sampling: Sampling,
        interventions: Sequence[Intervention],
        stop: bool,
        *,
        stream: bool,
    ) -> tuple[list[list[int]], Iterator[DecodingStep]]:
        """The ids of the prompts, and the decoding steps, with the text that each token adds in a `stream`.

        Everything is checked and the prompts are read before the first step.
        """
        tokens, mask = self.prompt_batch(prompts, max_new_tokens)
        rows = prompt_forms.rows_of(tokens, mask)
        edits = self.bind(interventions)
        for length in set(map(len, rows)):
            check_edits(edits, length + max_new_tokens - 1, length)
        decoder = Decoder(self.network, [Group(edits)], tokens, mask, max_new_tokens)
        stop_tokens = self.stop_tokens if stop else frozenset()
        generators = sampling.generators(len(tokens))
        if sampling.stop:
            prompt_forms.require_tokenizer(self.tokenizer, self.name)
        streaming = sampling.stop or (stream and self.tokenizer is not None)
        streamers = [TextStreamer(self.tokenizer, row) for row in rows] if streaming else ()
        return rows, decode(decoder, sampling, generators, max_new_tokens, stop_tokens=stop_tokens, streamers=streamers)

    @checked(PromptError)
    def _standing(self, tokens: Tensor, mask: Tensor | None, prompt_length: Positive | None) -> list[BoundEdit]:
        """The edits in force here, checked for a run over these tokens."""
        edits = self.bind(())
        check_edits(edits, tokens.shape[1] if mask is None else int(mask.sum(-1).max()), prompt_length)
        return edits

    def _logits(
        self,
        tokens: Tensor,
        edits: Sequence[BoundEdit],
        mask: Tensor | None,
        prompt_length: int | None,
        last: int = 0,
    ) -> Tensor:
        """The logits of `run` under prepared edits."""
        run = Run([Group(edits)], _lengths(tokens, prompt_length)) if edits else None
        return self.network.run(tokens, run, mask=mask, last=last)

    def _text(self, tokens: Tensor | Sequence[int], after: Tensor | Sequence[int] = ()) -> str:
        """The text of token ids behind others; empty for a model without a tokenizer."""
        return "" if self.tokenizer is None else self.to_text(tokens, after)

    def _row(self, prompt: Prompt) -> list[int]:
        """The token ids of one prompt."""
        if isinstance(prompt, str):
            prompt_forms.check_length(self, prompt)
        rows = self.to_tokens(prompt) if isinstance(prompt, str) else self.as_tokens(prompt)
        if len(rows) != 1:
            raise PromptError(f"A prompt is one row of tokens, not {len(rows)}; give generate_batch a list of rows.")
        return rows[0].tolist()

    def _facts(self) -> Mapping[str, object]:
        return {
            "name": self.name,
            "layers": self.network.n_layers,
            "width": self.network.d_model,
            "vocabulary": self.network.vocab_size,
            "device": self.device,
            "type": self.dtype,
            "hash": self.hash,
        }


def _blamed(steps: Iterator[DecodingStep], blame: AbstractContextManager[None]) -> Iterator[DecodingStep]:
    with blame:
        yield from steps


def _ids(tokens: Tensor | Sequence[int]) -> list[int]:
    return torch.as_tensor(tokens, dtype=torch.long).flatten().tolist()


def _lengths(tokens: Tensor, prompt_length: int | None) -> Tensor | None:
    return None if prompt_length is None else tokens.new_full((len(tokens),), prompt_length)


def _store(captured: dict[str, Tensor], key: str) -> Callable[[Tensor], None]:
    return lambda value: captured.__setitem__(key, value)
