"""One generation that vLLM computes: what is asked of it, and what becomes of its outputs."""

from collections.abc import Iterable, Mapping
from typing import Any

from models.vllm_runtime.account import Account
from models.vllm_runtime.native import native_parameters
from models.vllm_runtime.notes import Kind, NoteReader
from models.vllm_runtime.wire import encode
from strategies.answer_text import AnswerText
from strategies.budget import BudgetUnit
from strategies.errors import RequestFailed
from strategies.runtime import Delta, FinishReason, Generation, ModelInfo, TokenLogprob
from strategies.text import Tokenizer


class Sequence:
    """State of one `Generation`. Only the engine's event loop touches it.

    tokens: prompt and output so far.
    """

    def __init__(
        self,
        generation: Generation,
        key: int,
        account: Account,
        notes: NoteReader,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        native: bool,
    ) -> None:
        """native: vLLM samples by itself; see `native`."""
        self.generation, self.key, self.account = generation, key, account
        self.tokens = generation.tokens
        self.length = self.num_prompt = len(self.tokens)
        asked = generation.stopping.max_tokens
        limit = info.max_model_len if asked is None else self.num_prompt + asked
        self.max_length = min(info.max_model_len, limit)
        self._info, self._notes, self._native = info, notes, native
        self._answer = AnswerText(generation, tokenizer, info.eos_token_ids)
        notes.expect(key)
        self._held: tuple[int, int, int] | None = None  # what the account has set aside
        self._started = False

    @property
    def generates(self) -> bool:
        """Whether any token is wanted; vLLM always samples one."""
        return self.max_length > self.num_prompt

    async def reserve(self) -> BudgetUnit | None:
        """Sets the prompt aside, and the first token. The unit that doesn't cover it, or None."""
        if not self.account.limited:
            return self.account.meter.refuses()
        wanted = self.account.estimate(self.tokens), self.num_prompt, int(self.generates)
        unit = await self.account.reserve(*wanted)
        if unit is None:
            self._held = wanted
        return unit

    def parameters(self) -> dict[str, Any]:
        """Fields of vLLM's SamplingParams. Greedy where the pipeline runs, since it leaves nothing to choose.

        Stops that `min_tokens` holds back are left to `take`: whether a token counts as one depends on those before.
        """
        generation = self.generation
        raw = generation.logprobs if generation.logprobs_mode == "raw" else None
        stops = () if generation.stopping.min_tokens and not self._native else self._answer.stop_ids
        drawn = {"temperature": 0.0, "extra_args": encode(generation, self.key)}
        return {
            **(native_parameters(generation) if self._native else drawn),
            "max_tokens": self._most_tokens(),
            "ignore_eos": True,
            "stop_token_ids": sorted(stops),
            "detokenize": False,
            "logprobs": raw if self.generates else None,
            "prompt_logprobs": generation.prompt_logprobs,
            "skip_clone": True,
        }

    def take(self, output: Any, step: int) -> Delta:
        """What one of vLLM's outputs adds. Raises RequestFailed for a fault of this request.

        step: number of the engine's step. The sequence is over when the delta has a finish_reason, whatever vLLM says.
        """
        fault = self._notes.fault(self.key)
        if fault is not None:
            raise RequestFailed(fault)
        delta = Delta(logprobs=None if self.generation.logprobs is None else [])
        if not self._started:
            self._begin(output, delta, step)
        if not self.generates:
            return self._end(delta, "length")
        completion = output.outputs[0]
        entries = completion.logprobs or ()
        for i, token in enumerate(completion.token_ids):
            if i or self.length > self.num_prompt:
                self._pay_token(step)
            entry = self._entry(token, entries[i] if i < len(entries) else None)
            if self._append(int(token), entry, delta):
                return delta
            unit = self._refused()
            if unit is not None:
                return self._end(delta, "length", f"budget:{unit}")
        if output.finished and completion.finish_reason != "length":
            raise RequestFailed(f"vLLM ended the request: {completion.finish_reason}")
        if output.finished:  # by what the budget leaves
            unit = self.account.meter.refuses(tokens=1, flops=self._info.flops(1, self.length), outputs=1)
            return self._end(delta, "length", None if unit is None else f"budget:{unit}")
        return delta

    def over_budget(self, unit: BudgetUnit) -> Delta:
        """The delta that ends a sequence which the budget doesn't cover."""
        delta = Delta(logprobs=None if self.generation.logprobs is None else [])
        self.account.meter.exhausted = unit
        return self._end(delta, "length", f"budget:{unit}")

    def release(self) -> None:
        """Gives back what is set aside, and stops the request's clock."""
        self._give_back()
        if self._started:
            self.account.computed(self.tokens[:-1])  # the last one never is
        self._notes.forget(self.key)
        self.account.meter.finish()

    def _most_tokens(self) -> int:
        """At least one; no more than the budget covers, so that vLLM doesn't compute what nobody may have."""
        most = self.max_length - self.num_prompt
        budget, spend = self.account.meter.budget, self.account.meter.spend
        if budget.output_tokens is not None:
            most = min(most, budget.output_tokens - spend.output_tokens)
        if budget.forward_tokens is not None:
            spent = spend.target_tokens + spend.draft_tokens + spend.scorer_tokens
            most = min(most, budget.forward_tokens - spent)  # were the whole prompt cached but for one token
        return max(1, most)

    def _begin(self, output: Any, delta: Delta, step: int) -> None:
        """The first output: what the prompt has cost, and what was asked about it."""
        self._started = True
        self._give_back()
        meter = self.account.meter
        cached = min(output.num_cached_tokens or 0, self.num_prompt - 1)
        fresh = self.num_prompt - cached
        meter.charge(tokens=fresh, flops=self._info.flops(fresh, cached), step=step)
        meter.spend.cached_tokens += cached
        scheduled = getattr(output.metrics, "scheduled_ts", 0.0)
        if meter.admitted is None and scheduled:
            meter.admitted = scheduled
        self.account.computed(self.tokens)
        if self.generation.prompt_logprobs is not None:
            delta.prompt_logprobs = [
                None if entry is None else logprob_entry(entry, self.generation.prompt_logprobs, ranked=True)
                for entry in output.prompt_logprobs or ()
            ]
        if self.generation.pooling is not None:
            note = self._notes.take(self.key, Kind.HIDDEN, self.num_prompt)
            if note is None:
                raise RequestFailed("vLLM's worker sent no hidden state")
            delta.embedding = note.values.tolist()

    def _entry(self, token: int, entry: Mapping[int, Any] | None) -> TokenLogprob | None:
        count = self.generation.logprobs
        if count is None:
            return None
        if self.generation.logprobs_mode == "raw":
            return None if entry is None else logprob_entry(entry, count, ranked=False)
        note = self._notes.take(self.key, Kind.LOGPROBS, self.length)
        if note is None or int(note.ids[0]) != token:
            raise RequestFailed("vLLM's worker sent no log-probabilities")
        ids, values = note.ids.tolist(), note.values.tolist()
        return TokenLogprob(token, values[0], tuple(zip(ids[1:], values[1:], strict=True)))

    def _append(self, token: int, entry: TokenLogprob | None, delta: Delta) -> bool:
        """Adds a token to the delta; True if it was the last one."""
        self.length += 1
        self.tokens.append(token)
        self.account.meter.spend.output_tokens += 1
        delta.tokens.append(token)
        answer = self._answer
        text, entries = answer.push(token, entry)
        delta.text += text
        if delta.logprobs is not None:
            delta.logprobs += entries
        if answer.ended:
            delta.stop_reason, delta.stop_token, delta.step_end = answer.stop_reason, answer.stop_token, answer.step_end
            self._end(delta, "stop", answer.stop_reason)
        elif self.length >= self.max_length:
            self._end(delta, "length")
        return delta.finish_reason is not None

    def _pay_token(self, step: int) -> None:
        """The last token was computed, to sample the next one."""
        self._give_back()
        self.account.meter.charge(tokens=1, flops=self._info.flops(1, self.length - 1), step=step)

    def _refused(self) -> BudgetUnit | None:
        """Sets the next token aside; the unit that doesn't cover it, or None."""
        self._give_back()
        if not self.account.limited:
            return None
        unit = self.account.try_reserve(1, self.length, 1)
        if unit is None:
            self._held = (1, self.length, 1)
        else:
            self.account.meter.exhausted = unit
        return unit

    def _give_back(self) -> None:
        if self._held is not None:
            self.account.give_back(*self._held)
            self._held = None

    def _end(self, delta: Delta, reason: FinishReason, stop_reason: str | int | None = None) -> Delta:
        delta.finish_reason, delta.stop_reason = reason, stop_reason
        text, entries = self._answer.finish()
        delta.text += text
        if delta.logprobs is not None:
            delta.logprobs += entries
        return delta


def logprob_entry(entry: Mapping[int, Any], count: int, *, ranked: bool) -> TokenLogprob:
    """Ours of vLLM's, which names the token in question first, then the most likely ones."""
    pairs: Iterable[tuple[int, float]] = [(token, one.logprob) for token, one in entry.items()]
    token, first = next(iter(entry.items()))
    top = sorted(pairs, key=lambda pair: -pair[1])[:count]
    return TokenLogprob(token, first.logprob, tuple(top), (first.rank or 0) if ranked else 0)
