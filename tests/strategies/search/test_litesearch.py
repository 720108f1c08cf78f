"""LiteSearch as a search: the tree it grows, its stops and answers, against the paper's pseudo-code on real engine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
from tree_model import PROMPT, Found, Scripted, Steps, found, is_final, noise, serving, text_of

from strategies.errors import InvalidRequest
from strategies.scoring.self_evaluation import SelfEvaluation
from strategies.search.litesearch import LiteSearch
from strategies.search.litesearch_budget import child_budget


@dataclass
class State:
    tokens: list[int]
    lineage: tuple[int, ...]
    steps: int
    value: float
    budget: int
    children: list["State"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return text_of(self.tokens)

    @property
    def final(self) -> bool:
        return is_final(self.text)


def reference(
    steps: Steps, value: Callable[[str], float], *, rule: Any, batch: bool, B: int, iterations: int, weight: float = 0.0
) -> tuple[list[str], str]:
    """Section 2.3 of the method, without reuse of the greedy pass: texts of the tree's nodes, and of the answer."""
    greedy: list[int] = []
    length = 0
    while not is_final(text_of(greedy)):
        greedy += steps.sample(greedy, (0,) * (length + 1), 0.0)
        length += 1
    v_hat = value(text_of(greedy))
    root = State([], (), 0, value(""), max(child_budget(rule, value(""), 1, 0.9, B, v_hat), min(2, B)))
    nodes, best = [root], None
    for _ in range(iterations):
        finished = [node for node in nodes if node.final]
        best = max(finished, key=lambda node: node.value, default=None)
        if best is not None and best.value > (0.8 if rule == "paper" else max(0.8, v_hat - 0.01)):
            break
        if rule == "released" and len(finished) >= 5:
            break
        open_ = [node for node in nodes if not node.final and node.budget > len(node.children)]
        pool = open_ + (finished if rule == "released" else [])
        s = max(pool, key=lambda node: node.value + weight * min(node.steps / length, 1.0), default=None)
        if s is None or (rule == "released" and (s.final or (s is not root and s.value < 0.01))):
            break
        for _ in range(s.budget - len(s.children) if batch else 1):
            index = len(s.children)
            lineage = (*s.lineage, index)
            tokens = s.tokens + steps.sample(s.tokens, lineage, 0.0 if index == 0 else 1.0)
            lines = text_of(tokens).splitlines()
            bad = len(lines) > 1 and lines[-1] == lines[-2]
            child = State(tokens, lineage, s.steps + 1, 0.0 if bad else value(text_of(tokens)), 0)
            if not child.final:
                child.budget = child_budget(rule, child.value, child.steps + 1, 0.9, B, v_hat)
            s.children.append(child)
            nodes.append(child)
    finished = [node for node in nodes if node.final]
    best = max(finished, key=lambda node: node.value, default=None)
    answer = text_of(greedy) if best is None or v_hat > best.value else best.text
    return [node.text for node in nodes], answer


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("expansion", ["batch", "incremental"])
@pytest.mark.parametrize("seed", range(4))
def test_the_tree_is_that_of_the_pseudo_code(rule: Any, expansion: Any, seed: int) -> None:
    def value(text: str) -> float:
        return 0.7 * noise(text, str(seed)) if seed % 2 else noise(text, str(seed))

    weight = 0.2 if rule == "paper" else 0.0
    search = LiteSearch(rule=rule, expansion=expansion, max_children=4, max_iterations=12, progress_weight=weight)
    scorer = Scripted(value)
    with serving() as runtime:
        got = found(search, value=scorer, runtime=runtime, seed=seed)
        texts, answer = reference(
            Steps(runtime, seed), value, rule=rule, batch=expansion == "batch", B=4, iterations=12, weight=weight
        )
    assert sorted(tree_of(got)) == sorted(texts[1:])
    assert got.texts == [answer]
    assert len(set(scorer.asked)) == len(scorer.asked)  # equal states are scored once


def tree_of(got: Found) -> list[str]:
    """Texts of the nodes that belong to the tree (those of the greedy pass only where it was reused)."""
    return [node.text for node in got.context.nodes[1:] if "budget" in node.notes]


def test_one_child_each_and_one_at_a_time_is_the_greedy_solution() -> None:
    with serving() as runtime:
        search = LiteSearch(rule="paper", expansion="incremental", max_children=1, value_threshold=1.0)
        got = found(search, value=Scripted(), runtime=runtime, seed=5)
        tokens: list[int] = []
        steps = Steps(runtime)
        while not is_final(text_of(tokens)):
            tokens += steps.sample(tokens, (0,), 0.0)
    assert got.tokens == [tokens]
    assert got.facts["reused_steps"] == len(got.context.nodes) - 1  # nothing was computed twice
    assert got.facts["stopped_by"] == "no_candidate"


def test_the_greedy_pass_is_reused_and_paid_once() -> None:
    """The whole search with one expansion of the root by one child costs the greedy pass alone."""
    with serving() as runtime:
        before = runtime.engine.model.forward_tokens  # type: ignore[attr-defined]
        got = found(LiteSearch(max_children=1, max_iterations=1), value=Scripted(lambda _: 0.5), runtime=runtime)
        computed = runtime.engine.model.forward_tokens - before  # type: ignore[attr-defined]
    # Every token but the last is computed once, the prompt's last one again when the first step begins.
    assert computed == got.run.generation.meter.spend.target_tokens == len(PROMPT) + 1 + len(got.tokens[0]) - 1
    assert got.facts["reused_steps"] == 1


FINISHED = {"#### 1": 0.3, "#### 2": 0.5, "#### 3": 0.43}


def by_answer(text: str) -> float:
    """Open states 0.6, solutions by their digit."""
    return next((value for mark, value in FINISHED.items() if mark in text), 0.6)


def test_the_best_finished_solution_is_returned_unless_the_greedy_one_is_worth_more() -> None:
    for seed in range(6):
        got = found(LiteSearch(max_children=4), value=Scripted(by_answer), seed=seed)
        solutions = [node for node in got.context.nodes if node.finished]
        assert by_answer(got.texts[0]) == max(by_answer(node.text) for node in solutions)
        assert got.reasons == [("stop", None)]


def wandering(text: str) -> float:
    """The same, but the greedy path is not explored first."""
    return by_answer(text) if is_final(text) else 0.6 + 0.3 * noise(text)


def test_voting_sums_the_values_of_equal_answers_and_counts_the_greedy_solution_once() -> None:
    differ = outside = 0
    for seed, iterations in product(range(12), (1, 3, 5, 100)):
        search = LiteSearch(max_children=4, max_finished=9, final="vote", max_iterations=iterations)
        got = found(search, value=Scripted(wandering), seed=seed)
        solutions = [node for node in got.context.nodes if node.finished]
        sums = {mark: round(sum(by_answer(s.text) for s in solutions if mark in s.text), 6) for mark in FINISHED}
        won = next(mark for mark in FINISHED if mark in got.texts[0])
        assert sums[won] == max(sums.values())
        differ += sums["#### 2"] > 0 and won != "#### 2"
        greedy = next(node for node in solutions if node.notes.get("greedy"))
        outside += "budget" not in greedy.notes and len(solutions) > 1
    assert differ > 0  # the vote does not always agree with the highest value
    assert outside > 0  # and the tree does not always hold the greedy solution


def test_first_ends_at_the_first_solution_over_the_threshold() -> None:
    def value(text: str) -> float:
        return 0.99 if is_final(text) and "#### 3" not in text else 0.5

    # v_hat near 1 would raise the released threshold; "first" does not wait for it.
    search = LiteSearch(final="first", expansion="incremental", value_threshold=0.9)
    got = found(search, value=Scripted(value), seed=3)
    over = [text for text in tree_of(got) if value(text) > 0.9]
    assert got.facts["stopped_by"] == "threshold"
    assert got.texts == over[:1]


def test_the_fallback_samples_and_votes_where_the_best_is_worth_too_little() -> None:
    search = LiteSearch(final="vote_fallback", vote_threshold=0.8, vote_samples=11, max_iterations=3)
    got = found(search, value=Scripted(by_answer), seed=1)
    samples = [node for node in got.context.nodes if node.depth == 1 and node.end == "stop"]
    assert len(samples) == 11
    sums = {mark: sum(by_answer(s.text) for s in samples if mark in s.text) for mark in FINISHED}
    assert next(mark for mark in FINISHED if mark in got.texts[0]) == max(sums, key=lambda mark: sums[mark])
    assert got.facts["fallback"] == "vote"
    sure = found(search, value=Scripted(lambda _: 0.9), seed=1)
    assert "fallback" not in sure.facts
    assert not [node for node in sure.context.nodes if node.depth == 1 and node.end == "stop"]


def test_uncalibrated_values_do_not_stop_at_the_threshold_and_vote() -> None:
    trusted = found(LiteSearch(max_children=4), value=Scripted(lambda _: 0.99), seed=2)
    ranked = found(LiteSearch(max_children=4), value=Scripted(lambda _: 0.99, calibrated=False), seed=2)
    assert trusted.facts["stopped_by"] == "threshold"
    assert ranked.facts["stopped_by"] != "threshold"
    assert (trusted.facts["calibrated"], ranked.facts["calibrated"]) == (True, False)
    assert LiteSearch().mode(calibrated=False) == "vote"
    assert LiteSearch(final="best").mode(calibrated=False) == "best"
    given = found(
        LiteSearch(max_children=4, value_threshold=0.9), value=Scripted(lambda _: 0.99, calibrated=False), seed=2
    )
    assert given.facts["stopped_by"] == "threshold"  # a threshold that was asked for holds


def test_bad_steps_are_worth_nothing_and_are_not_scored() -> None:
    script = b"ab\nab\n#### 1\n"

    def repeating(context: Any) -> Any:
        import torch

        logits = torch.full((260,), -30.0)
        place = len(context) - len(PROMPT)
        logits[script[place] if place < len(script) else 256] = 30.0
        return logits

    scorer = Scripted(lambda _: 0.5)
    got = found(LiteSearch(max_children=2), value=scorer, distribution=repeating)
    assert "ab\nab\n" not in scorer.asked
    repeated = next(node for node in got.context.nodes if node.text == "ab\nab\n")
    assert repeated.notes["bad"] is True
    assert got.texts == [script.decode()]  # the greedy pass goes on all the same


def test_n_gives_distinct_answers_best_first() -> None:
    got = found(LiteSearch(max_children=6, max_finished=12), value=Scripted(by_answer), n=3, seed=4)
    marks = [next(mark for mark in FINISHED if mark in text) for text in got.texts]
    solutions = {next(mark for mark in FINISHED if mark in s.text) for s in got.context.nodes if s.finished}
    assert len(solutions) == 3
    assert marks == ["#### 2", "#### 3", "#### 1"]


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"rule": "released", "progress_weight": 0.1}, "progress_weight"),
        ({"rule": "paper", "max_finished": 4}, "max_finished"),
        ({"rule": "paper", "min_value": 0.1}, "min_value"),
    ],
)
def test_what_the_rule_would_ignore_is_refused(fields: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ValueError, match="plays no part") as caught:
        LiteSearch(**fields)
    assert caught.value.errors()[0]["ctx"]["field"] == culprit  # type: ignore[attr-defined]


def test_first_needs_a_threshold_that_means_something() -> None:
    with pytest.raises(InvalidRequest, match="threshold") as caught:
        LiteSearch(final="first").check({"self-eval": SelfEvaluation()})
    assert caught.value.param == "decoding.search.value_threshold"
    LiteSearch(final="first").check({"head": Scripted()})
    LiteSearch(final="first", value_threshold=0.7).check({"self-eval": SelfEvaluation()})
