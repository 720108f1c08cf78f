"""The work of a search for programs: questions to the model, tests, runs in the sandbox, and what came of them."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strategies.sandbox.checks import CallCheck, StatementCheck
from strategies.sandbox.outcome import Program, Result
from strategies.search.asking import Question, Reply
from strategies.search.attempt import UNUSABLE, Attempt, Draft, drafted, kept, key_of
from strategies.search.coding_task import CodingTask, first_question
from strategies.search.node import Node
from strategies.search.program_choice import Candidate, derive_seed, first_highest, preference, theme_order
from strategies.search.program_forest import reward
from strategies.search.program_prompts import Prompts, feedback, what_happened
from strategies.search.suspect_tests import suspect_tests, without
from strategies.search.vetting import Vetted
from strategies.search.visible_tests import VisibleTest, generated_tests, inputs_of, prompt_tests

if TYPE_CHECKING:
    from strategies.search.coding_search import CodingSearch
    from strategies.search.context import SearchContext

CODE_TOKENS = 4096
"""Of a program, where the request sets no limit (the published runs' own)."""
CODE_ENDS = ("\n```\n",)
"""The end of a reply's first block: what models say behind it is not read. An opening without a language, behind other
words, looks the same; such a reply holds no program then, and is asked for again without this."""
TEST_TOKENS = 1024
TEST_TRIES = 3
COUNTED = ("asked", "asked_tokens", "programs", "programs_run", "programs_duplicate", "programs_passed")
"""What usage always tells, also where it is 0."""
EXTRA_TESTS = 2
"""Asked for beyond those wanted, since some are dropped."""


@dataclass(slots=True)
class Workshop:
    """inputs: calls by whose results programs are compared where there is no test. drafts: every reply that should hold
    a program; attempts: those evaluated, in order. counts: what replies ignored the format. stop_reason: why the search
    ended."""

    search: "CodingSearch"
    context: "SearchContext"
    tests: list[VisibleTest] = field(default_factory=list)
    inputs: list[CallCheck] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    stop_reason: str = "k"
    task: str = field(init=False)
    function: str = field(init=False)
    given: CodingTask = field(init=False)
    prompts: Prompts = field(init=False)
    _known: dict[str, list[Result]] = field(default_factory=dict)
    _first: dict[str, int] = field(default_factory=dict)
    _test_tries: int = 0
    _written_tests: list[str] = field(default_factory=list)
    _read: dict[str, Vetted | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.given = self.search.task_of(self.context)
        self.task, self.function = self.given.text, self.given.function
        self.prompts = self.context.prompts
        for name in COUNTED:
            self.context.trace.called(name, 0)

    async def read_tests(self) -> None:
        """Those given and those in the prompt."""
        self.tests = list(self.given.tests)
        if self.search.examples_from_prompt and self.function:
            self.tests += await self.context.compute(prompt_tests, self.task, self.function, self.tests)

    # -- asking ------------------------------------------------------------------------------------------------------

    def question(
        self,
        role: str,
        node: str,
        system: str,
        user: str,
        *,
        attempt: int = 0,
        temperature: float | None = None,
        max_tokens: int | None = None,
        scored: bool = False,
        prefix: str = "",
        stop: tuple[str, ...] = (),
    ) -> Question:
        """What the call is for keys its noise, so a seed repeats a search whatever else the server does."""
        seed = derive_seed(self.context.generation.seed, role, node, attempt)
        return Question((("system", system), ("user", user)), seed, temperature, max_tokens, scored, prefix, stop)

    def code_question(
        self, role: str, node: str, user: str, temperature: float | None, *, attempt: int = 0
    ) -> Question:
        system = self.prompts.coder if self.function else self.prompts.scripter
        most = self.context.generation.stopping.max_tokens or CODE_TOKENS
        return self.question(
            role,
            node,
            system.format(entry_point=self.function),
            user,
            attempt=attempt,
            temperature=temperature,
            max_tokens=most,
            stop=() if attempt else CODE_ENDS,
        )

    def plain_question(self, temperature: float | None = None, *, attempt: int = 0) -> Question:
        """For a first program, without a theme."""
        _, (_, user) = first_question(self.prompts, self.given)
        return self.code_question("seed", "n0", user, temperature, attempt=attempt)

    async def write(self, questions: Sequence[Question], again: Sequence[Question]) -> list[Draft]:
        """A draft for each question; where the reply holds no program, by the second question. Those that the budget
        cut off are no programs: evaluate those `kept`."""
        drafts = [drafted(reply) for reply in await self.context.ask(questions)]
        self.drafts += drafts
        return await self._rewritten(drafts, again)

    async def _rewritten(self, drafts: list[Draft], again: Sequence[Question]) -> list[Draft]:
        unasked = ("context", "budget")
        failed = [i for i, draft in enumerate(drafts) if draft.source is None and draft.reply.end not in unasked]
        self.counts["replies_without_program"] += len(failed)
        if failed and not self.context.exhausted:
            replies = await self.context.ask([again[i] for i in failed])
            for i, reply in zip(failed, replies, strict=True):
                drafts[i] = drafted(reply)
                self.drafts.append(drafts[i])
                self.counts["replies_without_program"] += drafts[i].source is None and not drafts[i].cut_off
        return drafts

    async def first_drafts(self, count: int, themes: Sequence[str] = (), first: int = 0) -> list[Draft]:
        """So many first programs, each with a theme of its own if there are any; the first time also the tests that
        have to be written, by a model that has not seen the programs. Fewer where the budget cut some off; raises
        BudgetExhausted where it cut off all."""
        order = theme_order(self.context.generation.seed, len(themes))
        questions, again = [], []
        for i in range(first, first + count):
            fields = {"task": self.task, "entry_point": self.function}
            user = self.prompts.seed.format(**fields)
            if themes:
                user = self.prompts.themed_seed.format(**fields, theme=themes[order[i % len(order)]])
            heat = self.search.seed_temperature
            questions.append(self.code_question("seed", f"n{i}", user, heat))
            again.append(self.code_question("seed", f"n{i}", user, heat, attempt=1))
        wanted = self._test_questions() if first == 0 else []
        replies = await self.context.ask([*questions, *wanted])
        drafts = [drafted(reply) for reply in replies[:count]]
        self.drafts += drafts
        for reply in replies[count:]:
            await self._take_tests(reply)
        while first == 0 and not self.context.exhausted and (wanted := self._test_questions()):
            (reply,) = await self.context.ask(wanted)
            await self._take_tests(reply)
        if first == 0:
            await self._find_inputs()
            shown = [{"test": test.source, "origin": test.origin} for test in self.tests]
            inputs = [one.source for one in self.inputs]
            self.context.trace.happened("tests", tests=shown, inputs=inputs, dropped=self.counts["tests_dropped"])
        drafts = await self._rewritten(drafts, again)
        return [drafts[place] for place in kept(drafts)]

    def _test_questions(self) -> list[Question]:
        search = self.search
        missing = search.n_tests - len(self.tests)
        wants = search.generate_tests == "fill" or (search.generate_tests == "missing" and not self.tests)
        # In the mode "missing" the first tries that give anything are enough.
        if not wants or missing <= 0 or not self.function or self._test_tries == TEST_TRIES:
            return []
        fields = {"task": self.task, "entry_point": self.function, "n": missing + EXTRA_TESTS}
        self._test_tries += 1
        return [
            self.question(
                "tests",
                "root",
                self.prompts.tests_system.format(entry_point=self.function),
                self.prompts.tests.format(**fields),
                attempt=self._test_tries - 1,
                temperature=self.search.seed_temperature,
                max_tokens=TEST_TOKENS,
            )
        ]

    async def _find_inputs(self) -> None:
        """Calls to compare programs by, where there is no test and more than one program to choose from: those in the
        prompt and in the tests that could not be used, else such as the model writes for it."""
        search = self.search
        if self.tests or not self.function or search.rivals < 2 or search.final != "recommended":
            return
        texts = [self.task, *self._written_tests] if search.examples_from_prompt else self._written_tests
        self.inputs = await self.context.compute(inputs_of, texts, self.function, search.n_tests)
        if self.inputs or search.generate_tests == "never" or self.context.exhausted:
            return
        fields = {"task": self.task, "entry_point": self.function, "n": search.n_tests + EXTRA_TESTS}
        question = self.question(
            "inputs",
            "root",
            self.prompts.inputs_system.format(entry_point=self.function),
            self.prompts.inputs.format(**fields),
            temperature=search.seed_temperature,
            max_tokens=TEST_TOKENS,
        )
        (reply,) = await self.context.ask([question])
        self.inputs = await self.context.compute(inputs_of, [reply.text], self.function, search.n_tests)

    async def _take_tests(self, reply: Reply) -> None:
        """A test may contradict one of an earlier reply, so all are read again."""
        self._written_tests.append(reply.text)
        known = [test for test in self.tests if test.origin != "generated"]
        most = self.search.n_tests - len(known)
        written, dropped = await self.context.compute(
            generated_tests, self._written_tests, self.function, known, most, self._read
        )
        self.tests = [*known, *written]
        self.counts["tests_dropped"] = dropped

    # -- running -----------------------------------------------------------------------------------------------------

    async def evaluate(self, drafts: Sequence[Draft], depths: Sequence[int]) -> list[Attempt]:
        """Runs the drafts' programs at the same time; each becomes an attempt. Equal programs are run once. Raises
        BudgetExhausted, after keeping what has been evaluated."""
        keys = [await self.context.compute(key_of, draft) for draft in drafts]
        sources = {key: draft.source for key, draft in zip(keys, drafts, strict=True)}
        new = {key: source for key, source in sources.items() if source is not None and key not in self._known}
        found = await asyncio.gather(*(self._run(source) for source in new.values()), return_exceptions=True)
        for key, results in zip(new, found, strict=True):
            if not isinstance(results, BaseException):
                self._known[key] = results
                self.context.trace.called("programs_run", 1)
        attempts = []
        for key, draft, depth in zip(keys, drafts, depths, strict=True):
            if draft.source is None:
                unusable = [UNUSABLE] * (max(1, len(self.tests)) + len(self.inputs))
                attempts.append(self._attempt(draft, depth, key, unusable))
            elif key in self._known:
                attempts.append(self._attempt(draft, depth, key, self._known[key]))
        if self.search.suspect_tests:
            self._drop_suspects()
        for results in found:
            if isinstance(results, BaseException):
                raise results
        return attempts

    def _drop_suspects(self) -> None:
        """Takes away generated tests that are likely wrong, and scores all programs again by the results that are
        there."""
        good = {
            attempt.key: attempt.results
            for attempt in self.attempts
            if attempt.draft.source is not None and len(attempt.results) == len(self.tests)
        }
        suspects = suspect_tests([test.origin for test in self.tests], list(good.values()))
        if not suspects:
            return
        self.context.trace.happened("suspects", tests=[self.tests[i].source for i in suspects])
        self.counts["tests_suspected"] += len(suspects)
        self.tests = without(self.tests, suspects)
        self._known = {key: without(results, suspects) for key, results in self._known.items()}
        for attempt in self.attempts:
            attempt.results = without(attempt.results, suspects)
            self._score(attempt)

    async def _run(self, source: str) -> list[Result]:
        program = Program(source, self.function or None, self.search.setup)
        checks = [test.check for test in self.tests] or [StatementCheck(self.function or "pass"), *self.inputs]
        limits = self.search.sandbox.within(self.context.program_limits)
        return await self.context.execute(program, checks, limits)

    def _attempt(self, draft: Draft, depth: int, key: str, results: list[Result]) -> Attempt:
        number = len(self.attempts)
        node = self._answer(draft, number)
        judged = len(results) - len(self.inputs)
        results, tried = results[:judged], results[judged:]
        loads = all(result.passed for result in results)
        attempt = Attempt(number, draft, list(results), node, depth, key, loads, tried)
        self.attempts.append(attempt)
        first = self._first.setdefault(key, number)
        if first != number and draft.source is not None:
            self.counts["duplicates"] += 1
            self.context.trace.called("programs_duplicate", 1)
            self.context.note(node, duplicate_of=first)
        if tried:
            self.context.note(node, tried=[result.got or what_happened(result) for result in tried])
        self.context.note(
            node,
            program=number,
            level=depth,
            complete=draft.source is not None,
            reply_tokens=draft.reply.tokens,
            tokens_so_far=self.context.trace.calls["asked_tokens"],
        )
        self._score(attempt)
        self.context.trace.called("programs", 1)
        return attempt

    def _score(self, attempt: Attempt) -> None:
        """By the tests that there are now; tells the trace."""
        passed = [result.passed for result in attempt.results]
        before = attempt.solved
        if self.tests:
            attempt.score, attempt.solved = reward(passed), all(passed)
        self.context.trace.called("programs_passed", int(attempt.solved) - int(before))
        score = round(attempt.score, 6)
        results = [str(result.outcome) for result in attempt.results]
        self.context.note(attempt.node, score=score, results=results)
        of = len(self.tests)
        facts = {"score": score, "passed": sum(passed) if of else 0, "of": of, "solved": attempt.solved}
        self.context.trace.happened("program", program=attempt.number, **facts)

    def feedback(self, attempt: Attempt) -> str:
        if attempt.draft.source is None:
            return "the reply held no complete program"
        return feedback([test.source for test in self.tests], attempt.results, printed=self.search.is_script)

    # -- answering ---------------------------------------------------------------------------------------------------

    def presented(self, draft: Draft) -> str:
        """The answer's text: the program in the form asked for, or the reply as it is where it holds none."""
        if draft.source is None:
            return draft.reply.text
        return draft.source if self.search.format == "raw" else f"```python\n{draft.source}```"

    def _answer(self, draft: Draft, number: int) -> Node:
        complete = draft.source is not None or draft.reply.end == "stop"
        return self.context.write(self.presented(draft), child=number, complete=complete)

    def candidate(self, attempt: Attempt) -> Candidate:
        """Examples from the prompt stand for given tests where none are given."""
        trusted = self._trusted
        rows = list(zip(self.tests, attempt.results, strict=False))
        given = [result.passed for test, result in rows if test.origin == trusted]
        other = [result.passed for test, result in rows if test.origin != trusted]
        return Candidate(
            attempt.number,
            sum(given),
            len(given),
            sum(other),
            len(other),
            attempt.depth,
            len(attempt.program),
            self.votes(attempt),
        )

    def votes(self, attempt: Attempt) -> int:
        """How many of the evaluated programs, itself included, did the same on every test or input."""
        behaviour = attempt.behaviour
        return sum(other.behaviour == behaviour for other in self.attempts)

    @property
    def _trusted(self) -> str:
        return "given" if any(test.origin == "given" for test in self.tests) else "prompt"

    def ranked(self, rule: str) -> list[Attempt]:
        """Best first. Without tests: programs that can be loaded, of these such as return anything for the inputs, of
        these such as most do alike."""
        attempts = [attempt for attempt in self.attempts if attempt.draft.source is not None]
        if not self.tests:
            return sorted(attempts, key=self._preference_without_tests)
        if rule == "recommended":
            return sorted(attempts, key=lambda attempt: preference(self.candidate(attempt)))
        left, ranked = list(attempts), []
        while left:
            ranked.append(left.pop(first_highest([attempt.score for attempt in left])))
        return ranked

    def _preference_without_tests(self, attempt: Attempt) -> tuple[bool, int, int]:
        """Smaller is better. That programs fail alike, by a missing import say, speaks for none of them."""
        answered = any(result.passed for result in attempt.tried)
        return not attempt.loads, -self.votes(attempt) if answered else 0, attempt.number

    async def answers(self, ranked: Sequence[Attempt]) -> list[Node]:
        """Distinct programs in this order, and tells the trace what was chosen and how far it can be trusted."""
        distinct: dict[str, Attempt] = {}
        for attempt in ranked:
            distinct.setdefault(attempt.key, attempt)
        self._tell(next(iter(distinct.values()), None))
        if distinct:
            return [attempt.node for attempt in distinct.values()][: self.context.n]
        # Nothing was evaluated: a program that came too late for that, else the longest of what the model said.
        best = max(self.drafts, key=lambda draft: (draft.source is not None, len(draft.reply.text)))
        return [self._answer(best, len(self.attempts))]

    def _tell(self, best: Attempt | None) -> None:
        origins = Counter(test.origin for test in self.tests)
        solved = [attempt.number for attempt in self.attempts if attempt.solved]
        self.context.tell(
            backend=self.context.backend,
            entry_point=self.function or None,
            verified="none" if best is None else self.verified(best),
            selected=None if best is None else best.number,
            solved_at=solved[0] if solved else None,
            stop_reason=self.stop_reason,
            tests={origin: origins[origin] for origin in ("given", "prompt", "generated")},
            inputs=len(self.inputs),
            votes=None if best is None or not (self.tests or self.inputs) else self.votes(best),
            replies=dict(self.counts),
        )

    def verified(self, attempt: Attempt) -> str:
        """The most trusted kind of test that there is, if the program passes all of that kind; a test that the program
        could have forged does not count."""
        for origin in ("given", "prompt", "generated"):
            results = [
                result
                for test, result in zip(self.tests, attempt.results, strict=False)
                if test.origin == origin and not (result.passed and result.spoofable)
            ]
            if results:
                return origin if all(result.passed for result in results) else "none"
        return "none"
