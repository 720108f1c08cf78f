"""Searches for programs: what they have in common. The model writes programs, tests decide, the best is the answer."""

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from strategies.errors import InvalidRequest
from strategies.sandbox.outcome import Limits
from strategies.search.coding_task import CodingTask, coding_tasks
from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.program_forest import ProgramForest
from strategies.search.prompt_examples import entry_point_of
from strategies.search.search import Asked, Search, fault
from strategies.search.visible_tests import GivenTest, ScriptTest
from strategies.search.workshop import Workshop

if TYPE_CHECKING:
    from strategies.runtime import Runtime, SamplingParameters
    from strategies.search.program_prompts import Prompts
    from strategies.speculative.speculation import Speculation

MAX_TESTS = 256 << 10
Temperature = Annotated[float | None, Field(ge=0, le=5)]


class RunLimits(BaseModel):
    """Of one program; null is the operator's limit, which is also the most."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    test_s: Annotated[float | None, Field(ge=0.05, le=300, description="Wall seconds of each test.")] = None
    memory_mb: Annotated[int | None, Field(ge=96, le=65536, description="Address space, interpreter included.")] = None
    output_kb: Annotated[int | None, Field(ge=1, le=16384, description="What it may print.")] = None

    def within(self, most: Limits) -> Limits:
        """With the operator's limits where there is none. Raises InvalidRequest for one that is above."""
        chosen = Limits(
            most.test_s if self.test_s is None else self.test_s,
            most.memory_mb if self.memory_mb is None else self.memory_mb,
            most.output_kb if self.output_kb is None else self.output_kb,
        )
        if (name := chosen.beyond(most)) is not None:
            field = f"decoding.search.sandbox.{name}"
            raise InvalidRequest(f"'{field}' must be at most {getattr(most, name)} on this server", field)
        return chosen


class CodingSearch(Search):
    """Base of the searches for Python programs. The prompt's last user turn, or the whole of a plain prompt, is the
    task; all prompts are the search's own, and the answer is the program alone."""

    runs_programs: ClassVar = True
    own_text: ClassVar = True

    k: Annotated[int, Field(ge=1, le=128, description="Most programs to evaluate.")] = 10
    entry_point: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z_]\w{0,99}$",
            description="The function that is asked for; null: what the prompt defines, or the tests call.",
        ),
    ] = None
    tests: Annotated[
        tuple[GivenTest, ...],
        Field(
            max_length=64,
            strict=False,
            description='Tests: {"assert": …}, {"call": …, "expected": …}, or for scripts {"stdin": …, "stdout": …}.',
        ),
    ] = ()
    setup: Annotated[str, Field(max_length=65536, description="Code that runs behind the program, before a test.")] = ""
    examples_from_prompt: Annotated[bool, Field(description="Whether examples in the prompt are tests.")] = True
    generate_tests: Annotated[
        Literal["missing", "fill", "never"],
        Field(description="When the model writes tests: if there are none, up to `n_tests` in all, or never."),
    ] = "missing"
    n_tests: Annotated[
        int, Field(ge=1, le=32, description="How many tests to have the model write, or fill up to.")
    ] = 6
    suspect_tests: Annotated[
        bool,
        Field(
            description="Whether a generated test is dropped when two programs that pass all given and prompt tests "
            "return the same other value."
        ),
    ] = False
    wave: Annotated[int, Field(ge=1, le=32, description="Programs that are written and run at the same time.")] = 1
    seed_temperature: Annotated[Temperature, Field(description="For first programs; null: the request's.")] = 0.7
    code_temperature: Annotated[Temperature, Field(description="For changed programs; null: the request's.")] = 0.2
    final: Annotated[
        Literal["recommended", "official"],
        Field(description="The best by given tests, all tests, votes, depth, length; or the first of highest score."),
    ] = "recommended"
    format: Annotated[
        Literal["fenced", "raw"], Field(description="The answer: one fenced code block, or the program alone.")
    ] = "fenced"
    sandbox: Annotated[RunLimits, Field(description="Limits of each program.")] = RunLimits()

    @model_validator(mode="after")
    def _usable_tests(self) -> "CodingSearch":
        scripts = [isinstance(test, ScriptTest) for test in self.tests]
        if any(scripts) and not all(scripts):
            raise fault("tests", "of a script and of a function can't be mixed")
        if sum(len(test.source) for test in self.tests) > MAX_TESTS:
            raise fault("tests", f"together longer than {MAX_TESTS} characters")
        if any(scripts) and self.entry_point is not None:
            raise fault("entry_point", "a script has none")
        return self

    @property
    def most_answers(self) -> int:
        return self.k

    @property
    def rivals(self) -> int:
        """How many programs there are to choose from where no test is."""
        return 1

    @property
    def is_script(self) -> bool:
        """Whether a whole program is asked for, by tests of its output."""
        return bool(self.tests) and isinstance(self.tests[0], ScriptTest)

    def function(self, task: str) -> str:
        """The function that is asked for; "" for a script. Raises InvalidRequest where it can't be told."""
        if self.is_script:
            return ""
        name = self.entry_point or entry_point_of(task, [test.source for test in self.tests])
        if name is None:
            raise InvalidRequest(
                "'decoding.search.entry_point' is required: neither the prompt nor the tests name one function",
                "decoding.search.entry_point",
            )
        return name

    async def prepared(self, asked: Sequence[Asked], runtime: "Runtime", prompts: "Prompts") -> Sequence[CodingTask]:
        return await asyncio.to_thread(coding_tasks, self, asked, runtime, prompts)

    def task_of(self, context: SearchContext) -> CodingTask:
        """Raises InvalidRequest."""
        if not isinstance(context.prepared, CodingTask):
            asked = Asked(context.question, context.is_chat, context.generation.stopping.max_tokens or None)
            (context.prepared,) = coding_tasks(self, [asked], context.runtime, context.prompts)
        return context.prepared

    def check_context(self, context: SearchContext) -> None:
        self.task_of(context)
        if context.sandbox is not None:
            self.sandbox.within(context.sandbox.limits)

    def check_sampling(
        self, sampling: "SamplingParameters", speculation: "Speculation | None", *, logprobs: bool
    ) -> None:
        if logprobs:
            raise InvalidRequest(
                f"'logprobs' can't be combined with the search {self.name!r}, whose answer is put together by it",
                "logprobs",
            )

    async def run(self, context: SearchContext) -> Sequence[Node]:
        work = Workshop(self, context)
        await work.read_tests()
        try:
            await self.find(work)
        except BudgetExhausted:
            if not work.drafts:
                raise
            work.stop_reason = context.generation.meter.exhausted or "budget"
        return await self.answers(work)

    def _rescore(self, work: Workshop, forest: ProgramForest) -> None:
        """After tests may have gone."""
        if self.suspect_tests:
            attempts = work.attempts
            forest.rescore([one.score for one in attempts], [one.solved for one in attempts])

    @abstractmethod
    async def find(self, work: Workshop) -> None:
        """Writes and evaluates at most k programs. BudgetExhausted may pass through."""

    async def answers(self, work: Workshop) -> Sequence[Node]:
        """The evaluated programs, best first."""
        return await work.answers(work.ranked(self.final))
