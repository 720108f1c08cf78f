"""Samples solutions of the served model through the searches' own interface, and reads the hidden states of their
prefixes while these are still in the KV cache: one token each, computed exactly as a search computes it later."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoding_server.value_training.questions import Question
from decoding_server.value_training.rollout_store import QuestionRollouts, Rollout, RolloutStore
from strategies.errors import ContextLengthExceeded
from strategies.runtime import Generation, Runtime, StopConditions
from strategies.sampling.standard import sampling
from strategies.scoring.answers import extract
from strategies.scoring.step_ends import step_ends
from strategies.search.context import NEWLINE, SearchContext
from strategies.search.node import Node

log = logging.getLogger(__name__)

QUESTION_MARK = "{question}"


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How solutions are sampled. prompt: with "{question}" where the question goes; a chat's user turn if the model has
    a chat template."""

    rollouts: int
    temperature: float
    max_tokens: int
    seed: int
    prompt: str
    system: str | None


async def collect(
    runtime: Runtime,
    questions: Sequence[Question],
    settings: RolloutSettings,
    store: RolloutStore,
    *,
    batch: int,
    time_limit: float | None = None,
    on_question: Callable[[QuestionRollouts], None] = lambda row: None,
) -> bool:
    """Adds the solutions of all questions that lack them; False where the time ran out before.

    batch: sequences that run at once. time_limit: seconds after which no further question is begun. What was begun and
    is not done when this is cancelled is lost.
    """
    missing = iter([question for question in questions if question.qid not in store.done])
    deadline = None if time_limit is None else time.monotonic() + time_limit
    complete = True

    async def work() -> None:
        nonlocal complete
        for question in missing:
            if deadline is not None and time.monotonic() >= deadline:
                complete = False
                return
            try:
                row, features = await solutions(runtime, question, settings)
            except ContextLengthExceeded as error:
                log.warning("the question %s is left out: %s", question.qid, error)
                row = QuestionRollouts(question.qid, question.gold, [])
                features = np.empty((0, runtime.info.hidden_size), np.float32)
            store.append(row, features)
            on_question(row)

    async with asyncio.TaskGroup() as group:
        for _ in range(max(1, batch // settings.rollouts)):
            group.create_task(work())
    return complete


async def solutions(
    runtime: Runtime, question: Question, settings: RolloutSettings
) -> tuple[QuestionRollouts, NDArray[np.float32]]:
    """One question's solutions and features. Raises ContextLengthExceeded."""
    context = search_context(runtime, question, settings)
    prompt, asked = len(context.generation.prompt), settings.max_tokens
    if prompt + asked > runtime.info.max_model_len:
        raise ContextLengthExceeded(f"{prompt} tokens and {asked} more exceed the context")
    (answers,) = await context.extend([context.root], settings.rollouts)
    rollouts = []
    nodes = [context.root]
    for answer in answers:
        ends = step_ends(answer.tokens, runtime.tokenizer, NEWLINE)
        nodes += prefix_nodes(context, answer.tokens, ends)
        key = extract(answer.text).canonical
        finished = answer.end == "stop"
        rollouts.append(
            Rollout(list(answer.tokens), ends, "stop" if finished else "length", key, finished and key == question.gold)
        )
    features = np.array(await context.hidden(nodes), np.float32)
    return QuestionRollouts(question.qid, question.gold, rollouts), features


def prefix_nodes(context: SearchContext, tokens: Sequence[int], ends: Sequence[int]) -> list[Node]:
    """The answer as a chain of nodes, one per step."""
    nodes, node = [], context.root
    for start, end in zip([0, *ends], ends, strict=False):
        node = context.append(node, tokens[start:end])
        nodes.append(node)
    return nodes


def search_context(runtime: Runtime, question: Question, settings: RolloutSettings) -> SearchContext:
    """A search's beginning: the prompt as the server would render it, the model's own sampling defaults."""
    text = settings.prompt.replace(QUESTION_MARK, question.text)
    tokenizer = runtime.tokenizer
    chat = tokenizer.chat_template is not None
    if chat:
        system = [] if settings.system is None else [{"role": "system", "content": settings.system}]
        rendered = tokenizer.render_chat([*system, {"role": "user", "content": text}])
    else:
        rendered = text if settings.system is None else f"{settings.system}\n\n{text}"
    defaults = runtime.info.sampling_defaults
    digest = hashlib.blake2b(f"{settings.seed}:{question.qid}".encode(), digest_size=8).digest()
    generation = Generation(
        prompt=tokenizer.encode(rendered, add_special_tokens=not chat),
        sampling=sampling(
            temperature=settings.temperature,
            top_k=int(defaults.get("top_k", 0)),
            top_p=defaults.get("top_p", 1.0),
            min_p=defaults.get("min_p", 0.0),
            repetition_penalty=defaults.get("repetition_penalty", 1.0),
        ),
        stopping=StopConditions(max_tokens=settings.max_tokens),
        seed=int.from_bytes(digest, "little") >> 11,
    )
    return SearchContext(runtime, generation, prompt_text=rendered, question=text if chat else None)
