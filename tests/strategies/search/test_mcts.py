"""Monte Carlo tree search over steps: the tree, visits and means against the definition, on the real engine."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from tree_model import Scripted, Steps, found, is_final, noise, serving, text_of

from strategies.budget import Budget
from strategies.search.mcts import Mcts


@dataclass
class State:
    tokens: list[int]
    lineage: tuple[int, ...]
    values: list[float] = field(default_factory=list)
    children: list["State"] = field(default_factory=list)
    parent: "State | None" = None

    @property
    def closed(self) -> bool:
        if is_final(text_of(self.tokens)):
            return True
        return bool(self.children) and all(child.closed for child in self.children)

    @property
    def q(self) -> float:
        return sum(self.values) / len(self.values)


def reference(
    steps: Steps, value: Callable[[str], float], *, root: int, width: int, expansions: int, c: float
) -> list[State]:
    """Section 2.4 of the method: every value below a node counts once in its mean."""
    top = State([], ())
    nodes = [top]
    for _ in range(expansions):
        if top.closed:
            break
        node = top
        while node.children:
            n = len(node.values)
            node = max(
                (child for child in node.children if not child.closed),
                key=lambda child: round(child.q + c * math.sqrt(math.log(n) / len(child.values)), 9),
            )
        for i in range(root if node is top else width):
            lineage = (*node.lineage, i)
            node.children.append(State(node.tokens + steps.sample(node.tokens, lineage), lineage, parent=node))
        nodes += node.children
        for child in node.children:
            lines = text_of(child.tokens).splitlines()
            bad = len(lines) > 1 and lines[-1] == lines[-2]
            ancestor: State | None = child
            while ancestor is not None:
                ancestor.values.append(0.0 if bad else value(text_of(child.tokens)))
                ancestor = ancestor.parent
    return nodes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("root", "width", "expansions", "c"), [(4, 2, 12, 1.0), (3, 1, 20, 0.1), (2, 3, 8, 5.0)])
def test_tree_visits_and_means_are_those_of_the_definition(
    seed: int, root: int, width: int, expansions: int, c: float
) -> None:
    search = Mcts(root_children=root, children=width, expansions=expansions, exploration=c, final="best-of-n")
    with serving() as runtime:
        got = found(search, value=Scripted(), runtime=runtime, seed=seed)
        nodes = reference(Steps(runtime, seed), noise, root=root, width=width, expansions=expansions, c=c)
    made = got.context.nodes[: len(nodes)]
    assert [node.text for node in made] == [text_of(node.tokens) for node in nodes]
    assert [node.notes["visits"] for node in made] == [len(node.values) for node in nodes]
    assert [node.notes["q"] for node in made] == pytest.approx([round(node.q, 6) for node in nodes], abs=2e-6)
    solutions = [text_of(node.tokens) for node in nodes if is_final(text_of(node.tokens))]
    if solutions:
        assert len(got.context.nodes) == len(nodes)
        assert got.texts == [max(solutions, key=noise)]
    else:
        assert got.facts["completed_greedily"] is True
        assert is_final(got.texts[0])


def test_priors_change_where_puct_looks() -> None:
    trees = {
        rule: found(
            Mcts(selection=rule, children=3, expansions=10, exploration=3.0),  # type: ignore[arg-type]
            value=Scripted(lambda _: 0.5),
            seed=2,
        ).tree
        for rule in ("uct", "puct")
    }
    assert trees["uct"] != trees["puct"]
    assert len(trees["uct"]) == len(trees["puct"])


def test_at_the_depth_cap_the_rest_is_one_greedy_child() -> None:
    got = found(Mcts(max_depth=1, root_children=3, expansions=4), value=Scripted(), seed=1)
    solutions = [node for node in got.context.nodes if node.finished]
    assert len(solutions) == 3
    assert got.facts["stopped_by"] == "solved"


def test_the_best_open_state_is_finished_where_the_tree_has_no_solution() -> None:
    got = found(Mcts(expansions=1, root_children=4), value=Scripted(), seed=1)
    best = max(got.context.nodes[1:5], key=lambda node: noise(node.text))
    assert got.texts[0].startswith(best.text)
    assert is_final(got.texts[0])


def test_the_reserve_pays_for_a_solution() -> None:
    got = found(Mcts(answer_reserve=30), value=Scripted(), seed=3, budget=Budget(output_tokens=60))
    assert is_final(got.texts[0])
    assert got.run.generation.meter.spend.output_tokens <= 60
