"""Tree of thoughts, depth first: the steps it tries, in order, against the definition, on the real engine."""

from collections.abc import Callable

import pytest
from tree_model import Scripted, Steps, found, is_final, noise, serving, text_of

from strategies.search.tot_dfs import TotDfs


def reference(steps: Steps, value: Callable[[str], float], threshold: float, most: int, cap: int) -> list[str]:
    """Texts tried, in order, until a solution passes or the cap is reached."""
    tried: list[str] = []

    def descend(tokens: list[int], lineage: tuple[int, ...]) -> bool:
        for child in range(most):
            if len(tried) >= cap:
                return True
            more = tokens + steps.sample(tokens, (*lineage, child))
            text = text_of(more)
            tried.append(text)
            lines = text.splitlines()
            bad = len(lines) > 1 and lines[-1] == lines[-2]
            if (0.0 if bad else value(text)) < threshold:
                continue
            if is_final(text) or descend(more, (*lineage, child)):
                return True
        return False

    descend([], ())
    return tried


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("threshold", "most"), [(0.5, 5), (0.7, 2), (0.0, 1), (0.9, 3)])
def test_steps_are_tried_in_the_order_of_the_definition(seed: int, threshold: float, most: int) -> None:
    search = TotDfs(prune_below=threshold, max_children=most, max_nodes=40)
    with serving() as runtime:
        got = found(search, value=Scripted(), runtime=runtime, seed=seed)
        tried = reference(Steps(runtime, seed), noise, threshold, most, 40)
    assert got.tree[: len(tried)] == tried
    passed = [text for text in tried if is_final(text) and noise(text) >= threshold]
    if passed:
        assert got.texts == passed[:1]
        assert got.facts["stopped_by"] == "solved"
        assert len(got.tree) == len(tried)
    else:
        assert got.facts["stopped_by"] == "exhausted"
        assert is_final(got.texts[0])  # pruned, or finished greedily


def test_where_all_is_pruned_the_best_solution_found_is_better_than_none() -> None:
    got = found(TotDfs(prune_below=0.0), value=Scripted(lambda text: 0.0 if is_final(text) else 1.0), seed=1)
    assert got.facts["stopped_by"] == "solved"  # 0 is not below 0
    got = found(
        TotDfs(prune_below=0.5, max_nodes=40), value=Scripted(lambda text: noise(text) / 2 if is_final(text) else 1.0)
    )
    solutions = [text for text in got.tree if is_final(text)]
    assert got.texts == [max(solutions, key=noise)]


def test_n_goes_on_to_further_solutions() -> None:
    got = found(TotDfs(prune_below=0.0), value=Scripted(), n=3, seed=2)
    solutions = [node.text for node in got.context.nodes if node.finished]
    assert len(solutions) == 3
    assert sorted(got.texts) == sorted(solutions)
    assert len({text.rstrip("\n")[-1] for text in got.texts[:2]}) == min(
        2, len({text.rstrip("\n")[-1] for text in solutions})
    )
