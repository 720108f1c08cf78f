"""What a search is: one class, whose fields are the request's parameters and whose coroutine finds the answers.

    class Majority(Search):
        name: ClassVar = "majority"
        samples: Annotated[int, Field(ge=1, le=64)] = 8

        async def run(self, context):
            (nodes,) = await context.extend([context.root], self.samples)
            ...
            return nodes, the best first

Everything awaited at the same time, by any request, is batched by the engine. A search never sees other requests,
threads or KV slots; a prefix that nodes share is computed once, whatever the search does. A new search is one file in
this package, or a class behind an entry point of the group `decoding_server.strategies`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from strategies.registry import register
from strategies.search.node import Node

if TYPE_CHECKING:
    from strategies.runtime import Runtime, SamplingParameters
    from strategies.scoring.value import ValueFunction
    from strategies.search.context import SearchContext
    from strategies.search.program_prompts import Prompts
    from strategies.speculative.speculation import Speculation

TraceLevel = Literal["none", "summary", "full"]


def fault(field: str, message: str) -> PydanticCustomError:
    """What a validator of several parameters raises: it names the one at fault."""
    return PydanticCustomError("value", "{message}", {"message": message, "field": field})


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt of a request. text: of a chat its last user turn, else the whole prompt."""

    text: str
    is_chat: bool
    max_tokens: int | None = None


class Search(BaseModel):
    """Base of all searches.

    whole_answers: every node is sampled from the root to its end, so whatever constrains or parses a whole answer
    (structured output, tools, adaptive samplers) works as it does without a search. draws: tokens are drawn one behind
    the other, so drafts can foresee them. runs_programs: it needs the sandbox. own_text: the answer is put together by
    the search from replies to questions of its own, so it has no log-probabilities, and the request's prompt is neither
    computed nor charged, and need not fit the model's context.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: ClassVar[str]
    whole_answers: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    runs_programs: ClassVar[bool] = False
    own_text: ClassVar[bool] = False

    trace: Annotated[
        TraceLevel, Field(description="How much of the search the reply tells: nothing, its counts, the whole tree.")
    ] = "none"

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        if "name" in cls.__dict__:
            register("search", cls.name, cls)

    @property
    @abstractmethod
    def most_answers(self) -> int:
        """The largest `n` that a request may ask for."""

    def check(self, scorers: Mapping[str, "ValueFunction"]) -> None:
        """Raises InvalidRequest for what this server can't do: `scorers` are the value functions that it has loaded."""
        return

    async def prepared(self, asked: Sequence[Asked], runtime: "Runtime", prompts: "Prompts") -> Sequence[object]:
        """Of each prompt what takes long to find out, so beside the event loop: `context.prepared` later. A search that
        is run without it finds it out then. Raises InvalidRequest."""
        return [None] * len(asked)

    def check_context(self, context: "SearchContext") -> None:
        """Raises InvalidRequest for a question or a sandbox that it can't work with. Nothing has been generated yet."""
        return

    def check_sampling(
        self, sampling: "SamplingParameters", speculation: "Speculation | None", *, logprobs: bool
    ) -> None:
        """Raises InvalidRequest for a pipeline or a speculation that this search can't follow, or for log-probabilities
        that it can't give."""
        return

    @abstractmethod
    async def run(self, context: "SearchContext") -> Sequence[Node]:
        """The answers, best first: `context.n` of them where there are so many, distinct where it can tell.

        BudgetExhausted may pass through: the answer is then the best that was proposed (`SearchContext.propose`).
        """
