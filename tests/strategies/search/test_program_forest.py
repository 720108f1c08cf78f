"""Properties of the forest of programs, over random searches: what its statistics mean, whatever the scores are."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.program_forest import Expansion, ProgramForest, ProgramNode, first_best

SCORES = st.integers(0, 6).map(lambda passed: passed / 6)
"""Few values, so that ties and equal children are common."""
KINDS = st.sampled_from([{"rule": "uct"}, {"rule": "puct"}, {"slots": 2}, {"flat": True}])


def below(node: ProgramNode) -> list[ProgramNode]:
    return [node, *(one for child in node.children for one in below(child))]


@dataclass
class Search:
    """A forest under random passes. closed: children that repeat their parents."""

    forest: ProgramForest
    passes: int = 0
    closed: list[ProgramNode] = field(default_factory=list)

    def step(self, batch: int, rewards: list[float], repeats: list[bool]) -> None:
        """One wave: picks, checks the picks, then adds a child for each; a child that repeats its parent is closed."""
        carried_out = {id(one.direction) for one in self.forest.nodes}
        jobs = self.forest.pick(batch)
        assert jobs, "a pass must end somewhere while nothing is being carried out"
        assert len(jobs) <= batch
        for job in jobs:
            self.check_pick(job)
            assert id(job.direction) not in carried_out
        assert len({id(job.direction) for job in jobs}) == len(jobs)
        self.passes += len(jobs)
        for job, reward, repeat in zip(jobs, rewards, repeats, strict=False):
            job.direction.logprob = -reward
            again = repeat and self.forest.slots is None
            child = self.forest.add(job, job.node.score if again else reward, closed=again)
            if again:
                self.closed.append(child)

    def check_pick(self, job: Expansion) -> None:
        root, *path = job.path
        assert root is self.forest.root
        assert path[-1] is job.node
        assert not any(node.closed for node in path)
        assert job.direction in job.node.directions
        for node, chosen in pairwise(path):
            assert chosen in node.children
            if self.forest.slots is None:
                # Nothing is tried below a program as long as none of its children is better.
                assert max(child.score for child in node.children) > node.score
            else:
                assert len(node.children) >= self.forest.slots

    def check(self) -> None:
        forest = self.forest
        for node in forest.nodes:
            assert node.value == max(one.score for one in below(node))
            assert node.parent is not None
            assert node.depth == node.parent.depth + 1
            assert sum(child.visits - 1 for child in node.children) <= node.visits - 1
            width = forest.m if forest.slots is None else forest.slots
            # New directions come when none is open, and one of them is taken at once.
            assert sum(direction.state == "open" for direction in node.directions) < width
            assert len(node.directions) % width == 0
            assert [direction.state for direction in node.directions].count("done") == len(node.children)
            taken = [id(child.direction) for child in node.children]
            assert len(set(taken)) == len(taken)
        scores = [node.score for node in forest.nodes if node.parent is not forest.root]
        assert forest.root.value == max([0.0, *scores])
        assert forest.root.visits == 1 + self.passes
        assert sum(seed.visits - 1 for seed in forest.root.children) == self.passes
        assert all(not node.children and node.visits == 1 for node in self.closed)


@st.composite
def searches(draw: st.DrawFn, **fixed: Any) -> Search:
    options = {**draw(KINDS), "m": draw(st.integers(1, 3)), "c": draw(st.sampled_from([0.0, 0.5, 2**0.5])), **fixed}
    search = Search(ProgramForest(**options))
    for score in draw(st.lists(SCORES, min_size=1, max_size=4)):
        search.forest.seed(score)
    for _ in range(draw(st.integers(0, 12))):
        batch = draw(st.integers(1, 4))
        rewards = draw(st.lists(SCORES, min_size=batch, max_size=batch))
        search.step(batch, rewards, draw(st.lists(st.booleans(), min_size=batch, max_size=batch)))
    return search


@settings(max_examples=150, deadline=None)
@given(searches())
def test_statistics(search: Search) -> None:
    search.check()


@settings(max_examples=150, deadline=None)
@given(searches(), st.data())
def test_scores_that_change_later(search: Search, data: st.DataObject) -> None:
    """Values after `rescore` are those of a forest that had these scores from the beginning; passes go on."""
    nodes = search.forest.nodes
    scores = data.draw(st.lists(SCORES, min_size=len(nodes), max_size=len(nodes)))
    for node in search.closed:  # a parent's program again, so also its score
        assert node.parent is not None
        scores[node.number] = scores[node.parent.number]
    search.forest.rescore(scores, [score == 1.0 for score in scores])
    assert [node.score for node in nodes] == scores
    assert [node.solved for node in nodes] == [score == 1.0 for score in scores]
    search.check()
    anew = ProgramForest(m=search.forest.m, c=search.forest.c)
    for node, score in zip(nodes, scores, strict=True):
        if node.parent is None or node.parent is search.forest.root:
            anew.seed(score)
        else:
            assert node.direction is not None
            parent = anew.nodes[node.parent.number]
            anew.add(Expansion(parent, node.direction, new=False, path=()), score)
    assert [node.value for node in anew.nodes] == [node.value for node in nodes]
    assert anew.root.value == search.forest.root.value
    search.step(1, [data.draw(SCORES)], [False])
    search.check()


@settings(max_examples=100, deadline=None)
@given(searches(c=0.0, rule="uct", slots=None, flat=False))
def test_without_exploration_a_pass_follows_the_best_values(search: Search) -> None:
    (job,) = search.forest.pick() or ()
    for node, chosen in pairwise(job.path):
        open_ones = [child for child in node.children if not child.closed]
        assert chosen is open_ones[first_best([child.value for child in open_ones])]


@settings(max_examples=100, deadline=None)
@given(searches(flat=True, slots=None), st.integers(1, 9))
def test_without_a_tree_every_direction_is_the_best_seeds(search: Search, batch: int) -> None:
    """In a wave wider than its directions the next best ones follow."""
    seeds = sorted(search.forest.root.children, key=lambda seed: (-seed.score, seed.number))
    left = [sum(one.state == "open" for one in seed.directions) or search.forest.m for seed in seeds]
    expected = [seed for seed, width in zip(seeds, left, strict=True) for _ in range(width)][:batch]
    jobs = search.forest.pick(batch) or []
    assert [job.node for job in jobs] == expected
    assert all(job.path == (search.forest.root, job.node) for job in jobs)
    search.passes += len(jobs)
    for job in jobs:
        search.forest.add(job, 1.0)
    search.check()
    assert {node.depth for node in search.forest.nodes} <= {1, 2}


def test_a_child_that_is_its_parent_again_is_not_expanded() -> None:
    """It has fewer visits than its better sibling, so without being closed it would be next."""
    forest = ProgramForest(m=2)
    seed = forest.seed(0.5)
    jobs = forest.pick(2) or []
    assert [job.node for job in jobs] == [seed, seed]
    better, again = forest.add(jobs[0], 0.6), forest.add(jobs[1], 0.5, closed=True)
    for _ in range(6):
        (job,) = forest.pick() or ()
        assert job.node in (better, *better.children)
        forest.add(job, 0.0)
    assert (again.visits, again.children) == (1, [])
