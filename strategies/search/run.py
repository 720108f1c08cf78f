"""Runs one search for one prompt and presents its answers as ordinary streams, one per choice."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from strategies.answer_text import AnswerText
from strategies.context_room import check_room
from strategies.delta_queue import DeltaQueue, Item
from strategies.errors import DecodingError, RequestFailed
from strategies.runtime import Delta, FinishReason, Generation, Runtime, StopConditions, TokenLogprob
from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.program_prompts import Prompts
from strategies.search.search import Search
from strategies.search.trace import Record, Trace

if TYPE_CHECKING:
    from strategies.sandbox.sandbox import Sandbox
    from strategies.scoring.value import ValueFunction

log = logging.getLogger(__name__)


class ChoiceStream(DeltaQueue):
    """One choice of the reply. Implements `GenerationStream`."""

    def __init__(self, run: "SearchRun") -> None:
        super().__init__()
        self._run = run
        self.ended = False

    def put(self, item: Item) -> None:
        self.ended = isinstance(item, DecodingError) or item.finish_reason is not None
        self.deliver(item)

    def cancel(self) -> None:
        """Ends the whole search: its choices are found together."""
        self._run.cancel()


class SearchRun:
    """A search from its submission to its answers. Begins at once; cancelling any of its streams ends it."""

    def __init__(
        self,
        search: Search,
        runtime: Runtime,
        generation: Generation,
        *,
        n: int = 1,
        scorers: "Mapping[str, ValueFunction] | None" = None,
        sandbox: "Sandbox | None" = None,
        prompts: Prompts | None = None,
        prompt_text: str = "",
        question: str | None = None,
        prepared: object = None,
    ) -> None:
        """generation: see `SearchContext`. Computes the prompt first, which every branch then shares; of a search that
        answers with a text of its own a single token, for its place in the queue.

        Raises what `Runtime.submit` raises, before anything runs.
        """
        self.search = search
        if search.own_text:
            generation = replace(generation, prompt=generation.prompt[:1])
        self.generation = generation
        self.trace = Trace(search.trace, self._traced)
        self.context = SearchContext(
            runtime,
            generation,
            n=n,
            scorers=scorers,
            sandbox=sandbox,
            prompts=prompts,
            trace=self.trace,
            prompt_text=prompt_text,
            question=question,
            prepared=prepared,
        )
        self.context.on_commit = self._committed
        self.streams = [ChoiceStream(self) for _ in range(n)]
        self._sent = self._answer_text()
        self._sent_tokens: list[int] = []
        self._runtime = runtime
        search.check_context(self.context)
        # A search always generates, so max_tokens 0 is no excuse for a full context.
        check_room(len(generation.prompt), generation.stopping.max_tokens or None, runtime.info.max_model_len)
        prefill = replace(
            generation, stopping=StopConditions(max_tokens=0), logprobs=None, prompt_logprobs=None, speculation=None
        )
        self._prefill = runtime.submit([prefill])[0]
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        """Frees every branch before the engine's next step. Safe at any time, also after the end."""
        if not self._task.done():
            self._task.cancel()
            self._prefill.cancel()
            self.context.cancel()
            self._fail(RequestFailed("the generation was cancelled"))

    async def _run(self) -> None:
        try:
            async for _ in self._prefill:
                pass
            try:
                nodes = list(await self.search.run(self.context))
            except BudgetExhausted:
                nodes = []
            nodes = nodes or [self.context.fallback()]
            if self.search.trace == "full":
                self.trace.facts["answers"] = [node.number for node in nodes[: len(self.streams)]]
            if self.search.trace != "none":
                self._tell([{"event": "summary", **self.trace.summary(), **self.trace.facts}])
            # n choices were asked for: those beyond the answers found stay empty, as if cut off before the first token.
            nodes += [self.context.root] * (len(self.streams) - len(nodes))
            for choice, stream in enumerate(self.streams):
                self._finish(stream, nodes[choice], choice)
        except asyncio.CancelledError:
            raise
        except DecodingError as error:
            self._fail(error)
        except Exception as error:  # a strategy's bug ends its own request only
            log.exception("the search %s failed", self.search.name)
            self._fail(RequestFailed(f"internal error: the search {self.search.name} failed: {error}"))
        finally:
            self.context.cancel()

    def _finish(self, stream: ChoiceStream, node: Node, choice: int) -> None:
        """The whole answer, or for the first choice what of it is not sent yet."""
        sent, tokens = (self._sent, self._sent_tokens) if choice == 0 else (self._answer_text(), [])
        if list(node.tokens[: len(tokens)]) != tokens:
            raise RequestFailed("internal error: the answer is not what the search had committed to")
        if node.written:
            delta = Delta(node.text, list(node.tokens), logprobs=None if self.generation.logprobs is None else [])
        else:
            delta = self._pushed(sent, node, len(tokens), len(node.tokens))
            text, entries = sent.finish()
            delta.text += text
            if delta.logprobs is not None:
                delta.logprobs += entries
            delta.stop_token = sent.stop_token
        delta.finish_reason, delta.stop_reason = self._reason(node)
        stream.put(delta)

    def _reason(self, node: Node) -> tuple[FinishReason, str | int | None]:
        # A written answer that was cut before a character of several tokens leaves room, too.
        if node.end == "stop" or (not node.written and node.finished and self.context.room(node) > 0):
            return "stop", node.answer.stop_reason
        unit = self.generation.meter.exhausted
        return "length", f"budget:{unit}" if unit is not None and not node.finished else None

    def _committed(self, node: Node, length: int) -> None:
        """Sends what the search has committed itself to by now."""
        if node.finished and length == len(node.tokens):
            length -= 1  # the end goes out together with the reason for it
        delta = self._pushed(self._sent, node, len(self._sent_tokens), length)
        self._sent_tokens = list(node.tokens[:length])
        if delta.text or delta.logprobs or delta.tokens:
            self.streams[0].put(delta)

    def _pushed(self, sent: AnswerText, node: Node, start: int, end: int) -> Delta:
        wants = self.generation.logprobs is not None
        entries: list[TokenLogprob | None] = [*node.answer_logprobs] if wants else []
        entries += [None] * (len(node.tokens) - len(entries))
        delta = Delta(tokens=list(node.tokens[start:end]), logprobs=[] if wants else None)
        for token, entry in zip(node.tokens[start:end], entries[start:end], strict=True):
            text, released = sent.push(token, entry)
            delta.text += text
            if delta.logprobs is not None:
                delta.logprobs += released
        return delta

    def _traced(self, record: Record) -> None:
        self._tell([record])

    def _tell(self, records: list[Record]) -> None:
        if not self.streams[0].ended:
            self.streams[0].put(Delta(logprobs=None if self.generation.logprobs is None else [], trace=records))

    def _answer_text(self) -> AnswerText:
        return AnswerText(self.generation, self.context.runtime.tokenizer, self.context.runtime.info.eos_token_ids)

    def _fail(self, error: DecodingError) -> None:
        for stream in self.streams:
            if not stream.ended:
                stream.put(error)


def search_streams(runs: Sequence[SearchRun]) -> list[ChoiceStream]:
    """The streams of several searches, prompt by prompt."""
    return [stream for run in runs for stream in run.streams]
