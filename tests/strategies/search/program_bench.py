"""Searches for programs on a scripted model and the real sandbox: what their tests share."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from scripted_coder import TOKENIZER, ScriptedCoder, code

from strategies.budget import Budget, Meter
from strategies.registry import registered
from strategies.runtime import Generation, StopConditions
from strategies.sandbox.outcome import SandboxUnavailable
from strategies.sandbox.sandbox import Sandbox, open_sandbox
from strategies.search.coding_search import CodingSearch
from strategies.search.run import SearchRun

TASK = "Write add(a, b), which adds."
TESTS = [{"assert": f"assert add({a}, {b}) == {a + b}"} for a, b in ((0, 0), (1, 0), (2, 3), (0, 5), (4, 4), (-1, 7))]
ZERO, FIRST, SECOND, DOUBLE = (code(f"return {body}") for body in ("0", "a", "b", "a + a"))
"""Programs that pass 1, 2, 2 and 2 of the six tests."""
RIGHT = code("return a + b")
IDEAS = [f"It is wrong.\nDirection 1: use way {2 * i}\nDirection 2: use way {2 * i + 1}" for i in range(20)]
LESSONS = ["Lessons:\n- add both"]


@dataclass
class Reply:
    texts: list[str]
    reasons: list[tuple[str | None, str | int | None]]
    facts: dict[str, Any]
    meter: Meter

    @property
    def programs(self) -> list[dict[str, Any]]:
        return sorted((node for node in self.facts["tree"] if "program" in node), key=lambda node: node["program"])

    @property
    def scores(self) -> list[float]:
        return [node["score"] for node in self.programs]


async def opened() -> Sandbox:
    try:
        return await open_sandbox(["bwrap", "lsm"], warm=1)
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox is usable: {error}")


@dataclass
class Bench:
    """The event loop and the sandbox that the tests of a module share: use the fixture `program_bench`."""

    runner: asyncio.Runner
    sandbox: Sandbox | None = None


BENCH = Bench(asyncio.Runner())


def made(name: str = "scattered-forest", **parameters: Any) -> CodingSearch:
    kind = registered("search")[name]
    search: CodingSearch = kind.model_validate({"tests": TESTS, "trace": "full", **parameters})
    return search


def asking(task: str, max_tokens: int | None, budget: Budget | None, seed: int, **changes: Any) -> Generation:
    prompt = TOKENIZER.encode(TOKENIZER.render_chat([{"role": "user", "content": task}]))
    stopping = changes.pop("stopping", StopConditions(max_tokens=max_tokens))
    return Generation(prompt, stopping=stopping, seed=seed, meter=Meter(budget or Budget()), **changes)


def searched(
    coder: ScriptedCoder,
    search: CodingSearch,
    *,
    task: str = TASK,
    n: int = 1,
    max_tokens: int | None = 1000,
    budget: Budget | None = None,
    seed: int = 7,
    **changes: Any,
) -> Reply:
    async def whole(runtime: Any) -> Reply:
        sandbox = BENCH.sandbox if search.runs_programs else None
        generation = asking(task, max_tokens, budget, seed, **changes)
        run = SearchRun(search, runtime, generation, n=n, sandbox=sandbox, prompt_text=task, question=task)

        async def read(stream: Any) -> tuple[str, Any]:
            deltas = [delta async for delta in stream]
            return "".join(d.text for d in deltas), (deltas[-1].finish_reason, deltas[-1].stop_reason)

        found = await asyncio.wait_for(asyncio.gather(*(read(stream) for stream in run.streams)), 120)
        texts, reasons = zip(*found, strict=True)
        return Reply(list(texts), list(reasons), run.trace.report() or {}, generation.meter)

    with coder.serving() as runtime:
        return BENCH.runner.run(whole(runtime))


def fenced(reply: str) -> str:
    return reply[reply.index("```") : reply.rindex("```") + 3]


def forest_of(seeds: Sequence[str], changed: Sequence[str], **more: Sequence[str]) -> ScriptedCoder:
    return ScriptedCoder(**{"seed": seeds, "code": changed, "directions": IDEAS, "lessons": LESSONS, **more})
