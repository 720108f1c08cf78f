"""REBASE as a search: the tree it grows against the paper's loop on the real engine, its weights and its fallbacks."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tree_model import Found, Scripted, Steps, found, is_final, noise, serving, text_of

from strategies.budget import Budget
from strategies.search.rebase import Rebase


def seq_ceil(rewards: list[float], budget: int, temperature: float) -> list[int]:
    """The authors' loop, in exact arithmetic's place float64 with a guard."""
    weights = [math.exp((reward - max(rewards)) / temperature) for reward in rewards]
    left, mass, children = budget, sum(weights), [0] * len(rewards)
    for j in sorted(range(len(rewards)), key=lambda j: -rewards[j]):
        children[j] = min(math.ceil(left * weights[j] / mass - 1e-9), left) if left else 0
        left -= children[j]
        mass -= weights[j]
    return children


def reference(steps: Steps, value: Callable[[str], float], N: int, temperature: float) -> tuple[list[str], list[str]]:
    """Section 2.2 of the method: texts of all nodes in order, and of the solutions."""
    frontier: list[tuple[list[int], tuple[int, ...], int]] = [([], (), N)]
    budget, done, texts = N, [], []
    while budget > 0 and frontier:
        kids = [
            (tokens + steps.sample(tokens, (*lineage, child)), (*lineage, child))
            for tokens, lineage, count in frontier
            for child in range(count)
        ]
        texts += [text_of(tokens) for tokens, _ in kids]
        finished = [tokens for tokens, _ in kids if is_final(text_of(tokens))]
        done += [text_of(tokens) for tokens in finished]
        budget -= len(finished)
        open_ = [kid for kid in kids if not is_final(text_of(kid[0]))]
        if budget <= 0 or not open_:
            break
        children = seq_ceil([value(text_of(tokens)) for tokens, _ in open_], budget, temperature)
        frontier = [(*kid, count) for kid, count in zip(open_, children, strict=True) if count]
    return texts, done


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.05, 0.3, 5.0])
def test_the_tree_is_that_of_the_papers_loop(seed: int, temperature: float) -> None:
    with serving() as runtime:
        got = found(Rebase(samples=10, balance_temperature=temperature), value=Scripted(), runtime=runtime, seed=seed)
        texts, done = reference(Steps(runtime, seed), noise, 10, temperature)
    assert got.tree == texts
    assert [node.text for node in got.context.nodes if node.finished] == done
    assert len(done) == 10
    # The solution returned is the best of the answer whose rewards sum to the most.
    sums: Counter[str] = Counter()
    for text in done:
        sums[text.rstrip("\n")[-1]] += noise(text)  # type: ignore[assignment]
    winner = max(sums, key=lambda answer: sums[answer])
    assert got.texts == [max((text for text in done if text.rstrip("\n")[-1] == winner), key=noise)]


@pytest.mark.parametrize("allocation", ["seq_ceil", "largest_remainder"])
def test_a_large_balance_temperature_spends_exactly_the_places_of_each_depth(allocation: Any) -> None:
    got = found(Rebase(samples=12, balance_temperature=1000.0, allocation=allocation), value=Scripted(), seed=3)
    nodes = got.context.nodes[1:]
    by_depth = Counter(node.depth for node in nodes)
    finished = Counter(node.depth for node in nodes if node.finished)
    places = 12
    for depth in range(1, max(by_depth) + 1):
        assert by_depth[depth] == places
        places -= finished[depth]
    assert places == 0
    children = Counter(node.parent for node in nodes if node.depth > 1)
    assert set(children.values()) <= ({1} if allocation == "largest_remainder" else {1, 2})


def test_a_cold_balance_temperature_follows_the_best_node_alone() -> None:
    got = found(Rebase(samples=6, balance_temperature=0.001), value=Scripted(), seed=1)
    for depth in range(2, max(node.depth for node in got.context.nodes) + 1):
        assert len({node.parent for node in got.context.nodes if node.depth == depth}) == 1


def test_one_sample_is_one_chain() -> None:
    got = found(Rebase(samples=1), value=Scripted(), seed=2)
    assert [node.depth for node in got.context.nodes] == list(range(len(got.context.nodes)))
    assert got.texts == [got.tree[-1]]


def length(text: str) -> float:
    """Few lines are worth more."""
    return 1.0 / (1 + text.count("\n"))


def chosen(got: Found, weigh: Callable[[list[float]], float], value: Callable[[str], float]) -> str:
    """The solution of highest aggregate, the first of equals."""
    solutions = [node for node in got.context.nodes if node.finished]
    return max(solutions, key=lambda s: round(weigh([value(one.text) for one in s.path]), 6)).text


@pytest.mark.parametrize(
    ("how", "weigh"),
    [("last", lambda v: v[-1]), ("min", min), ("mean", lambda v: sum(v) / len(v)), ("prod", math.prod)],
)
def test_best_of_n_by_each_aggregate_of_step_rewards(how: Any, weigh: Callable[[list[float]], float]) -> None:
    search = Rebase(samples=8, aggregate=how, final="best-of-n", balance_temperature=1.0)
    got = found(search, value=Scripted(), seed=6)
    assert got.texts == [chosen(got, weigh, noise)]


def test_majority_counts_solutions_alike() -> None:
    for seed in range(4):
        got = found(Rebase(samples=9, final="majority", balance_temperature=1.0), value=Scripted(), seed=seed)
        answers = [node.text.rstrip("\n")[-1] for node in got.context.nodes if node.finished]
        most = max(answers.count(answer) for answer in answers)
        assert answers.count(got.texts[0].rstrip("\n")[-1]) == most


def test_log_odds_and_ranks_share_places_by_another_scale() -> None:
    near_one = Scripted(lambda text: 1 - 0.001 * noise(text))
    flat = found(Rebase(samples=8), value=near_one, seed=3).tree
    ranked = found(Rebase(samples=8, reward_transform="rank"), value=near_one, seed=3).tree
    same = found(Rebase(samples=8, reward_transform="rank"), value=Scripted(lambda t: -noise(t) * 0.5 + 0.5), seed=3)
    assert flat != ranked
    assert ranked == same.tree  # both order the texts alike, and ranks are all that counts
    assert Rebase(reward_transform="logit").temperature_of_balance == 1.0
    assert Rebase().temperature_of_balance == 0.1


def test_without_a_trained_reward_it_samples_whole_solutions_and_votes() -> None:
    got = found(Rebase(samples=7), value=None, seed=2)
    assert [node.depth for node in got.context.nodes[1:]] == [1] * 7
    answers = [node.text.rstrip("\n")[-1] for node in got.context.nodes[1:]]
    assert answers.count(got.texts[0].rstrip("\n")[-1]) == max(answers.count(answer) for answer in answers)
    assert got.facts["value"] is None
    assert got.facts["sampled"] is True
    assert "scorer_calls" not in got.facts


def test_nodes_open_at_the_depth_cap_are_finished_greedily() -> None:
    got = found(Rebase(samples=4, max_depth=2, balance_temperature=10.0), value=Scripted(), seed=0)
    assert got.facts["stopped_by"] == "max_depth"
    open_ = [node for node in got.context.nodes if node.depth == 2 and node.notes.get("children")]
    assert open_
    for node in open_:
        below = [other for other in got.context.nodes if node in other.path]
        assert [other.end for other in below[1:]] == ["step"] * (len(below) - 2) + ["stop"]
    assert got.reasons == [("stop", None)]


def test_a_budget_that_pays_for_less_lowers_the_places_and_keeps_the_best() -> None:
    whole = found(Rebase(samples=12, answer_reserve=20), value=Scripted(), seed=5)
    spent = whole.run.generation.meter.spend.output_tokens
    small = found(
        Rebase(samples=12, answer_reserve=20), value=Scripted(), seed=5, budget=Budget(output_tokens=spent // 2)
    )
    assert small.run.generation.meter.spend.output_tokens <= spent // 2
    assert small.reasons == [("stop", None)]
    first = [node for node in small.context.nodes if node.depth == 1]
    kept = [node for node in first if node.notes.get("children")]
    assert len(first) < 12
    if kept:
        assert max(first, key=lambda node: noise(node.text)).text in {node.text for node in kept}


def test_with_too_little_for_any_search_one_solution_is_still_finished() -> None:
    got = found(Rebase(samples=12, answer_reserve=30), value=Scripted(), seed=5, budget=Budget(output_tokens=34))
    assert got.reasons == [("stop", None)]
    assert is_final(got.texts[0])
    assert got.facts["completed_greedily"] is True


def test_the_committed_prefix_streams_before_the_end() -> None:
    early = 0
    for seed in range(6):
        got = found(Rebase(samples=8, balance_temperature=0.01), value=Scripted(), seed=seed)
        (deltas,) = got.deltas
        assert "".join(delta.text for delta in deltas) == got.texts[0]
        early += len([delta for delta in deltas if delta.text]) > 1
    assert early > 0


def test_n_gives_distinct_answers_best_first() -> None:
    got = found(Rebase(samples=16, balance_temperature=5.0), value=Scripted(), n=3, seed=1)
    assert len({text.rstrip("\n")[-1] for text in got.texts}) == 3
    got = found(Rebase(samples=2), value=Scripted(), n=2, seed=1)
    assert len(got.texts) == 2
    assert all(is_final(text) for text in got.texts)
