"""The raw row of one cell: a strategy's answer to one task under one budget, whether it is right, and what it cost."""

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from decoding_server.bench.answer_grading import TIMEOUT
from decoding_server.bench.code.contenders import Contender, VisibleTests
from decoding_server.bench.endpoint import Endpoint, Record, persistent
from decoding_server.bench.quality.contenders import Strategy
from decoding_server.bench.quality.graders import Grader
from decoding_server.bench.quality.tasks import Task
from decoding_server.bench.rows import Row
from strategies.errors import ContextLengthExceeded, InvalidRequest, RequestFailed

CODE_TESTS = VisibleTests("given", visible=1)
"""What a search for programs sees: the examples in the prompt and the first assert, which MBPP's prompt shows too."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How every cell is asked. answer_cost: None where widths can't be computed. prompt_cost: None for the prompt's
    tokens, where the unit is forward tokens."""

    unit: str
    max_tokens: int
    temperature: float
    stop: tuple[str, ...] = ()
    system: str | None = None
    answer_cost: float | None = None
    prompt_cost: float | None = None

    def messages(self, task: Task) -> list[Record]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": task.prompt}]

    def width(self, budget: float | None, prompt_tokens: int) -> float:
        """Answers that the budget pays for; 8 where there is none."""
        if budget is None or self.answer_cost is None:
            return 8.0
        prompt = self.prompt_cost
        if prompt is None:
            prompt = prompt_tokens if self.unit == "forward_tokens" else 0
        return max(1.0, (budget - prompt) / self.answer_cost)


def body(
    asking: Asking,
    endpoint: Endpoint,
    strategy: Strategy,
    task: Task,
    budget: float | None,
    *,
    key: str,
    seed: int,
    prompt_tokens: int,
) -> Record:
    """The request. A cell pays for its whole prompt: nothing that others left in the cache is shared with it."""
    width = asking.width(budget, prompt_tokens)
    made: Record = {
        "model": endpoint.model,
        "messages": asking.messages(task),
        "max_tokens": asking.max_tokens,
        "temperature": asking.temperature,
        "seed": seed,
        **strategy.request(width),
    }
    if asking.stop and "stop" not in made:
        made["stop"] = list(asking.stop)
    if not endpoint.extended:
        if budget is not None:  # output tokens, as the study has checked
            made["max_tokens"] = min(made["max_tokens"], int(budget))
        return made
    decoding = dict(made.get("decoding") or {})
    if strategy.searches_programs and task.code is not None:
        search = decoding["search"] if isinstance(decoding["search"], dict) else {"type": decoding["search"]}
        filled = Contender(strategy.name, search).body(task.code, CODE_TESTS, k=max(1, int(width)))
        decoding["search"] = {**(filled or {}), "trace": "none"}
    if budget is not None:
        decoding["budget"] = {asking.unit: budget}
    if decoding:
        made["decoding"] = decoding
    made["cache_salt"] = hashlib.sha256(f"{key}|{time.time_ns()}".encode()).hexdigest()
    return made


async def measure(
    endpoint: Endpoint,
    grader: Grader,
    asking: Asking,
    strategy: Strategy,
    task: Task,
    budget: float | None,
    *,
    key: str,
    seed: int,
    prompt_tokens: int,
) -> Row:
    """A task that does not fit the model's context counts as not solved, and the row says `error`.

    Raises SandboxUnavailable and DecodingError: InvalidRequest and Unusable where this strategy can't be asked like
    this, GradingFailed.
    """
    request = body(asking, endpoint, strategy, task, budget, key=key, seed=seed, prompt_tokens=prompt_tokens)
    row: Row = {"key": key, "strategy": strategy.name, "task": task.name, "budget": budget}
    if strategy.scales:
        row["width"] = strategy.parameters(asking.width(budget, prompt_tokens))
    began = time.perf_counter()
    try:
        reply = await persistent(lambda: timed(endpoint, request))
    except ContextLengthExceeded as error:
        seconds = round(time.perf_counter() - began, 3)
        nothing = {"forward_tokens": 0, "output_tokens": 0, "flops": 0.0, "seconds": seconds}
        return {**row, "correct": False, "answer": None, "error": str(error)[:200], **nothing, "budget_ended": False}
    text, reason, facts = read(reply, budget=budget, extended=endpoint.extended)
    graded = await grader.grade(task, text, cut=reason == "length")
    return {
        **row,
        "correct": graded.correct,
        "answer": graded.answer,
        **({"outcome": graded.outcome} if graded.outcome else {}),
        **({"grading": TIMEOUT} if graded.timed_out else {}),
        "finish_reason": reason,
        **facts,
        "seconds": round(reply["seconds"], 3),
        "text": text,
    }


async def timed(endpoint: Endpoint, request: Record) -> Record:
    """The reply, with the seconds that it took (of the last try)."""
    began = time.perf_counter()
    reply = await endpoint.post("/v1/chat/completions", request)
    warnings = [one for one in reply.get("warnings") or () if "cache_salt" not in str(one)]
    if warnings and endpoint.extended:
        raise InvalidRequest(f"the server ignores a part of this: {warnings[0]}")
    return {**reply, "seconds": time.perf_counter() - began}


def read(reply: Record, *, budget: float | None, extended: bool) -> tuple[str, str | None, dict[str, Any]]:
    """Text, finish reason, and what of the reply goes into the row. What a server does not report is None, not
    guessed. Raises RequestFailed for what is no chat completion."""
    try:
        (choice,) = reply["choices"]
        text, reason = choice["message"]["content"] or "", choice["finish_reason"]
        usage = reply["usage"]
        spent = usage["decoding"] if extended else {}
        facts = {
            "stop_reason": choice.get("stop_reason"),
            "budget_ended": spent["budget_exhausted"] is not None
            if extended
            else budget is not None and reason == "length" and usage["completion_tokens"] >= budget,
            "prompt_tokens": usage["prompt_tokens"],
            "answer_tokens": usage["completion_tokens"],
        }
        if not extended:
            known = {"output_tokens": usage["completion_tokens"], "forward_tokens": None, "flops": None}
            return text, reason, {**facts, **known}
        counts = {name: spent[name] for name in ("target_tokens", "draft_tokens", "scorer_tokens")}
        return (
            text,
            reason,
            {
                **facts,
                "forward_tokens": sum(counts.values()),
                **counts,
                **{name: spent[name] for name in ("cached_tokens", "output_tokens", "flops", "forward_passes")},
                **({"search": spent["search"]} if "search" in spent else {}),
            },
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RequestFailed(f"not the reply of a chat completion: {error!r}") from None
