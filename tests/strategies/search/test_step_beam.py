"""Beam search over steps: the tree it grows against its definition, on the real engine."""

from collections.abc import Callable
from typing import Any

import pytest
from tree_model import Scripted, Steps, found, is_final, noise, serving, text_of

from strategies.budget import Budget
from strategies.search.step_beam import StepBeam, shared


def repeats(text: str) -> bool:
    """Whether the last line says what the one before says: a bad step, worth nothing."""
    lines = text.splitlines()
    return len(lines) > 1 and lines[-1] == lines[-2]


def reference(
    steps: Steps, value: Callable[[str], float], n: int, m: int, *, independent: bool
) -> tuple[list[str], list[str]]:
    """Texts of all nodes in order, and of the solutions that kept a place."""
    Kid = tuple[list[int], tuple[int, ...], int]
    frontier: list[tuple[Kid, int]] = [(([], (), -1), n)]
    texts, solved = [], []
    width = n // m
    while frontier:
        kids: list[Kid] = []
        for (tokens, lineage, group), count in frontier:
            for child in range(count):
                more = tokens + steps.sample(tokens, (*lineage, child))
                kids.append((more, (*lineage, child), child // m if group < 0 else group))
        texts += [text_of(kid[0]) for kid in kids]

        def worth(kid: Kid) -> float:
            text = text_of(kid[0])
            return 0.0 if repeats(text) else value(text)

        pool = kids
        if independent:
            pool = [max((kid for kid in kids if kid[2] == g), key=worth) for g in sorted({kid[2] for kid in kids})]
        kept = sorted(pool, key=lambda kid: -worth(kid))[:width]
        ended = [kid for kid in kept if is_final(text_of(kid[0]))]
        solved += [text_of(kid[0]) for kid in ended]
        width -= len(ended)
        frontier = [(kid, m) for kid in kept if kid not in ended]
    return texts, solved


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "m", "independent"), [(8, 2, False), (8, 2, True), (9, 3, False), (3, 3, False)])
def test_the_tree_is_that_of_the_definition(seed: int, n: int, m: int, independent: bool) -> None:
    with serving() as runtime:
        got = found(StepBeam(beams=n, samples=m, independent=independent), value=Scripted(), runtime=runtime, seed=seed)
        texts, solved = reference(Steps(runtime, seed), noise, n, m, independent=independent)
    assert got.tree == texts
    assert len(solved) == n // m
    assert got.texts == [max(solved, key=noise)]
    assert got.reasons == [("stop", None)]
    lost = [node for node in got.context.nodes if node.notes.get("pruned")]
    assert lost
    assert not [node for node in got.context.nodes if node.parent in lost]


def test_one_beam_of_one_sample_is_a_plain_chain() -> None:
    got = found(StepBeam(beams=1, samples=1), value=Scripted(), seed=4)
    assert [node.depth for node in got.context.nodes] == list(range(len(got.context.nodes)))
    assert got.texts == [got.tree[-1]]


def test_votes_among_the_places() -> None:
    search = StepBeam(beams=12, samples=2, final="majority")
    for seed in range(3):
        got = found(search, value=Scripted(), seed=seed)
        solved = [n for n in got.context.nodes if n.finished and not n.notes.get("pruned")]
        answers = [node.text.rstrip("\n")[-1] for node in solved]
        assert answers.count(got.texts[0].rstrip("\n")[-1]) == max(answers.count(answer) for answer in answers)


def test_the_depth_cap_finishes_what_is_open() -> None:
    got = found(StepBeam(beams=4, samples=2, max_depth=1), value=Scripted(), seed=4)
    assert got.facts["stopped_by"] == "max_depth"
    assert all(is_final(text) for text in got.texts)


def test_the_prefix_that_all_places_share_is_sent_at_once() -> None:
    early = 0
    for seed in range(6):
        got = found(StepBeam(beams=4, samples=4), value=Scripted(), seed=seed)
        early += len([delta for delta in got.deltas[0] if delta.text]) > 1
    assert early == 6  # a single place commits every step


def test_a_budget_that_pays_for_less_thins_the_samples() -> None:
    limit = Budget(output_tokens=110)
    got = found(StepBeam(beams=16, samples=4, answer_reserve=20), value=Scripted(), seed=1, budget=limit)
    assert got.run.generation.meter.spend.output_tokens <= 110
    assert is_final(got.texts[0])


def test_steps_are_shared_best_first() -> None:
    assert shared(7, 3) == [3, 2, 2]
    assert shared(2, 3) == [1, 1, 0]


@pytest.mark.parametrize("fields", [{"beams": 5, "samples": 2}, {"beams": 2, "samples": 4}])
def test_beams_are_a_multiple_of_samples(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="multiple") as caught:
        StepBeam(**fields)
    assert caught.value.errors()[0]["ctx"]["field"] == "beams"  # type: ignore[attr-defined]
