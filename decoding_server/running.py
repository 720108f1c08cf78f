"""One HTTP request at work: its sequences' deltas merged into one stream, counted, and cancelled together."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from decoding_server.observability import RequestObserver
from decoding_server.protocol.decoding import ResolvedDecoding
from decoding_server.protocol.usage import Usage
from strategies.budget import Meter
from strategies.errors import RequestFailed
from strategies.runtime import Delta, FinishReason, GenerationStream, TokenLogprob
from strategies.search.run import SearchRun


@dataclass(frozen=True, slots=True)
class Prompt:
    """token ids for the model, and the text that `echo` repeats. question: of a conversation, its last user turn.
    prepared: what the request's search has found out about it."""

    tokens: list[int]
    text: str
    question: str | None = None
    prepared: object = None


@dataclass(slots=True)
class Answer:
    """One choice, complete."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason = "length"
    stop_reason: str | int | None = None
    ends_with_stop_token: bool = False
    trace: list[dict[str, Any]] = field(default_factory=list)


class RunningRequest:
    """The sequences of one request; number p * n + i is choice i of prompt p."""

    def __init__(
        self,
        prompts: list[Prompt],
        choices_per_prompt: int,
        streams: Sequence[GenerationStream],
        meter: Meter,
        decoding: ResolvedDecoding,
        observer: RequestObserver,
        searches: Sequence[SearchRun] = (),
    ) -> None:
        self.prompts = prompts
        self.choices_per_prompt = choices_per_prompt
        self.streams = streams
        self.meter = meter
        self.decoding = decoding
        self.observer = observer
        self.searches = searches
        self.completion_tokens = 0

    def prompt_of(self, choice: int) -> Prompt:
        return self.prompts[choice // self.choices_per_prompt]

    def cancel(self) -> None:
        """Frees every sequence before the engine's next step. Safe at any time, also after the end."""
        for stream in self.streams:
            stream.cancel()

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """(choice number, delta) in order of arrival. Raises what a stream raises, after cancelling the others."""
        try:
            source = self._single() if len(self.streams) == 1 else self._merged()
            async for choice, delta in source:
                self.completion_tokens += len(delta.tokens)
                self.observer.delta(choice, delta)
                yield choice, delta
        except Exception as error:
            self.observer.raised(error)
            raise
        finally:
            self.cancel()
            self._tell_of_programs()

    def _tell_of_programs(self) -> None:
        """Metrics of the searches for programs, ended or cancelled."""
        for run in self.searches:
            if run.search.runs_programs:
                found = run.trace.facts.get("solved_at")
                duplicates = run.trace.calls["programs_duplicate"]
                self.observer.searched(run.search.name, duplicates, None if found is None else found + 1)

    async def _single(self) -> AsyncIterator[tuple[int, Delta]]:
        async for delta in self.streams[0]:
            yield 0, delta

    async def _merged(self) -> AsyncIterator[tuple[int, Delta]]:
        arrivals: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()

        async def forward(choice: int, stream: GenerationStream) -> None:
            try:
                async for delta in stream:
                    arrivals.put_nowait((choice, delta))
            except Exception as error:
                arrivals.put_nowait((choice, error))
            else:
                arrivals.put_nowait((choice, None))

        tasks = [asyncio.create_task(forward(choice, stream)) for choice, stream in enumerate(self.streams)]
        try:
            unfinished = len(tasks)
            while unfinished:
                choice, item = await arrivals.get()
                if item is None:
                    unfinished -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield choice, item
        finally:
            for task in tasks:
                task.cancel()

    async def answers(self) -> list[Answer]:
        """Every choice to its end, in order."""
        answers = [Answer() for _ in self.streams]
        texts: list[list[str]] = [[] for _ in self.streams]
        unfinished = set(range(len(answers)))
        async for choice, delta in self.deltas():
            answer = answers[choice]
            texts[choice].append(delta.text)
            answer.tokens += delta.tokens
            answer.logprobs += delta.logprobs or ()
            answer.trace += delta.trace or ()
            if delta.prompt_logprobs is not None:
                answer.prompt_logprobs = delta.prompt_logprobs
            if delta.finish_reason is not None:
                answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
                answer.ends_with_stop_token = delta.stop_token
                unfinished.discard(choice)
        if unfinished:
            raise RequestFailed("The model stopped without finishing the answer.")
        for answer, parts in zip(answers, texts, strict=True):
            answer.text = "".join(parts)
        return answers

    def keep_best(self, answers: list[Answer], choices: int) -> list[Answer]:
        """Of each prompt's answers the `choices` with the highest mean log-probability per token, best first (OpenAI's
        rule for `best_of`); only their tokens count as returned."""
        kept: list[Answer] = []
        for start in range(0, len(answers), self.choices_per_prompt):
            group = answers[start : start + self.choices_per_prompt]
            kept += sorted(group, key=_mean_logprob, reverse=True)[:choices]
        self.choices_per_prompt = choices
        self.completion_tokens = sum(len(answer.tokens) for answer in kept)
        return kept

    def traces(self, records: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]] | None:
        """What the searches, one per prompt, tell of themselves; without a search, the records of each choice. None if
        nothing was asked for."""
        if "trace" in self.decoding:
            return [{"index": index, "records": one} for index, one in enumerate(records)]
        reports = [report for run in self.searches if (report := run.trace.report()) is not None]
        return reports or None

    def usage(self) -> Usage:
        """What has been spent by now; final after the last delta."""
        spend = self.meter.spend
        usage = self.token_counts()
        usage["prompt_tokens_details"] = {"cached_tokens": min(spend.cached_tokens, usage["prompt_tokens"])}
        if spend.rounds:
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": spend.accepted_tokens,
                "rejected_prediction_tokens": spend.drafted_tokens - spend.accepted_tokens,
            }
        usage["decoding"] = {
            "target_tokens": spend.target_tokens,
            "draft_tokens": spend.draft_tokens,
            "cached_tokens": spend.cached_tokens,
            "output_tokens": spend.output_tokens,
            "drafted_tokens": spend.drafted_tokens,
            "accepted_tokens": spend.accepted_tokens,
            "accepted_by_level": spend.accepted_by_level,
            "rounds": spend.rounds,
            "scorer_calls": spend.scorer_calls,
            "scorer_tokens": spend.scorer_tokens,
            "forward_passes": spend.forward_passes,
            "flops": spend.flops + spend.scorer_flops,
            "seconds": round(self.meter.seconds, 6),
            "budget_exhausted": self.meter.exhausted,
        }
        if self.searches:
            totals = [run.trace.summary() for run in self.searches]
            names = dict.fromkeys(name for one in totals for name in one)
            usage["decoding"]["search"] = {name: sum(one.get(name, 0) for one in totals) for name in names}
        if spend.rounds:
            usage["decoding"]["block_efficiency"] = round(1 + spend.accepted_tokens / spend.rounds, 4)
        if spend.picked:
            usage["decoding"]["picked"] = spend.picked
        return usage

    def token_counts(self) -> Usage:
        """OpenAI's three numbers alone, for the chunks of a stream."""
        prompt_tokens = sum(len(prompt.tokens) for prompt in self.prompts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
        }


def _mean_logprob(answer: Answer) -> float:
    values = [entry.logprob for entry in answer.logprobs]
    return sum(values) / len(values) if values else 0.0
