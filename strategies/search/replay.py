"""Repeats a search from what its full trace recorded, without model and sandbox: to follow why it chose as it did, or
to see what a changed search would have done with the same replies and results.

    record = reply["trace"][0]                              # of a request with "trace": "full"
    context = Replay(runtime, generation, record, question="Write add(a, b), …")
    nodes = await replayed(search, context)

For searches that only ask questions of their own and run programs, as those for programs do.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from strategies.errors import RequestFailed
from strategies.runtime import Generation, Runtime
from strategies.sandbox.checks import digest_of
from strategies.sandbox.outcome import Limits, Outcome, Result
from strategies.search.asking import Question, Reply
from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.program_prompts import Prompts
from strategies.search.trace import Record, Trace

if TYPE_CHECKING:
    from strategies.sandbox.checks import Check
    from strategies.sandbox.outcome import Program
    from strategies.search.search import Search

ANY = Limits(test_s=300, memory_mb=1 << 16, output_kb=1 << 14)
"""Nothing is run, so the limits that the request asked for are not compared with an operator's."""


class NotRecorded(RequestFailed):
    """The search does something that it did not do when it was recorded."""


class Replay(SearchContext):
    """A context that answers from a record, the report of a full trace. Questions are known by their messages and their
    seed, programs by their source."""

    def __init__(
        self,
        runtime: Runtime,
        generation: Generation,
        record: Mapping[str, Any],
        *,
        n: int = 1,
        prompts: Prompts | None = None,
        prompt_text: str = "",
        question: str | None = None,
    ) -> None:
        """runtime: of it, only the tokenizer and the info are read. generation: the request's, with the same seed and
        limits, and a fresh meter."""
        super().__init__(
            runtime,
            generation,
            n=n,
            prompts=prompts,
            trace=Trace("full"),
            prompt_text=prompt_text,
            question=question,
        )
        self._backend: str | None = record.get("backend")
        self._asked: dict[str, Record] = {
            key_of(one["question"], one["seed"]): one for one in record.get("questions", ())
        }
        self._ran: dict[str, Record] = {one["program"]: one for one in record.get("runs", ())}

    async def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Raises NotRecorded."""
        return [self._reply(question) for question in questions]

    def _reply(self, question: Question) -> Reply:
        key = key_of(question.messages, str(question.seed))
        if key not in self._asked:
            raise NotRecorded(f"this was not asked when the search was recorded: {question.messages[-1][1][:200]!r}")
        found = self._asked[key]
        if found["end"] == "budget":
            self.generation.meter.exhausted = found["exhausted"]
        pieces = tuple((text, logprob) for text, logprob in found.get("pieces", ()))
        return Reply(found["reply"], found["tokens"], found["end"], pieces)

    async def results(self, program: "Program", checks: "Sequence[Check]", limits: Limits) -> list[Result]:
        """Raises NotRecorded."""
        found = self._ran.get(program.source)
        if found is None or found["tests"] != digest_of(program, checks):
            raise NotRecorded(f"this was not run, or on other tests, when the search was recorded: {program.source!r}")
        if found["results"] is None:
            self.generation.meter.exhausted = found["exhausted"]
            raise BudgetExhausted("the budget is spent")
        return [Result(**{**one, "outcome": Outcome(one["outcome"])}) for one in found["results"]]

    @property
    def program_limits(self) -> Limits:
        return ANY

    @property
    def backend(self) -> str | None:
        return self._backend


def key_of(messages: Sequence[Sequence[str]], seed: str) -> str:
    return "\0".join([seed, *(part for message in messages for part in message)])


async def replayed(search: "Search", context: Replay) -> list[Node]:
    """The answers, best first, as `SearchRun` has them; the context's trace tells how they were found."""
    try:
        nodes = list(await search.run(context))
    except BudgetExhausted:
        nodes = []
    return nodes or [context.fallback()]
