"""The hidden tests: whether a program is right. Run in the same sandbox as the searches' own tests, never here."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from decoding_server.bench.code.tasks import CodeTask
from strategies.sandbox.outcome import Outcome, Program, Result
from strategies.sandbox.sandbox import Sandbox
from strategies.search.program_replies import normal_form

NO_PROGRAM = "no_program"


@dataclass(frozen=True, slots=True)
class Verdict:
    """outcome: "pass", or the class of the first hidden test that failed. error: its exception's class, if it was
    one."""

    outcome: str
    error: str = ""

    @property
    def right(self) -> bool:
        return self.outcome == Outcome.PASS


class Judge:
    """Judges programs of one sandbox; equal ones once for each task."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._known: dict[tuple[str, str], Verdict] = {}

    async def judged(self, task: CodeTask, sources: Sequence[str | None]) -> list[Verdict]:
        """A verdict for each; None is a reply without a program. Raises SandboxUnavailable."""
        keys = [None if source is None else (task.name, normal_form(source) or source) for source in sources]
        new = {
            key: source
            for key, source in zip(keys, sources, strict=True)
            if key is not None and source is not None and key not in self._known
        }
        found = await asyncio.gather(*(self._judge(task, source) for source in new.values()))
        self._known |= dict(zip(new, found, strict=True))
        return [Verdict(NO_PROGRAM) if key is None else self._known[key] for key in keys]

    async def _judge(self, task: CodeTask, source: str) -> Verdict:
        program = Program(source, task.entry_point, task.setup)
        results = await self._sandbox.run(program, task.hidden)
        first: Result | None = next((result for result in results if not result.passed), None)
        return Verdict(str(Outcome.PASS)) if first is None else Verdict(str(first.outcome), first.error)
