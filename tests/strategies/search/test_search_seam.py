"""The seam between a search and the engine: nodes, noise, budgets, cancelling, streaming; a scripted model."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from models.scripted import ByteTokenizer, Distribution, ScriptedModel, scripted_runtime
from models.torch_runtime.runtime import TorchRuntime
from strategies.budget import Budget, Meter
from strategies.errors import ContextLengthExceeded, DecodingError, QueueFull, RequestFailed
from strategies.runtime import Delta, Generation, SamplingParameters, StopConditions
from strategies.sampling.standard import sampling
from strategies.search.context import NEWLINE, BudgetExhausted, SearchContext
from strategies.search.majority import Majority
from strategies.search.node import Node
from strategies.search.run import SearchRun
from strategies.search.search import Search

TOKENIZER = ByteTokenizer(pieces=["é".encode()[:1], "é".encode()[1:], b".\n\n ", b"\nST", b"OP"])
FIRST_HALF, SECOND_HALF, MERGED, OPENING, CLOSING = range(260, 265)
END = 256
PROMPT = TOKENIZER.encode("question:")

Run = Callable[[SearchContext], Awaitable[Sequence[Node]]]


class Probe(Search):
    """A search made of a test's own coroutine. It has no name in its class body, so nothing is registered."""

    coroutine: Any = None

    @property
    def most_answers(self) -> int:
        return 16

    async def run(self, context: SearchContext) -> Sequence[Node]:
        nodes: Sequence[Node] = await self.coroutine(context)
        return nodes


Probe.name = "probe"  # type: ignore[misc]


def letters(context: Sequence[int]) -> Tensor:
    """Random letters, new lines and ends."""
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    logits[list(b"abcd\n")] = 1.0
    logits[END] = -1.0
    return logits


def saying(tokens: Sequence[int], after: int = len(PROMPT)) -> Distribution:
    """These tokens behind the prompt, then the end."""

    def distribution(context: Sequence[int]) -> Tensor:
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        place = len(context) - after
        logits[tokens[place] if place < len(tokens) else END] = 30.0
        return logits

    return distribution


@contextmanager
def serving(distribution: Distribution = letters, **options: Any) -> Iterator[TorchRuntime]:
    runtime = scripted_runtime(distribution, TOKENIZER, **options)
    try:
        yield runtime
    finally:
        runtime.close()


def asking(max_tokens: int | None = 40, *, budget: Budget | None = None, **changes: Any) -> Generation:
    stopping = changes.pop("stopping", StopConditions(max_tokens=max_tokens))
    return Generation(PROMPT, stopping=stopping, meter=Meter(budget or Budget()), **changes)


async def read(run: SearchRun) -> list[list[Delta]]:
    async def one(stream: Any) -> list[Delta]:
        return [delta async for delta in stream]

    return await asyncio.wait_for(asyncio.gather(*(one(stream) for stream in run.streams)), 30)


def searched(runtime: TorchRuntime, coroutine: Run, generation: Generation, n: int = 1) -> list[list[Delta]]:
    async def whole() -> list[list[Delta]]:
        return await read(SearchRun(Probe(coroutine=coroutine), runtime, generation, n=n))

    return asyncio.run(whole())


def text_of(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def tokens_of(deltas: Sequence[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


async def steps(context: SearchContext, **options: Any) -> Node:
    """One path, step by step, to its end."""
    node = context.root
    while not node.finished:
        ((node,),) = await context.extend([node], step_ends=NEWLINE, **options)
    return node


# -- nodes ----------------------------------------------------------------------------------------------------------


def test_samples_of_the_root_are_those_of_a_plain_request() -> None:
    async def both(runtime: TorchRuntime) -> tuple[list[list[int]], list[list[int]]]:
        plain = runtime.submit([asking(seed=7, branch=(i,)) for i in range(5)])
        expected = [[token async for delta in stream for token in delta.tokens] for stream in plain]
        seen: list[list[int]] = []

        async def coroutine(context: SearchContext) -> Sequence[Node]:
            (nodes,) = await context.extend([context.root], 3)
            (more,) = await context.extend([context.root], 2, first=3)
            seen.extend(list(node.tokens) for node in (*nodes, *more))
            return nodes

        await read(SearchRun(Probe(coroutine=coroutine), runtime, asking(seed=7)))
        return expected, seen

    with serving() as runtime:
        expected, seen = asyncio.run(both(runtime))
    assert seen == expected
    assert len({tuple(tokens) for tokens in seen}) > 1


def test_a_step_ends_at_the_separator_behind_content_and_keeps_the_token_that_holds_it() -> None:
    script = [*b"\n\n a", MERGED, *b"b\n", *b"c"]
    made: list[Node] = []

    async def coroutine(context: SearchContext) -> Sequence[Node]:
        node = await steps(context)
        made.extend(node.path)
        return [node]

    with serving(saying(script)) as runtime:
        (deltas,) = searched(runtime, coroutine, asking())
    assert [node.step_text for node in made] == ["\n\n a.\n\n ", "b\n", "c"]
    assert [node.end for node in made] == ["step", "step", "stop"]
    assert [node.finished for node in made] == [False, False, True]
    assert text_of(deltas) == "\n\n a.\n\n b\nc"
    assert tokens_of(deltas) == [*script, END]
    assert deltas[-1].finish_reason == "stop"


def test_a_character_may_lie_across_two_steps() -> None:
    script = [*b"a", FIRST_HALF, SECOND_HALF, *b"b"]

    async def coroutine(context: SearchContext) -> Sequence[Node]:
        ((first,),) = await context.extend([context.root], max_tokens=2)
        assert (first.text, first.end, first.finished) == ("a", "length", False)
        ((second,),) = await context.extend([first])
        assert second.step_text == "éb"
        return [second]

    with serving(saying(script)) as runtime:
        (deltas,) = searched(runtime, coroutine, asking())
    assert text_of(deltas) == "aéb"


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_may_begin_in_the_step_before(include: bool) -> None:
    script = [*b"ab", OPENING, CLOSING, *b"cd"]
    stopping = StopConditions(max_tokens=40, stop=("\nSTOP",), include_stop=include)

    async def coroutine(context: SearchContext) -> Sequence[Node]:
        node = await steps(context)
        assert node.finished
        return [node]

    with serving(saying(script)) as runtime:
        (deltas,) = searched(runtime, coroutine, asking(stopping=stopping))
        plain = searched(runtime, lambda context: _whole(context), asking(stopping=stopping))
    assert text_of(deltas) == ("ab\nSTOP" if include else "ab")
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "\nSTOP")
    assert text_of(plain[0]) == text_of(deltas)
    assert tokens_of(plain[0]) == tokens_of(deltas)


async def _whole(context: SearchContext) -> Sequence[Node]:
    (nodes,) = await context.extend([context.root])
    return nodes


def test_minimum_length_and_penalties_count_the_whole_answer() -> None:
    """Steps of a greedy path are what one greedy generation says, whatever remembers the answer so far."""

    def distribution(context: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(len(context) % 7)
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        logits[list(b"abc\n")] = torch.randn(4, generator=generator)
        logits[END] = 2.0
        return logits

    pipeline = sampling(temperature=0.0, presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.1)
    stopping = StopConditions(max_tokens=30, min_tokens=12)
    with serving(distribution) as runtime:
        (stepwise,) = searched(runtime, lambda context: _path(context), asking(sampling=pipeline, stopping=stopping))
        (whole,) = searched(runtime, lambda context: _whole(context), asking(sampling=pipeline, stopping=stopping))
    assert tokens_of(stepwise) == tokens_of(whole)
    assert b"\n"[0] in tokens_of(whole)[:-2]  # so there were steps
    assert len(tokens_of(whole)) >= 12


async def _path(context: SearchContext) -> Sequence[Node]:
    return [await steps(context)]


def test_max_tokens_bounds_the_answer_not_the_work() -> None:
    async def coroutine(context: SearchContext) -> Sequence[Node]:
        (nodes,) = await context.extend([context.root], 4)
        assert all(len(node.tokens) <= 6 for node in nodes)
        return [max(nodes, key=lambda node: len(node.tokens))]

    def endless(context: Sequence[int]) -> Tensor:
        logits = letters(context)
        logits[END] = -30.0
        return logits

    with serving(endless) as runtime:
        (deltas,) = searched(runtime, coroutine, asking(6))
        (path,) = searched(runtime, lambda context: _path(context), asking(6))
    assert (len(tokens_of(deltas)), deltas[-1].finish_reason) == (6, "length")
    assert (len(tokens_of(path)), path[-1].finish_reason) == (6, "length")


def test_a_finished_node_cannot_be_extended() -> None:
    async def coroutine(context: SearchContext) -> Sequence[Node]:
        (nodes,) = await context.extend([context.root])
        await context.extend(nodes)
        return nodes

    with serving(saying(b"a")) as runtime, pytest.raises(RequestFailed, match="node 1 is finished"):
        searched(runtime, coroutine, asking())


def test_logprobs_are_those_of_the_returned_path() -> None:
    async def coroutine(context: SearchContext) -> Sequence[Node]:
        node = await steps(context)
        scores = await context.score([(context.root, node.tokens)])
        assert [entry.logprob for entry in node.answer_logprobs] == pytest.approx(scores[0], abs=1e-5)
        return [node]

    with serving() as runtime:
        (deltas,) = searched(runtime, coroutine, asking(seed=3, logprobs=2))
    entries = [entry for delta in deltas for entry in delta.logprobs or ()]
    assert [entry.token for entry in entries] == tokens_of(deltas)
    assert all(len(entry.top) == 2 for entry in entries)


# -- reading the model ----------------------------------------------------------------------------------------------


def test_next_logprobs_reads_behind_a_node_and_further_tokens() -> None:
    async def coroutine(context: SearchContext) -> Sequence[Node]:
        (nodes,) = await context.extend([context.root], max_tokens=2)
        (entry,) = await context.next_logprobs([(nodes[0], list(b"x"))], 3)
        expected = letters([]).log_softmax(-1)
        assert {token for token, _ in entry.top} <= set(b"abcd\n")
        assert entry.top[0][1] == pytest.approx(float(expected.max()), abs=1e-5)
        return nodes

    with serving() as runtime:
        searched(runtime, coroutine, asking())


def test_hidden_is_the_state_of_the_last_token() -> None:
    """The scripted model's state numbers the tokens of a forward, and a cached prefix leaves one to compute."""

    async def coroutine(context: SearchContext) -> Sequence[Node]:
        (nodes,) = await context.extend([context.root], 2, max_tokens=5)
        assert all(len(state) == 1 for state in await context.hidden(nodes))
        return nodes

    with serving() as runtime:
        searched(runtime, coroutine, asking())


def test_uniforms_depend_on_seed_label_and_step_alone() -> None:
    with serving() as runtime:
        one = SearchContext(runtime, asking(seed=1))
        same = SearchContext(runtime, asking(seed=1, prompt_logprobs=None))
        other = SearchContext(runtime, asking(seed=2))
    assert one.uniforms("select", 4) == same.uniforms("select", 4)
    assert one.uniforms("select", 2) == one.uniforms("select", 4)[:2]
    streams = [one.uniforms("select", 4), one.uniforms("select", 4, 1), one.uniforms("fill", 4)]
    streams.append(other.uniforms("select", 4))
    assert len({number for stream in streams for number in stream}) == 16
    assert all(0 < number < 1 for stream in streams for number in stream)


# -- budgets --------------------------------------------------------------------------------------------------------

LIMITS = [
    Budget(output_tokens=25),
    Budget(forward_tokens=60),
    Budget(flops=4000.0),
    Budget(forward_tokens=1),
    Budget(output_tokens=1),
]


async def wide(context: SearchContext) -> Sequence[Node]:
    """More work than any of the budgets pays for."""
    nodes = [context.root]
    for _ in range(4):
        children = await context.extend(nodes, 3, step_ends=NEWLINE)
        nodes = [node for group in children for node in group if not node.finished]
        context.propose(max((node for group in children for node in group), key=lambda node: len(node.tokens)))
    return nodes


@pytest.mark.parametrize("budget", LIMITS, ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_budget_holds_and_an_answer_comes_back(budget: Budget, seed: int) -> None:
    with serving() as runtime:
        generation = asking(200, budget=budget, seed=seed)
        (deltas,) = searched(runtime, wide, generation)
        model = runtime.engine.model
        assert isinstance(model, ScriptedModel)
        spend = generation.meter.spend
        assert spend.target_tokens == model.forward_tokens
    assert budget.output_tokens is None or spend.output_tokens <= budget.output_tokens
    assert budget.forward_tokens is None or spend.target_tokens <= budget.forward_tokens
    assert budget.flops is None or spend.flops <= budget.flops
    assert deltas[-1].finish_reason == "length"
    assert deltas[-1].stop_reason == f"budget:{generation.meter.exhausted}"


def test_an_unspent_budget_costs_what_the_model_counted() -> None:
    with serving() as runtime:
        generation = asking(200, seed=4)
        searched(runtime, wide, generation)
        model = runtime.engine.model
        assert isinstance(model, ScriptedModel)
        assert generation.meter.spend.target_tokens == model.forward_tokens
        assert generation.meter.exhausted is None


def test_after_the_budget_nothing_can_be_awaited() -> None:
    async def coroutine(context: SearchContext) -> Sequence[Node]:
        (nodes,) = await context.extend([context.root], 2)
        assert [node.end for node in nodes] == ["budget", "budget"]
        assert context.exhausted
        assert context.tokens_left == 0
        for awaited in (context.extend(nodes), context.hidden(nodes), context.next_logprobs([(nodes[0], [])], 1)):
            with pytest.raises(BudgetExhausted):
                await awaited
        context.propose(nodes[1], 1.0)
        context.propose(nodes[0], 0.5)
        raise BudgetExhausted("as a search would leave it")

    def endless(context: Sequence[int]) -> Tensor:
        logits = letters(context)
        logits[END] = -30.0
        return logits

    with serving(endless) as runtime:
        (deltas,) = searched(runtime, coroutine, asking(100, budget=Budget(output_tokens=11)))
    assert 5 <= len(tokens_of(deltas)) <= 6
    assert deltas[-1].stop_reason == "budget:output_tokens"


# -- life of a run --------------------------------------------------------------------------------------------------


async def idle(runtime: TorchRuntime) -> None:
    for _ in range(2000):
        status = runtime.status()
        if status.running == status.waiting == 0:
            return
        await asyncio.sleep(0.002)
    raise AssertionError("the engine did not become idle")


def test_cancelling_frees_every_branch() -> None:
    def endless(context: Sequence[int]) -> Tensor:
        logits = letters(context)
        logits[END] = -30.0
        return logits

    async def whole(runtime: TorchRuntime) -> None:
        run = SearchRun(Probe(coroutine=lambda context: context.extend([context.root], 8)), runtime, asking(400))
        for _ in range(1000):
            if runtime.status().running >= 8:
                break
            await asyncio.sleep(0.002)
        run.cancel()
        with pytest.raises(RequestFailed, match="cancelled"):
            await read(run)
        await idle(runtime)
        run.cancel()

    with serving(endless) as runtime:
        asyncio.run(whole(runtime))
        status = runtime.status()
        assert status.kv_slots_used == status.kv_slots_cached  # nothing but what could be evicted


def test_a_running_search_goes_on_while_the_server_drains_and_the_queue_is_full() -> None:
    async def whole(runtime: TorchRuntime) -> list[list[Delta]]:
        async def coroutine(context: SearchContext) -> Sequence[Node]:
            runtime.drain()
            (nodes,) = await context.extend([context.root], 9)
            return nodes

        return await read(SearchRun(Probe(coroutine=coroutine), runtime, asking()))

    with serving(max_waiting=4) as runtime:
        (deltas,) = asyncio.run(whole(runtime))
    assert deltas[-1].finish_reason is not None


def test_what_cannot_be_admitted_is_refused_before_anything_runs() -> None:
    async def begin(runtime: TorchRuntime, generation: Generation) -> None:
        SearchRun(Majority(samples=2), runtime, generation)

    with serving(max_waiting=0) as runtime, pytest.raises(QueueFull):
        asyncio.run(begin(runtime, asking()))
    with serving(max_model_len=32) as runtime, pytest.raises(ContextLengthExceeded) as caught:
        asyncio.run(begin(runtime, asking(32)))
    assert caught.value.param == "max_tokens"


def test_a_bug_of_a_search_ends_its_request_only() -> None:
    async def whole(runtime: TorchRuntime) -> None:
        async def broken(context: SearchContext) -> Sequence[Node]:
            await context.extend([context.root], 2)
            raise KeyError("oops")

        faulty = SearchRun(Probe(coroutine=broken), runtime, asking())
        sound = SearchRun(Majority(samples=2), runtime, asking())
        with pytest.raises(DecodingError, match="the search probe failed"):
            await read(faulty)
        assert (await read(sound))[0][-1].finish_reason is not None
        await idle(runtime)

    with serving() as runtime:
        asyncio.run(whole(runtime))


def test_results_do_not_depend_on_who_else_runs() -> None:
    async def alone(runtime: TorchRuntime) -> list[int]:
        return tokens_of((await read(SearchRun(Majority(samples=5), runtime, asking(seed=11))))[0])

    async def together(runtime: TorchRuntime) -> list[int]:
        others = [SearchRun(Majority(samples=3), runtime, asking(seed=seed)) for seed in range(6)]
        mine = await read(SearchRun(Majority(samples=5), runtime, asking(seed=11)))
        await asyncio.gather(*(read(run) for run in others))
        return tokens_of(mine[0])

    with serving() as runtime:
        expected = asyncio.run(alone(runtime))
    with serving(max_num_seqs=4, max_num_batched_tokens=16) as runtime:
        assert asyncio.run(together(runtime)) == expected


def test_choices_beyond_the_answers_found_stay_empty() -> None:
    async def coroutine(context: SearchContext) -> Sequence[Node]:
        (nodes,) = await context.extend([context.root], 1)
        return nodes

    with serving(saying(b"ab")) as runtime:
        found, missing = searched(runtime, coroutine, asking(), n=2)
    assert (text_of(found), found[-1].finish_reason) == ("ab", "stop")
    assert (text_of(missing), missing[-1].finish_reason) == ("", "length")


# -- streaming ------------------------------------------------------------------------------------------------------


def test_what_is_committed_streams_and_is_a_prefix_of_the_answer() -> None:
    async def coroutine(context: SearchContext) -> Sequence[Node]:
        node = context.root
        for _ in range(3):
            ((node,),) = await context.extend([node], step_ends=NEWLINE)
            context.commit([node])
        return [node]

    with serving(saying([*b"ab\ncd\n", FIRST_HALF, SECOND_HALF, *b"\n"])) as runtime:
        (deltas,) = searched(runtime, coroutine, asking(logprobs=0))
    assert [delta.text for delta in deltas if delta.text] == ["ab\n", "cd\n", "é\n"]
    assert [entry.token for delta in deltas for entry in delta.logprobs or ()] == tokens_of(deltas)


def test_several_branches_commit_to_what_they_share_and_no_half_stop_string_is_sent() -> None:
    async def coroutine(context: SearchContext) -> Sequence[Node]:
        first = context.append(context.root, list(b"abx"), child=0)
        second = context.append(context.root, list(b"aby\n"), child=1)
        context.commit([first, second])
        context.commit([second])
        third = context.append(second, list(b"z"))
        return [third]

    stopping = StopConditions(max_tokens=40, stop=("\nSTOP",))
    with serving() as runtime:
        (deltas,) = searched(runtime, coroutine, asking(stopping=stopping))
    assert [delta.text for delta in deltas if delta.text] == ["ab", "y", "\nz"]


def test_an_answer_that_breaks_a_promise_is_an_error() -> None:
    async def coroutine(context: SearchContext) -> Sequence[Node]:
        context.commit([context.append(context.root, list(b"ab"))])
        return [context.append(context.root, list(b"ac"), child=1)]

    with serving() as runtime, pytest.raises(RequestFailed, match="committed"):
        searched(runtime, coroutine, asking())


def test_a_path_of_steps_draws_from_the_same_distribution_as_one_generation() -> None:
    """Two tokens over two steps, 4,000 draws: chi-square of the 25 pairs, false alarm below 1e-6 (24 degrees of
    freedom: 81.0 is passed with probability 4e-8)."""

    def distribution(context: Sequence[int]) -> Tensor:
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        logits[list(b"abcde")] = torch.tensor([0.0, 0.5, 1.0, 0.2, 0.8]) * (1 + len(context) % 2)
        return logits

    counts: dict[tuple[int, ...], int] = {}

    async def coroutine(context: SearchContext) -> Sequence[Node]:
        (nodes,) = await context.extend([context.root], 200, max_tokens=1)
        for group in await context.extend(nodes, 20, max_tokens=1):
            for node in group:
                counts[node.tokens] = counts.get(node.tokens, 0) + 1
        return nodes[:1]

    with serving(distribution, max_num_seqs=256, max_num_batched_tokens=512, num_slots=16384) as runtime:
        searched(runtime, coroutine, asking(seed=5, sampling=SamplingParameters()))
    first = distribution(PROMPT).softmax(-1)
    second = distribution([*PROMPT, 0]).softmax(-1)
    # Children of one parent share its first token: the second token is tested given the first.
    statistic = 0.0
    for a in b"abcde":
        total = sum(count for tokens, count in counts.items() if tokens[0] == a)
        for b in b"abcde":
            expected = total * float(second[b])
            statistic += (counts.get((a, b), 0) - expected) ** 2 / max(expected, 1e-9)
    assert first.sum() == pytest.approx(1.0, abs=1e-5)
    assert statistic < 81.0
