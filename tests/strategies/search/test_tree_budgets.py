"""What every tree search promises: budgets hold in every unit, an answer always comes, nothing is left behind, and the
seed alone decides the tree.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from tree_model import (
    PROMPT,
    TOKENIZER,
    Found,
    Scripted,
    asking,
    find,
    forward_tokens,
    found,
    idle,
    serving,
    solving,
)

from models.torch_runtime.runtime import TorchRuntime
from strategies.budget import Budget
from strategies.scoring.self_evaluation import SelfEvaluation
from strategies.scoring.value import ValueFunction
from strategies.search.beam import Beam
from strategies.search.litesearch import LiteSearch
from strategies.search.mcts import Mcts
from strategies.search.rebase import Rebase
from strategies.search.run import SearchRun
from strategies.search.search import Search
from strategies.search.step_beam import StepBeam
from strategies.search.tot_dfs import TotDfs

SEARCHES: dict[str, Search] = {
    "litesearch-batch": LiteSearch(max_children=4, max_iterations=8),
    "litesearch-incremental": LiteSearch(
        expansion="incremental", rule="paper", max_children=3, max_iterations=12, value_threshold=1.0
    ),
    "litesearch-fallback": LiteSearch(final="vote_fallback", vote_threshold=1.0, vote_samples=4, max_iterations=4),
    "rebase": Rebase(samples=6, answer_reserve=25, value="head"),
    "rebase-capped": Rebase(samples=5, max_depth=1, answer_reserve=25, value="head"),
    "step-beam": StepBeam(beams=6, samples=2, answer_reserve=25),
    "mcts": Mcts(expansions=6, answer_reserve=25),
    "tot-dfs": TotDfs(answer_reserve=25, max_nodes=12, prune_below=0.7),
    "beam": Beam(width=3),
}
ALL = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
SCORERS: dict[str, type[ValueFunction]] = {"free": Scripted, "self-eval": SelfEvaluation}


def answered(got: Found) -> None:
    """An answer of tokens, text and reason that belong together."""
    assert len(got.reasons) == 1
    reason, why = got.reasons[0]
    assert reason in ("stop", "length")
    unit = got.run.generation.meter.exhausted
    if reason == "length" and unit is not None:
        assert why == f"budget:{unit}"
    assert TOKENIZER.decode(got.tokens[0]) == got.texts[0]


@ALL
@pytest.mark.parametrize("scorer", SCORERS)
def test_the_meter_counts_what_the_model_computed(search: Search, scorer: str) -> None:
    with serving(max_model_len=2048) as runtime:
        got = found(search, value=SCORERS[scorer](), runtime=runtime, seed=3)
        spend = got.run.generation.meter.spend
        assert spend.target_tokens == forward_tokens(runtime)
        assert idle(runtime)
    answered(got)
    assert got.reasons[0][0] == "stop"
    explored = got.run.trace.summary()["explored_tokens"]
    if scorer == "free" and not isinstance(search, Beam):
        assert explored == spend.output_tokens  # every token generated is in the tree


@ALL
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("unit", ["output_tokens", "forward_tokens", "flops"])
def test_no_budget_is_passed_and_an_answer_comes(search: Search, scorer: str, unit: str) -> None:
    with serving(max_model_len=2048) as runtime:
        whole = found(search, value=SCORERS[scorer](), runtime=runtime, seed=3).run.generation.meter.spend
    total = {"output_tokens": whole.output_tokens, "forward_tokens": whole.target_tokens, "flops": whole.flops}[unit]
    cut = 0
    for share in (0.02, 0.1, 0.25, 0.5, 0.75, 1.0):
        limit = total * share if unit == "flops" else max(1, int(total * share))
        with serving(max_model_len=2048) as runtime:
            got = found(search, value=SCORERS[scorer](), runtime=runtime, seed=3, budget=Budget(**{unit: limit}))
            spend = got.run.generation.meter.spend
            spent = {"output_tokens": spend.output_tokens, "forward_tokens": spend.target_tokens, "flops": spend.flops}
            assert spent[unit] <= limit
            assert spend.target_tokens == forward_tokens(runtime)
            assert idle(runtime)
        answered(got)
        if unit == "output_tokens":
            assert got.texts[0]
        cut += got.run.generation.meter.exhausted is not None
    assert cut >= 2


@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "litesearch-fallback"])
def test_what_is_spent_grows_with_the_budget(name: str) -> None:
    """Up to a few steps: what a search does with the last tokens depends on whether they pay for a whole step."""
    spent = []
    for limit in range(20, 200, 30):
        got = found(SEARCHES[name], value=Scripted(), seed=1, budget=Budget(output_tokens=limit))
        spent.append(got.run.generation.meter.spend.output_tokens)
    step = 8 * 4
    assert all(later >= earlier - step for earlier, later in itertools.pairwise(spent))
    assert spent[-1] > spent[0]


@ALL
def test_seconds_run_out_with_an_answer(search: Search) -> None:
    def slow(context: Sequence[int]) -> Tensor:
        time.sleep(0.01)
        return solving(context)

    with serving(slow) as runtime:
        got = found(search, value=Scripted(), runtime=runtime, budget=Budget(seconds=0.1))
        assert idle(runtime)
    answered(got)
    assert got.run.generation.meter.exhausted == "seconds"


@ALL
def test_cancelling_frees_everything(search: Search) -> None:
    async def cancelled(runtime: TorchRuntime, wait: float) -> None:
        run = SearchRun(search, runtime, asking(seed=1), scorers={"head": Scripted()})
        await asyncio.sleep(wait)
        run.cancel()
        for _ in range(200):
            if idle(runtime):
                break
            await asyncio.sleep(0.01)
        assert idle(runtime)

    with serving() as runtime:
        for wait in (0.0, 0.005, 0.02, 0.05):
            asyncio.run(cancelled(runtime, wait))
        assert idle(runtime)


@ALL
def test_the_seed_decides_the_tree_also_beside_other_requests(search: Search) -> None:
    async def crowded(runtime: TorchRuntime) -> Found:
        others = [find(runtime, other, asking(seed=50 + i), Scripted()) for i, other in enumerate(SEARCHES.values())]
        plain = runtime.submit([asking(seed=90, branch=(i,)) for i in range(8)])

        async def drained(stream: Any) -> None:
            async for _ in stream:
                pass

        got, *_ = await asyncio.gather(
            find(runtime, search, asking(seed=7), Scripted()), *others, *(drained(stream) for stream in plain)
        )
        return got

    with serving() as runtime:
        alone = found(search, value=Scripted(), runtime=runtime, seed=7)
    with serving(max_num_seqs=5, max_num_batched_tokens=8) as runtime:
        beside = asyncio.run(crowded(runtime))
    with serving(prefix_cache=False) as runtime:
        uncached = found(search, value=Scripted(), runtime=runtime, seed=7)
    assert alone.tree == beside.tree == uncached.tree
    assert alone.tokens == beside.tokens == uncached.tokens
    if not isinstance(search, Beam):
        other = found(search, value=Scripted(), seed=8)
        assert other.tree != alone.tree


@ALL
@pytest.mark.parametrize("limit", [1, 2, 9, 14])
def test_max_tokens_holds(search: Search, limit: int) -> None:
    got = found(search, value=Scripted(), seed=2, max_tokens=limit)
    assert len(got.tokens[0]) <= limit
    assert all(len(node.tokens) <= limit for node in got.context.nodes)
    if limit < 12:  # no solution is that short
        assert got.reasons == [("length", None)]
        assert len(got.tokens[0]) == limit


@ALL
def test_a_prompt_that_leaves_little_context(search: Search) -> None:
    with serving(max_model_len=len(PROMPT) + 15) as runtime:
        got = found(search, value=Scripted(), runtime=runtime, seed=2, max_tokens=None)
    assert len(got.tokens[0]) <= 15
    answered(got)


@ALL
def test_the_trace_tells_the_tree(search: Search) -> None:
    full = search.model_copy(update={"trace": "full"})
    got = found(full, value=Scripted(), seed=2)
    report = got.run.trace.report()
    assert report is not None
    assert len(report["tree"]) == report["nodes"] == len(got.context.nodes) - 1
    for told, node in zip(report["tree"], got.context.nodes[1:], strict=True):
        assert told["text"] == node.step_text
        assert told["parent"] == (node.parent.number if node.parent else None)
    if not isinstance(search, Beam):
        assert report["value"] == "head"
        assert any("value" in told for told in report["tree"])
    assert report["stopped_by"]
    streamed = [record for delta in got.deltas[0] for record in delta.trace or ()]
    assert streamed[-1]["event"] == "summary"
    assert streamed[-1]["stopped_by"] == report["stopped_by"]


def test_a_model_that_never_ends_is_cut_off() -> None:
    def endless(context: Sequence[int]) -> Tensor:
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        logits[list(b"ab\n")] = 1.0
        return logits

    for search in SEARCHES.values():
        got = found(search, value=Scripted(), distribution=endless, seed=2, max_tokens=25)
        assert got.reasons == [("length", None)]
        assert len(got.tokens[0]) == 25
        assert got.facts["stopped_by"] != "solved"
