"""phi-decoding on the real engine: what becomes of every kind of step, streams, seeds, cancellation, parameters."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from search_stories import (
    END,
    PROMPT,
    TOKENIZER,
    CallCounter,
    generation,
    is_idle,
    plain,
    rambling,
    solve,
    story,
)

from models.scripted import Distribution, scripted_runtime
from models.torch_runtime.runtime import TorchRuntime
from strategies.errors import RequestFailed
from strategies.search.phi import Phi
from strategies.search.phi_profile import ORIGIN, PAPER, SERVER
from strategies.search.run import SearchRun


@pytest.fixture(scope="module")
def rambler() -> Iterator[TorchRuntime]:
    runtime = scripted_runtime(rambling, TOKENIZER)
    yield runtime
    runtime.close()


async def told(distribution: Distribution, search: Phi, **fields: Any) -> Any:
    """A search in a story of its own."""
    runtime = scripted_runtime(distribution, TOKENIZER)
    try:
        return await solve(runtime, search, **fields)
    finally:
        runtime.close()


def steps(nodes: list[dict[str, Any]], t: int) -> list[dict[str, Any]]:
    """The candidates of step t."""
    return [node for node in nodes if node.get("stage") == "rollout" and node["step"] == t]


# -- kinds of steps ----------------------------------------------------------------------------------------------------


async def test_lines_are_steps_and_answers_end_them() -> None:
    solved = await told(story({"one two\nthree four\nfive": 0.5, "six seven\neight": 0.5}), Phi(beams=2, t_min=8))
    assert solved.texts[0] in ("one two\nthree four\nfive", "six seven\neight")
    assert solved.ends[0].finish_reason == "stop"
    kinds = {(node["text"], node["kind"], node["end"]) for node in solved.nodes if node.get("stage") == "rollout"}
    assert kinds <= {
        ("one two\n", "normal", "step"),
        ("six seven\n", "normal", "step"),
        ("three four\n", "normal", "step"),
        ("five", "terminal", "stop"),
        ("eight", "terminal", "stop"),
    }
    assert {kind for _, kind, _ in kinds} == {"normal", "terminal"}
    for node in solved.nodes:
        if node.get("kind") == "terminal" and not node["pruned"]:
            assert node["F"] == node["s"]  # stopping first wins nothing
            assert not any(other["parent"] == node["id"] for other in solved.nodes)


async def test_leading_blank_lines_belong_to_the_step() -> None:
    solved = await told(story({"\n\nab\ncd": 1.0}), Phi(beams=1, rollouts=2, t_max=2))
    assert solved.texts[0] == "\n\nab\ncd"
    assert {node["text"] for node in steps(solved.nodes, 1)} == {"\n\nab\n"}


async def test_an_empty_step_is_dropped_and_scores_nothing() -> None:
    model = story({"      deep\nend": 0.7, "shallow\nend": 0.3})
    search = Phi.model_validate({"beams": 2, "rollouts": 8, "t_max": 1, "step": {"max_tokens": 5, "temperature": 1.0}})
    solved = await told(model, search)
    empty = [node for node in steps(solved.nodes, 1) if node["kind"] == "empty"]
    assert empty
    assert all(node["s"] is None and node["pruned"] and "chosen" not in node for node in empty)
    assert solved.texts[0] == "shallow\nend"


async def test_a_root_without_steps_is_sampled_again_then_completed() -> None:
    runtime = scripted_runtime(story({"            late": 1.0}), TOKENIZER)
    with CallCounter(runtime) as counter:
        solved = await solve(runtime, Phi.model_validate({"step": {"max_tokens": 4}}))
    runtime.close()
    assert solved.texts[0] == "            late"
    assert [len(call) for call in counter.calls] == [1, 16, 16, 1]  # prompt, rollouts, once more, completion
    assert solved.counts["steps"] == 0


async def test_a_beam_without_steps_is_a_finished_answer() -> None:
    search = Phi.model_validate({"beams": 2, "rollouts": 2, "t_min": 3, "step": {"max_tokens": 4}})
    solved = await told(story({"ab\n" + " " * 30: 1.0}), search)
    assert (solved.texts[0], solved.ends[0].finish_reason) == ("ab\n", "stop")
    assert solved.counts["steps"] == 1


async def test_a_step_that_is_cut_goes_on_where_it_stopped() -> None:
    search = Phi.model_validate({"beams": 2, "t_min": 3, "step": {"max_tokens": 3}})
    solved = await told(story({"abcdefg\nhi": 1.0}), search)
    assert solved.texts[0] == "abcdefg\nhi"
    assert {(node["text"], node["kind"]) for node in steps(solved.nodes, 1)} == {("abc", "truncated")}
    assert {node["text"] for node in steps(solved.nodes, 3)} == {"g\n"}


@pytest.mark.parametrize(
    ("step", "first"),
    [({"end": "chunk", "max_tokens": 5}, "ab\ncd"), ({"end": "blank"}, "ab\ncd\n\n"), ({"end": "newline"}, "ab\n")],
)
async def test_ends_of_steps(step: dict[str, Any], first: str) -> None:
    search = Phi.model_validate({"beams": 1, "rollouts": 2, "t_max": 2, "step": step})
    solved = await told(story({"ab\ncd\n\nef\ngh": 1.0}), search)
    assert {node["text"] for node in steps(solved.nodes, 1)} == {first}
    assert solved.texts[0] == "ab\ncd\n\nef\ngh"


async def test_one_line_answers_are_a_vote_without_completion() -> None:
    solved = await told(story({"seven": 0.6, "eight": 0.4}), Phi())
    assert solved.texts[0] in ("seven", "eight")
    assert (solved.counts["steps"], solved.counts["foresight_tokens"], solved.counts["final_tokens"]) == (1, 0, 0)


async def test_an_end_behind_the_last_newline_closes_that_step() -> None:
    """Alone it would have no text, so it could not be chosen, and the score of one certain token."""
    model = story({"ab\n": 0.9, "ab\nnever ending\n": 0.1})
    solved = await told(model, Phi(beams=2, rollouts=8, t_min=3, t_max=3), temperature=0)
    closing = [node for node in steps(solved.nodes, 2) if node["kind"] == "terminal" and not node["pruned"]]
    assert closing
    assert all(node["F"] < node["s"] < 0 or node["F"] == pytest.approx(node["s"] / 4) for node in closing)
    assert any(node["chosen"] for node in closing)


async def test_a_stop_string_across_a_step_border_ends_the_path() -> None:
    for beams in (1, 4):
        solved = await told(story({"one\ntwo\nthree": 1.0}), Phi(beams=beams), stop=["e\ntw"])
        assert solved.texts[0] == "on"
        assert (solved.ends[0].finish_reason, solved.ends[0].stop_reason) == ("stop", "e\ntw")


async def test_max_tokens_is_of_the_returned_answer() -> None:
    solved = await told(story({"one\ntwo\nthree\nfour": 1.0}), Phi(t_min=4), max_tokens=10)
    assert solved.texts[0] == "one\ntwo\nth"
    assert solved.ends[0].finish_reason == "length"
    assert len(solved.tokens[0]) == 10


# -- pruning, stopping, bookkeeping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("t_min", [1, 2, 3])
async def test_agreement_stops_at_t_min(t_min: int) -> None:
    """A certain story: all foresight is the same text, so its share is 1 at every step."""
    lines = "".join(f"line number {word}\n" for word in ("one", "two", "three", "four", "five", "six"))
    solved = await told(story({lines: 1.0}), Phi(beams=2, rollouts=2, t_min=t_min, t_max=5), max_tokens=200)
    assert solved.counts["steps"] == t_min
    assert solved.counts["early_stops"] == 1
    assert solved.texts[0] == lines


async def test_disagreement_goes_on_to_t_max() -> None:
    words = ["ape", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"]
    model = story({f"go on\nand on\nand on\nwith {word} {word}": 1 / 8 for word in words})
    search = Phi(beams=2, rollouts=8, t_min=1, t_max=2, delta=1.0)
    solved = await told(model, search)
    assert (solved.counts["steps"], solved.counts["early_stops"]) == (2, 0)


@pytest.mark.parametrize("profile", ["server", "paper", "origin"])
async def test_bookkeeping_of_every_step(rambler: TorchRuntime, profile: str) -> None:
    """Spec 7: A is F less the F that the beam accepted last; chosen ones are distinct and never pruned; p sums to 1; no
    more calls than two per step and one; nothing is scored."""
    for seed in range(4):
        search = Phi.model_validate({"profile": profile, "beams": 3, "rollouts": 3, "t_max": 4, "t_min": 2})
        with CallCounter(rambler) as counter:
            solved = await solve(rambler, search, seed=seed)
        by_id = {node["id"]: node for node in solved.nodes}
        used = solved.counts["steps"]
        assert len(counter.calls) - 1 <= 2 * used + 1
        assert all(one.prompt_logprobs is None for call in counter.calls for one in call)
        assert used <= 4
        assert used >= 2 or all(node["finished"] for node in steps(solved.nodes, used) if node.get("chosen"))
        done = 0
        for t in range(1, used + 1):
            kept = [node for node in steps(solved.nodes, t) if not node["pruned"]]
            chosen = [node for node in kept if node["chosen"]]
            assert sum(node["p"] for node in kept) == pytest.approx(1)
            eligible = sum(node["p"] > 0 for node in kept)
            assert len(chosen) == min(3 - done, eligible)
            for node in kept:
                before = by_id[node["parent"]]["F"] if t > 1 else 0.0
                assert node["A"] == pytest.approx(node["F"] - before)
                assert t == 1 or by_id[node["parent"]]["chosen"]
                if profile == "origin" and t == 1:
                    assert node["cluster"] is None  # A = F < 0: nobody is eligible
            done += sum(node["finished"] for node in chosen)
        total = sum(solved.counts[name] for name in ("rollout_tokens", "foresight_tokens", "final_tokens"))
        assert total == solved.counts["explored_tokens"] == solved.meter.spend.output_tokens


async def test_without_foresight_steps_are_chosen_by_their_own_likelihood(rambler: TorchRuntime) -> None:
    search = Phi.model_validate({"foresight": {"max_tokens": 0}, "t_max": 3})
    solved = await solve(rambler, search)
    assert solved.counts["foresight_tokens"] == 0
    assert {node.get("stage") for node in solved.nodes} == {"rollout", "final"}
    kept = [node for node in steps(solved.nodes, 1) if not node["pruned"]]
    weights = torch.softmax(torch.tensor([node["s"] / 0.1 for node in kept], dtype=torch.float64), 0)
    assert [node["p"] for node in kept] == pytest.approx(weights.tolist())


async def test_reused_foresight_saves_the_completion(rambler: TorchRuntime) -> None:
    search = Phi.model_validate({"t_max": 2, "final": {"reuse_foresight": True}})
    for seed in range(3):
        solved = await solve(rambler, search, seed=seed)
        assert solved.counts["final_tokens"] == 0
        assert len(solved.tokens[0]) == 80 or solved.ends[0].finish_reason == "stop"


# -- streams, seeds, choices -------------------------------------------------------------------------------------------


async def test_the_stream_is_committed_piece_by_piece(rambler: TorchRuntime) -> None:
    """With one beam after every step; the pieces always make up the final text."""
    for beams in (1, 4):
        for seed in range(3):
            fields: dict[str, Any] = {"beams": beams, "rollouts": 4, "t_min": 3, "t_max": 3}
            solved = await solve(rambler, Phi.model_validate(fields), seed=seed)
            assert "".join(solved.pieces) == solved.texts[0]
            assert TOKENIZER.decode(solved.tokens[0]) == solved.texts[0]
            if beams == 1:
                chosen = [node for node in solved.nodes if node.get("chosen") and node["end"] == "step"]
                assert len(solved.pieces) >= len(chosen) >= 1
                assert solved.pieces[: len(chosen)] == [node["text"] for node in chosen]
            late = await solve(rambler, Phi.model_validate({**fields, "stream_mode": "final"}), seed=seed)
            assert late.pieces == [solved.texts[0]]


@pytest.mark.parametrize("n", [1, 3])
async def test_no_deliberation_is_plain_sampling(rambler: TorchRuntime, n: int) -> None:
    for seed in range(3):
        solved = await solve(rambler, Phi(t_max=0), n=n, seed=seed, temperature=0.8)
        assert solved.texts == await plain(rambler, n=n, seed=seed, temperature=0.8)


async def test_a_seed_repeats_whatever_else_runs(rambler: TorchRuntime) -> None:
    search = Phi(beams=3, rollouts=3, t_max=3)
    alone = [(await solve(rambler, search, seed=seed)).texts for seed in range(4)]
    assert len({text for (text,) in alone}) == 4
    together = await asyncio.gather(
        *(solve(rambler, search, seed=seed) for seed in range(4)),
        *(solve(rambler, Phi(beams=2, profile="origin"), seed=seed) for seed in range(2)),
        solve(rambler, Phi(t_max=0), seed=9),
    )
    assert [solved.texts for solved in together[:4]] == alone


async def test_n_answers_are_distinct_and_start_with_the_chosen_one(rambler: TorchRuntime) -> None:
    search = Phi(beams=4, rollouts=4, t_max=2)
    one = await solve(rambler, search, seed=5)
    four = await solve(rambler, search, seed=5, n=4)
    assert four.texts[0] == one.texts[0]
    assert len(set(four.texts)) == 4
    assert search.most_answers == 4


@pytest.mark.parametrize("select", ["joint", "majority2", "argmax"])
async def test_final_choices(rambler: TorchRuntime, select: str) -> None:
    search = Phi.model_validate({"t_max": 2, "final": {"select": select}})
    solved = await solve(rambler, search, seed=2)
    finals = [node for node in solved.nodes if "final" in node]
    (chosen,) = [node for node in finals if node["final"]]
    assert len(finals) == 4
    assert solved.texts[0].endswith(chosen["text"])


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0, 3, 12, 40])
async def test_cancelling_frees_every_branch(moment: int) -> None:
    def endless(context: Any) -> torch.Tensor:
        return rambling(context).index_fill(0, torch.tensor([END]), -200.0)

    runtime = scripted_runtime(endless, TOKENIZER)
    run = SearchRun(Phi(), runtime, generation(max_tokens=400))
    while runtime.engine.steps < moment:
        await asyncio.sleep(0.002)
    run.streams[0].cancel()
    with pytest.raises(RequestFailed):
        async for _ in run.streams[0]:
            pass
    assert await is_idle(runtime)
    steps_then = runtime.engine.steps
    await asyncio.sleep(0.05)
    assert runtime.engine.steps == steps_then
    runtime.close()


async def test_unusable_logits_end_this_search_alone() -> None:
    def broken(context: Any) -> torch.Tensor:
        values = rambling(context).clone()
        return values * float("nan") if len(context) > len(PROMPT) + 12 else values

    runtime = scripted_runtime(broken, TOKENIZER)
    with pytest.raises(RequestFailed, match="not finite"):
        await solve(runtime, Phi(t_max=2))
    assert await is_idle(runtime)
    assert len((await solve(runtime, Phi(t_max=2), max_tokens=9)).tokens[0]) > 0
    runtime.close()


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"beams": 0}, "beams"),
        ({"beams": 17}, "beams"),
        ({"beams": 13, "rollouts": 5}, "rollouts"),
        ({"rollouts": "4"}, "rollouts"),
        ({"t_max": -1}, "t_max"),
        ({"t_max": 65}, "t_max"),
        ({"t_min": 0}, "t_min"),
        ({"t_min": 4, "t_max": 3}, "t_min"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.1}, "delta"),
        ({"clusters": 0}, "clusters"),
        ({"tau1": 0.0}, "tau1"),
        ({"tau": 0.6}, "tau"),
        ({"profile": "main"}, "profile"),
        ({"combine": "sum"}, "combine"),
        ({"width_k": -1.0}, "width_k"),
        ({"step": {"end": "sentence"}}, "step.end"),
        ({"step": {"max_tokens": 0}}, "step.max_tokens"),
        ({"step": {"size": 64}}, "step.size"),
        ({"foresight": {"max_tokens": -1}}, "foresight.max_tokens"),
        ({"foresight": {"temperature": 3.0}}, "foresight.temperature"),
        ({"foresight": {"max_tokens": 0}, "final": {"reuse_foresight": True}}, "final.reuse_foresight"),
        ({"final": {"select": "best"}}, "final.select"),
        ({"stream_mode": "lite"}, "stream_mode"),
        ({"M": 4}, "M"),
    ],
)
def test_parameters_are_strict(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Phi.model_validate(given)
    (fault,) = caught.value.errors()
    assert ".".join(map(str, fault["loc"])) == field or fault.get("ctx", {}).get("field") == field


def test_profiles_and_their_single_knobs() -> None:
    assert Phi().readings == SERVER
    assert Phi(profile="paper").readings == PAPER
    assert Phi(profile="origin").readings == ORIGIN
    knobs = Phi.model_validate(
        {
            "profile": "origin",
            "clusters": 2,
            "delta": 0.8,
            "tau1": 0.3,
            "tau2": 0.4,
            "combine": "boltzmann",
            "tau": 0.5,
            "eligibility": "all",
            "width_k": 2,
            "width_inclusive": True,
            "tokens": "math",
            "final": {"select": "argmax"},
        }
    ).readings
    assert (knobs.clusters, knobs.delta, knobs.tau1, knobs.tau2, knobs.combine) == (2, 0.8, 0.3, 0.4, "boltzmann")
    assert (knobs.tau, knobs.eligibility, knobs.width_k, knobs.width_inclusive) == (0.5, "all", 2, True)
    assert (knobs.tokens, knobs.final, knobs.depth_sticky) == ("math", "argmax", True)


def test_a_reply_s_parameters_ask_for_the_same_again() -> None:
    search = Phi.model_validate({"beams": 2, "step": {"end": "chunk"}, "final": {"select": "argmax"}})
    assert Phi.model_validate(search.model_dump(mode="json")) == search
