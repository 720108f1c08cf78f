"""What a search may await: continuations of its nodes, values, hidden states, log-probabilities; all on one budget."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from strategies.answer_text import AnswerText
from strategies.errors import DecodingError, ProgramsUnavailable, RequestFailed
from strategies.randomness import Purpose, Stream, mix64
from strategies.runtime import (
    Delta,
    Generation,
    GenerationStream,
    LogprobsMode,
    Runtime,
    SamplingParameters,
    StopConditions,
    TokenLogprob,
)
from strategies.sandbox.outcome import SandboxUnavailable
from strategies.search.asking import Question, Reply, generation_of, rendered
from strategies.search.committed_prefix import committed_length
from strategies.search.node import End, Node
from strategies.search.program_prompts import Prompts
from strategies.search.trace import Trace
from strategies.search.written_answer import write

if TYPE_CHECKING:
    from strategies.sandbox.checks import Check
    from strategies.sandbox.outcome import Limits, Program, Result
    from strategies.sandbox.sandbox import Sandbox
    from strategies.scoring.value import ValueFunction

P = ParamSpec("P")
T = TypeVar("T")

NEWLINE = ("\n",)
BLANK_LINE = ("\n\n",)


class BudgetExhausted(DecodingError):
    """The request's budget is spent: nothing more can be awaited."""


class SearchContext:
    """One search at work. Made by `SearchRun`; everything happens on the event loop.

    root: the empty answer. n: answers wanted. scorers: value functions by name. sandbox: None for a search that doesn't
    need one. prompts: what searches for programs ask.
    """

    def __init__(
        self,
        runtime: Runtime,
        generation: Generation,
        *,
        n: int = 1,
        scorers: "Mapping[str, ValueFunction] | None" = None,
        sandbox: "Sandbox | None" = None,
        prompts: Prompts | None = None,
        trace: Trace | None = None,
        prompt_text: str = "",
        question: str | None = None,
        prepared: object = None,
    ) -> None:
        """generation: the prompt, and how the request wants its answer sampled and stopped. Child i of the root draws
        the noise of branch (i,), as choice i of a request without a search does. question: of a chat, its last user
        turn; None for a plain completion. prepared: what `Search.prepared` found."""
        self.runtime = runtime
        self.generation = generation
        self.n = n
        self.prompt_text = prompt_text
        self.is_chat = question is not None
        self.question = prompt_text if question is None else question
        self.prepared = prepared
        self.scorers = scorers or {}
        self.sandbox = sandbox
        self.prompts = prompts or Prompts()
        self.trace = trace or Trace("none")
        self.committed: list[int] = []
        self.proposed: Node | None = None
        self._proposed_score = float("-inf")
        self._streams: set[GenerationStream] = set()
        self.on_commit: Callable[[Node, int], None] = lambda node, length: None
        text = AnswerText(replace(generation, answer=()), runtime.tokenizer, runtime.info.eos_token_ids)
        self.root = Node(0, None, (), (), (), (), text, "root", finished=False)
        self.nodes = [self.root]

    # -- what is left ------------------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether the budget has ended something already."""
        return self.generation.meter.exhausted is not None

    @property
    def limited(self) -> bool:
        """Whether there is a budget at all."""
        budget = self.generation.meter.budget
        limits = (budget.forward_tokens, budget.output_tokens, budget.flops, budget.seconds)
        return any(limit is not None for limit in limits)

    @property
    def tokens_left(self) -> int | None:
        """How many more tokens the budget pays for, prefill and scoring included; None without such a limit."""
        meter = self.generation.meter
        budget, spend = meter.budget, meter.spend
        limits = []
        if budget.forward_tokens is not None:
            limits.append(budget.forward_tokens - spend.target_tokens - spend.draft_tokens - spend.scorer_tokens)
        if budget.output_tokens is not None:
            limits.append(budget.output_tokens - spend.output_tokens)
        if budget.flops is not None:
            longest = max((len(node.tokens) for node in self.nodes), default=0)
            one = self.runtime.info.flops(1, len(self.generation.prompt) + longest)
            limits.append(int((budget.flops - spend.flops - spend.scorer_flops) / one))
        return max(0, min(limits)) if limits else None

    def room(self, node: Node) -> int:
        """How many tokens the answer may still grow by, by max_tokens and the model's context."""
        most = self.runtime.info.max_model_len - len(self.generation.prompt)
        limit = self.generation.stopping.max_tokens
        return max(0, (most if limit is None else min(limit, most)) - len(node.tokens))

    # -- growing the tree --------------------------------------------------------------------------------------------

    async def extend(
        self,
        nodes: Sequence[Node],
        n: int | Sequence[int] = 1,
        *,
        step_ends: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | Sequence[float | None] | None = None,
        first: int = 0,
        stage: int = 0,
        logprobs: int | None = None,
        logprobs_mode: LogprobsMode = "raw",
    ) -> list[list[Node]]:
        """Samples `n` continuations of each node (or its own number of each): per node, its new children in order.

        step_ends: strings that end a step (`NEWLINE`); none: to the end of the answer. max_tokens: of one
        continuation. temperature: instead of the request's own, for all or for each child of a node. first: index of
        the first child, for a node that has some. stage: separates the noise of different uses of one node (0 to
        2^31 - 1). logprobs, logprobs_mode: as in `Generation`. Where the budget runs out meanwhile, children end with
        "budget", maybe without a token.
        Raises BudgetExhausted if it had run out before, ValueError for a finished node.
        """
        counts = [n] * len(nodes) if isinstance(n, int) else list(n)
        generations, owners = [], []
        for node, count in zip(nodes, counts, strict=True):
            if node.finished:
                raise ValueError(f"node {node.number} is finished")
            heats = list(temperature) if isinstance(temperature, Sequence) else [temperature] * count
            for child, heat in zip(range(first, first + count), heats, strict=True):
                lineage = (*node.lineage, child + (stage << 32))
                generations.append(
                    self._continuation(
                        node, lineage, step_ends, max_tokens, heat, logprobs=logprobs, mode=logprobs_mode
                    )
                )
                owners.append((node, lineage))
        if self.exhausted:
            raise BudgetExhausted("the budget is spent")
        results = await self._collect(generations)
        children: dict[Node, list[Node]] = {node: [] for node in nodes}
        for (node, lineage), deltas in zip(owners, results, strict=True):
            children[node].append(self._child(node, lineage, deltas))
        self.trace.called("extend", len(owners))
        return [children[node] for node in nodes]

    def append(self, node: Node, tokens: Sequence[int], logprobs: Sequence[TokenLogprob] = (), child: int = 0) -> Node:
        """A child with given tokens, which nothing has to be computed for now. Its text may end the answer."""
        delta = Delta(tokens=list(tokens), logprobs=list(logprobs), finish_reason="length")
        return self._child(node, (*node.lineage, child), [delta], generated=False)

    def write(self, text: str, *, child: int = 0, complete: bool = True) -> Node:
        """An answer whose text the search has put together, for the client as it is: it ends before a stop string of
        the client's, or at the most tokens that an encoding of it may have. complete: whether it ends by itself."""
        answer, room = self.root.answer.fork(), self.room(self.root)
        tokens, whole = write(answer, text, self.runtime.tokenizer, self.generation.stopping, max_tokens=room)
        end: End = "stop" if answer.ended or (whole and complete) else "length"
        finished = end == "stop" or not whole or len(tokens) == room
        lineage, kept = (child,), tuple(tokens)
        node = Node(
            len(self.nodes), self.root, lineage, kept, kept, (), answer, end, finished=finished, depth=1, written=True
        )
        self.nodes.append(node)
        self.trace.created(node, generated=False)
        return node

    async def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One sampled reply to each question, a prompt of the search's own: a fresh conversation where the request is
        one, else plain text. The client's stop conditions hold for its answer alone, so not here.

        Questions are charged, ordered and cached as the request's own prompt. One that does not fit the model's context
        is not asked; its reply is empty and ends with "context". Where the budget runs out meanwhile, replies end with
        "budget". Raises BudgetExhausted if it had run out before.
        """
        if self.exhausted:
            raise BudgetExhausted("the budget is spent")
        replies = await self.replies(questions)
        for question, reply in zip(questions, replies, strict=True):
            self.trace.answered(question, reply, self.generation.meter.exhausted)
        self.trace.called("asked", sum(reply.end != "context" for reply in replies))
        self.trace.called("asked_tokens", sum(reply.tokens for reply in replies))
        return replies

    async def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """The model's, see `ask`."""
        asked, generations = [], []
        for place, question in enumerate(questions):
            tokens = rendered(self.runtime.tokenizer, question, chat=self.is_chat)
            room = self.runtime.info.max_model_len - len(tokens)
            if room > 0:
                asked.append(place)
                generations.append(generation_of(question, self.generation, tokens, room))
        replies = [Reply("", 0, "context") for _ in questions]
        for place, generation, deltas in zip(asked, generations, await self._collect(generations), strict=True):
            scored, prefix = generation.logprobs is not None, questions[place].prefix
            replies[place] = Reply.of(deltas, self.runtime.tokenizer, scored=scored, prefix=prefix)
        return replies

    async def execute(self, program: "Program", checks: "Sequence[Check]", limits: "Limits") -> "list[Result]":
        """The results of a program's tests. Its processes are gone when this returns or is cancelled; costs time only.

        Raises BudgetExhausted when the request's seconds are over, ProgramsUnavailable when the sandbox fails.
        """
        try:
            results = await self.results(program, checks, limits)
        except BudgetExhausted:
            self.trace.executed(program, checks, None, self.generation.meter.exhausted)
            raise
        self.trace.executed(program, checks, results)
        return results

    async def results(self, program: "Program", checks: "Sequence[Check]", limits: "Limits") -> "list[Result]":
        """The sandbox's, see `execute`."""
        assert self.sandbox is not None
        meter = self.generation.meter
        seconds = meter.budget.seconds
        left = None if seconds is None else max(0.0, seconds - (time.monotonic() - meter.started))
        try:
            async with asyncio.timeout(left):
                return await self.sandbox.run(program, checks, limits)
        except TimeoutError:
            meter.exhausted = "seconds"
            raise BudgetExhausted("the budget is spent") from None
        except SandboxUnavailable as error:  # never a result of the program's
            raise ProgramsUnavailable(str(error)) from error

    @property
    def program_limits(self) -> "Limits":
        """The operator's, of each program."""
        assert self.sandbox is not None
        return self.sandbox.limits

    @property
    def backend(self) -> str | None:
        """What confines programs."""
        return None if self.sandbox is None else self.sandbox.backend.name

    def propose(self, node: Node, score: float = 0.0) -> None:
        """Remembers the best answer so far, for the case that the budget runs out; of equal scores the later one."""
        if score >= self._proposed_score:
            self.proposed, self._proposed_score = node, score

    def fallback(self) -> Node:
        """The best answer so far: what was proposed, else the first finished node, else the longest one: of those
        that begin with what is committed."""
        if self.proposed is not None and list(self.proposed.tokens[: len(self.committed)]) == self.committed:
            return self.proposed
        promised = tuple(self.committed)
        possible = [node for node in self.nodes if node.tokens[: len(promised)] == promised]
        return max(possible, key=lambda node: (node.finished, len(node.tokens) if not node.finished else 0))

    def commit(self, nodes: Sequence[Node]) -> None:
        """Promises that the answer is one of these nodes or goes on from one: what all share can be sent."""
        length = committed_length([node.tokens for node in nodes])
        if nodes and length > len(self.committed):
            self.committed = list(nodes[0].tokens[:length])
            self.on_commit(nodes[0], length)

    # -- reading the model -------------------------------------------------------------------------------------------

    async def values(self, nodes: Sequence[Node], kind: str) -> list[float]:
        """What each node is worth, 0..1, by the value function of that name. Raises BudgetExhausted."""
        if not nodes:
            return []
        values = await self.scorers[kind].values(self, nodes)
        self.generation.meter.spend.scorer_calls += len(nodes)
        for node, value in zip(nodes, values, strict=True):
            self.note(node, value=value)
        return values

    def charge_scorer(self, tokens: int, flops: float) -> None:
        """Pays for a forward pass of another model than the served one. Raises BudgetExhausted, before it is made."""
        if self.generation.meter.charge_scorer(tokens=tokens, flops=flops) is not None:
            raise BudgetExhausted("the budget does not cover the reward model")

    async def hidden(self, nodes: Sequence[Node]) -> list[list[float]]:
        """The last hidden state (after the final norm) of each node's last token, float32 [hidden_size] each."""
        return await self._embeddings([replace(self._reading(node.tokens), pooling="last") for node in nodes])

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The mean hidden state of each text by itself."""
        encode = self.runtime.tokenizer.encode
        return await self._embeddings(
            [replace(self._reading(()), prompt=encode(text) or [0], pooling="mean") for text in texts]
        )

    async def next_logprobs(
        self,
        continuations: Sequence[tuple[Node, Sequence[int]]],
        top: int,
        sampling: SamplingParameters | None = None,
    ) -> list[TokenLogprob]:
        """The `top` most likely next tokens behind each node and further tokens: raw log-probabilities, or with
        `sampling` those behind that pipeline, and the request's minimum length."""
        base = self.generation.stopping
        stopping = StopConditions(max_tokens=1, ignore_eos=True)
        if sampling is not None:
            stopping = replace(base, max_tokens=1, stop=(), step_ends=())
        plain = replace(self.generation.sampling, temperature=0.0, transforms=(), order=())
        readings = [
            replace(
                self._reading((*node.tokens, *tokens)),
                stopping=stopping,
                sampling=plain if sampling is None else sampling,
                logprobs=top,
                logprobs_mode="raw" if sampling is None else "processed",
            )
            for node, tokens in continuations
        ]
        entries = []
        for deltas in await self._collect(readings):
            found = [entry for delta in deltas for entry in delta.logprobs or ()]
            if not found:
                raise BudgetExhausted("the budget is spent")
            entries.append(found[0])
        return entries

    async def score(self, continuations: Sequence[tuple[Node, Sequence[int]]]) -> list[list[float]]:
        """Raw log-probabilities of given tokens behind each node, teacher-forced: float per token."""
        readings = [
            replace(self._reading((*node.tokens, *tokens)), prompt_logprobs=0) for node, tokens in continuations
        ]
        found = []
        for (_, tokens), deltas in zip(continuations, await self._collect(readings), strict=True):
            entries = next((delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None), None)
            if entries is None:
                raise BudgetExhausted("the budget is spent")
            tail = entries[len(entries) - len(tokens) :] if tokens else []
            found.append([0.0 if entry is None else entry.logprob for entry in tail])
        return found

    # -- chance, time, record ----------------------------------------------------------------------------------------

    def uniforms(self, label: str, count: int, step: int = 0) -> list[float]:
        """`count` numbers in (0, 1), a pure function of the request's seed, the label and the step."""
        words = [int.from_bytes(label.encode()[i : i + 8], "little") for i in range(0, len(label.encode()), 8)]
        stream = Stream(self.generation.seed, (*words, step), Purpose.SEARCH)
        return [((mix64(stream.key(i)) >> 12) + 0.5) * 2.0**-52 for i in range(count)]

    async def compute(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs something slow (clustering, a client's regular expression) beside the event loop."""
        return await asyncio.to_thread(partial(function, *args, **kwargs))

    def note(self, node: Node, **notes: object) -> None:
        """Adds to what the trace says of a node."""
        node.notes.update(notes)
        self.trace.noted(node, notes)

    def tell(self, **facts: object) -> None:
        """Adds to what the trace's summary says of the search: why it stopped, what it could not do."""
        self.trace.facts.update(facts)

    def cancel(self) -> None:
        """Frees all that is being generated."""
        for stream in self._streams:
            stream.cancel()
        self._streams.clear()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _continuation(
        self,
        node: Node,
        lineage: tuple[int, ...],
        step_ends: Sequence[str],
        max_tokens: int | None,
        temperature: float | None,
        *,
        logprobs: int | None,
        mode: LogprobsMode,
    ) -> Generation:
        base = self.generation
        room = self.room(node)
        stopping = replace(
            base.stopping, max_tokens=room if max_tokens is None else min(max_tokens, room), step_ends=tuple(step_ends)
        )
        sampling = base.sampling if temperature is None else replace(base.sampling, temperature=temperature)
        return replace(
            base,
            answer=node.tokens,
            sampling=sampling,
            stopping=stopping,
            branch=lineage,
            logprobs=(base.logprobs or 0) if logprobs is None else max(logprobs, base.logprobs or 0),
            logprobs_mode=mode,
            prompt_logprobs=None,
        )

    def _reading(self, tokens: Sequence[int]) -> Generation:
        """Computes a prefix and generates nothing."""
        return replace(
            self.generation,
            answer=tuple(tokens),
            stopping=StopConditions(max_tokens=0),
            sampling=replace(self.generation.sampling, transforms=(), order=()),
            logprobs=None,
            prompt_logprobs=None,
            speculation=None,
        )

    async def _embeddings(self, readings: Sequence[Generation]) -> list[list[float]]:
        found = []
        for deltas in await self._collect(readings):
            embedding = next((delta.embedding for delta in deltas if delta.embedding is not None), None)
            if embedding is None:
                raise BudgetExhausted("the budget is spent")
            found.append(embedding)
        return found

    async def _collect(self, generations: Sequence[Generation]) -> list[list[Delta]]:
        """Every generation to its end. Raises what one of them raises, after cancelling the others."""
        if self.exhausted:
            raise BudgetExhausted("the budget is spent")
        streams = list(self.runtime.submit(generations, admitted=True)) if generations else []
        self._streams.update(streams)

        async def collected(stream: GenerationStream) -> list[Delta]:
            return [delta async for delta in stream]

        try:
            return await asyncio.gather(*(collected(stream) for stream in streams))
        finally:
            for stream in streams:
                stream.cancel()
            self._streams.difference_update(streams)

    def _child(self, node: Node, lineage: tuple[int, ...], deltas: Sequence[Delta], *, generated: bool = True) -> Node:
        tokens = [token for delta in deltas for token in delta.tokens]
        logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
        last = deltas[-1]
        if last.finish_reason is None:
            raise RequestFailed("the model stopped without finishing the answer")
        answer = node.answer.fork()
        kept = 0
        for token in tokens:
            answer.push(token, None)
            kept += 1
            if answer.ended:
                break  # maybe earlier than the model was stopped: a stop string may begin in the parent's text
        tokens, logprobs = tokens[:kept], logprobs[:kept]
        budget = isinstance(last.stop_reason, str) and last.stop_reason.startswith("budget:") and not answer.ended
        end: End = "stop" if answer.ended else "budget" if budget else "step" if last.step_end else "length"
        child = Node(
            len(self.nodes),
            node,
            lineage,
            (*node.tokens, *tokens),
            tuple(tokens),
            tuple(logprobs),
            answer,
            end,
            finished=end == "stop",
            depth=node.depth + 1,
        )
        child.finished = child.finished or self.room(child) == 0
        self.nodes.append(child)
        self.trace.created(child, generated=generated)
        return child
