"""phi-decoding and predictive decoding under budgets: never exceeded, always an answer, counted right."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from search_stories import END, TOKENIZER, is_idle, rambling, solve, story
from torch import Tensor

from models.scripted import scripted_runtime
from strategies.budget import Budget
from strategies.search.phi import Phi
from strategies.search.predictive_search import Predictive
from strategies.search.search import Search

SEARCHES = {
    "phi": Phi(beams=3, rollouts=3, t_max=4),
    "phi-one-beam": Phi(beams=1, rollouts=6, t_max=6),
    "phi-parity": Phi.model_validate({"beams": 2, "rollouts": 3, "t_max": 3, "final": {"reuse_foresight": False}}),
    "phi-no-foresight": Phi.model_validate({"beams": 2, "rollouts": 3, "foresight": {"max_tokens": 0}}),
    "phi-plain": Phi(t_max=0),
    "predictive": Predictive(rollouts=6, t_max=4),
    "predictive-original": Predictive(rollouts=6, t_max=4, variant="original"),
}
LIMITS = {
    "output_tokens": (1, 7, 60, 300, 700, 1500),
    "forward_tokens": (3, 9, 60, 300, 700, 1500),
    "flops": (30.0, 1e3, 2e4, 1e5, 3e5),
}


@pytest.mark.parametrize("unit", LIMITS)
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
async def test_a_budget_is_never_exceeded_and_there_is_an_answer(search: Search, unit: str) -> None:
    for limit in LIMITS[unit]:
        runtime = scripted_runtime(rambling, TOKENIZER)  # a new one: nothing is cached, so the counts can be compared
        solved = await solve(runtime, search, budget=Budget(**{unit: limit}), seed=int(limit))
        spend = solved.meter.spend
        used = {"output_tokens": spend.output_tokens, "forward_tokens": spend.target_tokens, "flops": spend.flops}
        assert 0 < used[unit] <= limit
        assert runtime.engine.model.forward_tokens == spend.target_tokens  # type: ignore[attr-defined]
        assert solved.counts["explored_tokens"] == spend.output_tokens
        (end,), (text,), (tokens,) = solved.ends, solved.texts, solved.tokens
        assert bool(tokens) == (spend.output_tokens > 0)
        assert TOKENIZER.decode(tokens) == text
        if end.stop_reason is not None:
            assert (end.finish_reason, end.stop_reason) == ("length", f"budget:{unit}")
        else:
            assert end.finish_reason == ("stop" if tokens[-1] == END else "length")
            assert tokens[-1] == END or len(tokens) == 80
        assert await is_idle(runtime)
        runtime.close()


async def test_with_enough_budget_a_complete_answer_comes_back() -> None:
    """From the moment one foresight path is complete, running dry can only give a complete answer."""
    model = story({f"first {w}\nthen {v}\nlast {w} {v}": 1.0 for w in ("ant", "bee", "cow") for v in ("up", "down")})
    for name in ("phi", "phi-one-beam", "predictive", "predictive-original"):
        runtime = scripted_runtime(model, TOKENIZER)
        for limit in range(300, 1300, 100):
            solved = await solve(runtime, SEARCHES[name], budget=Budget(output_tokens=limit), seed=limit)
            assert solved.ends[0].finish_reason == "stop", (name, limit)
            assert solved.texts[0].startswith("first ")
            assert "".join(solved.pieces) == solved.texts[0]
        runtime.close()


@pytest.mark.parametrize("search", [SEARCHES["phi"], SEARCHES["predictive"]], ids=["phi", "predictive"])
async def test_when_time_is_up_the_best_so_far_comes_back(search: Search) -> None:
    """Every step of the engine takes 2 ms and an answer about 30 steps, so a second pays for some rounds, not all."""

    def slow(context: Sequence[int]) -> Tensor:
        time.sleep(0.002)
        return rambling(context)

    runtime = scripted_runtime(slow, TOKENIZER)
    for seconds in (0.05, 1.0):
        solved = await solve(runtime, search, budget=Budget(seconds=seconds), max_tokens=None, seed=3)
        assert solved.meter.exhausted == "seconds"
        assert solved.tokens[0]
        assert "".join(solved.pieces) == solved.texts[0]
    assert await is_idle(runtime)
    runtime.close()


async def test_a_budget_is_one_for_all_choices() -> None:
    runtime = scripted_runtime(rambling, TOKENIZER)
    for limit in (20, 400, 900):
        solved = await solve(runtime, SEARCHES["phi"], n=3, budget=Budget(output_tokens=limit), seed=limit)
        assert solved.meter.spend.output_tokens <= limit
        assert solved.tokens[0]
        assert len(solved.texts) == 3
    runtime.close()


async def test_searches_at_once_keep_to_their_own_budgets() -> None:
    runtime = scripted_runtime(rambling, TOKENIZER)
    limits = [200, 500, 800, 1100]
    solved = await asyncio.gather(
        *(solve(runtime, SEARCHES["phi"], budget=Budget(output_tokens=limit), seed=limit) for limit in limits)
    )
    for one, limit in zip(solved, limits, strict=True):
        assert one.meter.spend.output_tokens <= limit
        alone = await solve(runtime, SEARCHES["phi"], budget=Budget(output_tokens=limit), seed=limit)
        assert (alone.texts, alone.counts) == (one.texts, one.counts)
    runtime.close()
