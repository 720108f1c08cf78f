"""The raw row of one cell: what the search answered, every program that it evaluated, and what the hidden tests say."""

from collections.abc import Mapping, Sequence
from typing import Any

from decoding_server.bench.code.asking import Asked, ask
from decoding_server.bench.code.contenders import Contender, VisibleTests
from decoding_server.bench.code.judging import Judge
from decoding_server.bench.code.tasks import CodeTask
from decoding_server.bench.endpoint import Endpoint
from decoding_server.bench.rows import Row
from strategies.errors import ContextLengthExceeded
from strategies.search.program_replies import program_of

KEPT = ("selected", "solved_at", "stop_reason", "verified", "tests", "replies", "asked", "asked_tokens", "programs_run")
"""Of the trace's summary."""


async def measure(
    endpoint: Endpoint,
    judge: Judge,
    contender: Contender,
    task: CodeTask,
    rules: VisibleTests,
    *,
    key: str,
    k: int,
    seed: int,
    max_tokens: int,
    temperature: float,
) -> Row:
    """A task that does not fit the model's context counts as not solved, and the row says `error`. Raises other
    DecodingErrors, and SandboxUnavailable."""
    heat = 0.0 if contender.search is None else temperature
    asked = Asked(task.prompt, contender.body(task, rules, k), seed, max_tokens, heat)
    row: Row = {"key": key, "strategy": contender.name, "task": task.name, "seed": seed}
    try:
        reply = await ask(endpoint, asked)
    except ContextLengthExceeded as error:
        nothing = {"target_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "flops": 0.0, "seconds": 0.0}
        return {
            **row,
            "error": str(error)[:200],
            "passed": False,
            "outcome": "context",
            "accepted": None,
            "source": None,
            **nothing,
            "programs": [],
            "search": {},
        }
    submitted = program_of(reply.text, cut=reply.finish_reason == "length")
    programs = evaluated(reply.trace)
    final, *verdicts = await judge.judged(task, [submitted, *(program["source"] for program in programs)])
    for program, verdict in zip(programs, verdicts, strict=True):
        program |= {"passed": verdict.right, "outcome": verdict.outcome, "error": verdict.error}
    return {
        **row,
        "passed": final.right,
        "outcome": final.outcome,
        "accepted": accepted(reply.trace, programs),
        "finish_reason": reply.finish_reason,
        "source": submitted,
        **reply.spent,
        "seconds": round(reply.seconds, 3),
        "programs": programs,
        "search": {name: reply.trace[name] for name in KEPT if name in reply.trace},
    }


def evaluated(trace: Mapping[str, Any]) -> list[Row]:
    """The programs of a full trace, in the order in which they were evaluated. source: None for a reply without one;
    tokens_so_far: generated in the whole search before the program was run."""
    nodes = sorted((node for node in trace.get("tree", ()) if "program" in node), key=lambda node: node["program"])
    return [
        {
            "program": node["program"],
            "source": program_of(node["text"]) if node["complete"] else None,
            "score": node["score"],
            "results": node["results"],
            "reply_tokens": node["reply_tokens"],
            "tokens_so_far": node["tokens_so_far"],
            "parent": node.get("parent_program"),
            "level": node["level"],
        }
        for node in nodes
    ]


def accepted(trace: Mapping[str, Any], programs: Sequence[Row]) -> bool | None:
    """Whether the submitted program passes all visible tests; None where there were none, or nothing was run."""
    if trace.get("selected") is None or not sum(trace.get("tests", {}).values()):
        return None
    return bool(programs[trace["selected"]]["score"] == 1.0)
