"""One question to one contender, on a runtime in this process: the answer and everything it cost."""

import time
from collections.abc import Mapping
from typing import Any

from decoding_server.bench.answer_grading import AnswerGrader
from decoding_server.bench.search_study.contenders import SAMPLES_NAME, Contender
from decoding_server.bench.search_study.questions import PLACE, PROMPT, STOP, Question
from strategies.budget import Meter
from strategies.runtime import Generation, Runtime, StopConditions
from strategies.sampling.standard import sampling
from strategies.scoring.value import ValueFunction
from strategies.search.run import SearchRun

Row = dict[str, Any]


def key(contender: Contender, question: Question, seed: int) -> str:
    return f"{contender.name}/{question.number}/{seed}"


def generation(runtime: Runtime, contender: Contender, question: Question, *, seed: int, max_tokens: int) -> Generation:
    """The request, as a chat completion would make it."""
    tokenizer = runtime.tokenizer
    messages = [{"role": "user", "content": PROMPT.replace(PLACE, question.text)}]
    prompt = tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False)
    return Generation(
        prompt,
        sampling=sampling(temperature=contender.temperature),
        stopping=StopConditions(max_tokens=max_tokens, stop=(STOP,)),
        seed=seed * 100_003 + question.number,
        meter=Meter(),
    )


async def ask(
    runtime: Runtime,
    scorers: Mapping[str, ValueFunction],
    grader: AnswerGrader,
    contender: Contender,
    question: Question,
    *,
    seed: int,
    max_tokens: int,
) -> Row:
    """The raw row. Raises what the runtime or the search raises."""
    request = generation(runtime, contender, question, seed=seed, max_tokens=max_tokens)
    search = contender.build()
    began = time.perf_counter()
    run = None
    if search is None:
        (stream,) = runtime.submit([request])
    else:
        run = SearchRun(search, runtime, request, scorers=scorers, question=question.text)
        stream = run.streams[0]
    text, tokens, reason = "", 0, None
    async for delta in stream:
        text += delta.text
        tokens += len(delta.tokens)
        reason = delta.finish_reason or reason
    seconds = time.perf_counter() - began
    spend = request.meter.spend
    row: Row = {
        "key": key(contender, question, seed),
        "contender": contender.name,
        "question": question.number,
        "seed": seed,
        "right": grader.right(question.gold, text),
        "finish_reason": reason,
        "answer_tokens": tokens,
        "prompt_tokens": len(request.prompt),
        "target_tokens": spend.target_tokens,
        "cached_tokens": spend.cached_tokens,
        "output_tokens": spend.output_tokens,
        "scorer_calls": spend.scorer_calls,
        "flops": spend.flops,
        "seconds": round(seconds, 3),
        "text": text,
    }
    if run is not None:
        row["search"] = run.trace.summary()
        if contender.name == SAMPLES_NAME:
            row["samples"] = [
                {
                    "tokens": len(node.step),
                    "value": node.notes.get("value", 0.0),
                    "text": node.text,
                    "right": grader.right(question.gold, node.text),
                }
                for node in run.context.nodes
                if node.parent is run.context.root
            ]
    return row
