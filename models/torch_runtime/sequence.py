"""One sequence on its way through the engine: its tokens, its KV slots, its text, and what it has still to emit."""

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from models.torch_runtime.kv_pool import Slots
from models.torch_runtime.prefix_cache import Node, Tokens
from strategies.answer_text import AnswerText
from strategies.errors import DecodingError
from strategies.runtime import Delta, FinishReason, Generation, TokenLogprob
from strategies.sampling.contrastive import contrastive_of
from strategies.sampling.row import Row
from strategies.speculative.acceptance_estimate import AcceptanceCounts
from strategies.speculative.speculation import AutoSpeculation, Speculation
from strategies.text import Tokenizer


class Sink(Protocol):
    """Where a sequence's deltas go; called on the engine thread."""

    def put(self, item: Delta | DecodingError) -> None: ...


class Sequence:
    """State of one `Generation`. Owned by the scheduler; only the engine thread touches it.

    tokens[:computed] have keys and values in slots[:computed]. Of those, slots[:shared] belong to the prefix cache
    (`node` is locked meanwhile), the rest to the sequence.
    """

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, eos_token_ids: frozenset[int], sink: Sink, max_length: int
    ) -> None:
        stopping = generation.stopping
        self.generation = generation
        self.meter = generation.meter
        self.sink = sink
        start = generation.tokens
        self.num_prompt = len(start)  # whatever it starts from, the answer so far included
        limit = max_length if stopping.max_tokens is None else self.num_prompt + stopping.max_tokens
        self.max_length = min(max_length, limit)
        self._tokens = np.zeros(max(self.max_length, self.num_prompt), np.int32)
        self._tokens[: self.num_prompt] = start
        self.length = self.num_prompt
        self._slots = np.zeros(len(self._tokens), np.int64)
        self.computed = 0
        self.shared = 0
        self.node: Node | None = None
        self.charged = 0  # tokens paid for or cached; recomputing them after a preemption costs the request nothing
        self.cancelled = False
        self.last_round = 0  # engine step in which it last speculated
        self.row = Row(generation, eos_token_ids, tokenizer)
        self._answer = AnswerText(generation, tokenizer, eos_token_ids)
        # What it asked for; with `auto`, what was picked for this step.
        asked = generation.speculation
        self.speculation: Speculation | None = None if isinstance(asked, AutoSpeculation) else asked
        # Whether its tokens depend on which tokens come from rounds, and from how large ones: then nothing but its own
        # tokens and budget may decide that, neither the pool nor what a draft has cached.
        self.fixed_rounds = self.speculation is not None and not (self.speculation.coupled or self.row.greedy)
        self.picked = ""  # its name, for `auto`
        self.match = 0  # tokens that look-up matched, for `auto`
        self.acceptance: dict[str, AcceptanceCounts] = {}  # by drafter (and match), for `auto`
        self._prompt_logprobs: list[TokenLogprob | None] | None = None
        if generation.prompt_logprobs is not None:
            self._prompt_logprobs = [None]  # nothing precedes the first token
        self._pending_prompt_logprobs = self._prompt_logprobs is not None
        search = contrastive_of(self.row)
        self.candidates = 0 if search is None else search.k  # computed besides the sequence itself at every step
        self._history: Tensor | None = None
        self._pooled: Tensor | None = None  # sum of the hidden states of the first `_num_pooled` prompt tokens
        self._num_pooled = 0

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end the sequence."""
        return frozenset(self._answer.stop_ids)

    @property
    def tokens(self) -> Tokens:
        """Prompt and output so far, int32 [length]."""
        return self._tokens[: self.length]

    @property
    def slots(self) -> Slots:
        """Slots of the computed tokens, int64 [computed]."""
        return self._slots[: self.computed]

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are not computed yet."""
        return self.length - self.computed

    @property
    def num_outputs(self) -> int:
        return self.length - self.num_prompt

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether logits of the prompt's own positions are still missing."""
        return self._prompt_logprobs is not None and len(self._prompt_logprobs) < self.num_prompt

    @property
    def wants_hidden(self) -> bool:
        """Whether hidden states of the prompt are still missing."""
        return self.generation.pooling is not None and self._num_pooled < self.num_prompt

    @property
    def computes_whole_prompt(self) -> bool:
        """Whether a cached prefix would hide something that was asked for."""
        pooled = self.generation.pooling == "mean" and self.wants_hidden
        return self.wants_prompt_logits or pooled or bool(self.candidates)

    @property
    def history(self) -> Tensor:
        """Hidden states of all tokens, [length, hidden]; kept for contrastive search only."""
        assert self._history is not None
        return self._history[: self.length]

    def add_history(self, position: int, hidden: Tensor) -> None:
        """Hidden states [n, hidden] of the tokens from `position`."""
        if self._history is None:
            self._history = hidden.new_empty((len(self._tokens), hidden.shape[-1]))
        self._history[position : position + len(hidden)] = hidden

    def add_hidden(self, position: int, hidden: Tensor) -> None:
        """Hidden states [n, hidden] of the prompt tokens from `position`; what recomputation repeats is dropped."""
        fresh = hidden[max(0, self._num_pooled - position) :]
        if self.generation.pooling == "last":
            self._pooled, self._num_pooled = hidden[-1].float(), position + len(hidden)
        elif len(fresh):
            total = fresh.float().sum(0)
            self._pooled = total if self._pooled is None else self._pooled + total
            self._num_pooled += len(fresh)

    def start(self, node: Node, slots: Slots) -> None:
        """Begins (or begins again after a preemption) on a cached prefix, which the caller has locked."""
        self.node, self.computed, self.shared = node, len(slots), len(slots)
        self._slots[: len(slots)] = slots

    def start_over(self) -> None:
        """Forgets every slot; the caller has given them up."""
        self.node, self.computed, self.shared = None, 0, 0

    def extend(self, slots: Slots) -> None:
        """The next len(slots) pending tokens get keys and values in these slots."""
        self._slots[self.computed : self.computed + len(slots)] = slots
        self.computed += len(slots)

    def rebase(self, node: Node, slots: Slots) -> None:
        """The prefix cache now owns the slots of everything computed."""
        self.node, self.shared = node, len(slots)
        self._slots[: len(slots)] = slots

    def add_prompt_logprob(self, position: int, entry: TokenLogprob) -> None:
        """Entry of prompt token `position`; recomputation after a preemption repeats some, which are dropped."""
        assert self._prompt_logprobs is not None
        if position == len(self._prompt_logprobs):
            self._prompt_logprobs.append(entry)

    def append(self, token: int, logprob: TokenLogprob | None, trace: list[dict[str, Any]] | None = None) -> bool:
        """Takes a sampled token, emits what became final, and says whether the sequence goes on. trace: what is told
        of the step."""
        self._tokens[self.length] = token
        self.length += 1
        self.row.append(token)
        delta = self._delta(tokens=[token])
        delta.trace = trace
        answer = self._answer
        delta.text, entries = answer.push(token, logprob)
        if delta.logprobs is not None:
            delta.logprobs += entries
        if answer.ended:
            delta.stop_reason, delta.stop_token, delta.step_end = answer.stop_reason, answer.stop_token, answer.step_end
            self._end(delta, "stop")
        elif self.length >= self.max_length:
            self._end(delta, "length")
        self.sink.put(delta)
        return delta.finish_reason is None

    def finish(self, reason: FinishReason, stop_reason: str | None = None) -> None:
        """Ends the sequence without another token (nothing to generate, or the budget is spent)."""
        delta = self._delta(tokens=[])
        delta.stop_reason = stop_reason
        self._end(delta, reason)
        self.sink.put(delta)

    def fail(self, error: DecodingError) -> None:
        """Ends the sequence with an error."""
        self.sink.put(error)

    def _delta(self, tokens: list[int]) -> Delta:
        delta = Delta(tokens=tokens, logprobs=None if self.generation.logprobs is None else [])
        if self._pending_prompt_logprobs and not self.wants_prompt_logits:
            delta.prompt_logprobs, self._pending_prompt_logprobs = self._prompt_logprobs, False
        if self._pooled is not None and not self.wants_hidden:
            divisor = self.num_prompt if self.generation.pooling == "mean" else 1
            delta.embedding, self._pooled = (self._pooled / divisor).tolist(), None
        return delta

    def _end(self, delta: Delta, reason: FinishReason) -> None:
        delta.finish_reason = reason
        text, entries = self._answer.finish()
        delta.text += text
        if delta.logprobs is not None:
            delta.logprobs += entries
