"""Part `harm`: what a penalty does to answers that need none. HumanEval (Chen et al. 2021), greedy, as completions.

A completion ends with the function: at the first line that begins at the margin. Rounding may part two runs of the
same request in batches of other sizes at a near-tie, so the undisturbed run is done twice, the second time with other
neighbours: the difference between these two is not the penalties' doing.
"""

import asyncio
import string
from collections.abc import Sequence
from functools import lru_cache, partial

from decoding_server.bench import machine
from decoding_server.bench.rows import Row
from decoding_server.bench.sampling_study import candidate
from decoding_server.bench.sampling_study.penalties import NONE, PENALTIES
from decoding_server.bench.sampling_study.subject import Subject
from decoding_server.bench.sampling_study.texts import Task
from decoding_server.bench.sampling_study.waves import Wave, cut
from strategies.runtime import Generation, SamplingParameters, StopConditions

AGAIN = "none, other neighbours"
MODES = (NONE, AGAIN, *(name for name in PENALTIES if name != NONE))
MARGIN = tuple(f"\n{character}" for character in string.printable if not character.isspace())
"""Stop strings: a line that begins at the margin is no part of the function any more."""
STRIDE = 7
"""How far apart in the list the neighbours are in the second undisturbed run."""


def waves(model: str, tasks: Sequence[Task], size: int, max_tokens: int) -> list[Wave]:
    """All cells of a model, at most `size` tasks at a time under one penalty."""
    apart = [task for start in range(STRIDE) for task in tasks[start::STRIDE]]
    return [
        Wave(
            f"{model}: HumanEval, {mode}",
            tuple(_key(model, mode, max_tokens, task) for task in part),
            partial(measure, tasks=part, mode=mode, max_tokens=max_tokens),
        )
        for mode in MODES
        for part in cut(apart if mode == AGAIN else tasks, size)
    ]


def _key(model: str, mode: str, max_tokens: int, task: Task) -> str:
    return f"{model}|{mode}|{max_tokens}|{task.name}"


async def measure(subject: Subject, tasks: Sequence[Task], mode: str, max_tokens: int) -> list[Row]:
    """One row per task."""
    sampling = SamplingParameters(0, PENALTIES[NONE if mode == AGAIN else mode]("python"))
    stopping = StopConditions(max_tokens=max_tokens, stop=MARGIN)
    beginnings = [subject.beginning(task.prompt) for task in tasks]
    prompts = [subject.tokenizer.encode(beginning) for beginning in beginnings]
    outputs = await subject.generate([Generation(prompt, sampling, stopping) for prompt in prompts])
    judging = asyncio.Semaphore(machine.usable_cores())

    async def judge(solution: str, task: Task) -> candidate.Outcome:
        async with judging:
            return await asyncio.to_thread(verdict, program(solution, task))

    outcomes = await asyncio.gather(
        *(
            judge(beginning + output.text, task)
            for task, beginning, output in zip(tasks, beginnings, outputs, strict=True)
        )
    )
    return [
        {
            "key": _key(subject.name, mode, max_tokens, task),
            "model": subject.name,
            "mode": mode,
            "max_tokens": max_tokens,
            "task": task.name,
            "text": output.text,
            "tokens": len(output.tokens),
            "cut": output.reason == "length",
            "outcome": outcome,
        }
        for task, output, outcome in zip(tasks, outputs, outcomes, strict=True)
    ]


@lru_cache(maxsize=4096)
def verdict(program: str) -> candidate.Outcome:
    """Once for each program: most penalties leave most answers alone."""
    return candidate.run(program)


def program(solution: str, task: Task) -> str:
    """What decides whether the solution is right."""
    return f"{solution}\n\n{task.test}\n\ncheck({task.entry_point})\n"
