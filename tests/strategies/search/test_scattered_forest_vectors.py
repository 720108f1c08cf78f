"""The vectors of the specification of Scattered Forest Search; those of its sandbox are tested with the sandbox."""

import json
from pathlib import Path
from typing import Any

import pytest

from strategies.scoring.program_metrics import (
    levenshtein_similarity,
    mean_iterations,
    pass_any_curve,
    pass_at_k,
    token_similarity,
)
from strategies.search.program_choice import (
    Candidate,
    derive_seed,
    first_highest,
    preference,
    split_programs,
    theme_order,
)
from strategies.search.program_forest import (
    ProgramForest,
    ProgramNode,
    backed_up,
    first_best,
    forest_puct,
    no_better_child,
    priors,
    reward,
)
from strategies.search.program_replies import directions_of
from strategies.search.prompt_examples import parse_examples
from strategies.search.uct import uct

FILE = json.loads(Path(__file__).with_name("scattered_forest_vectors.json").read_text(encoding="utf-8"))
SANDBOX = {"enc", "judge", "classify"}
VECTORS = [vector for vector in FILE["vectors"] if vector["fn"] not in SANDBOX]


def name_of(node: ProgramNode) -> str:
    return "root" if node.parent is None else f"n{node.number}"


def named(forest: ProgramForest) -> list[dict[str, Any]]:
    return [
        {
            "id": name_of(node),
            "parent": name_of(node.parent) if node.parent is not None else None,
            "score": node.score,
            "value": node.value,
            "visits": node.visits,
        }
        for node in forest.nodes
    ]


def seeded(seed_scores: list[float], m: int, c: float) -> ProgramForest:
    forest = ProgramForest(m=m, c=c)
    for score in seed_scores:
        forest.seed(score, solved=score == 1.0)
    return forest


def forest_run(
    seed_scores: list[float], m: int, c: float, scripted_rewards: list[float], max_iters: int, break_mode: str
) -> dict[str, Any]:
    forest, log = seeded(seed_scores, m, c), []
    for iteration in range(max_iters):
        if break_mode == "eager" and any(node.solved for node in forest.nodes):
            log.append({"iter": iteration, "event": "stop_solved_any"})
            break
        picked = forest.pick(stop_at_solved=break_mode == "official")
        if picked is None:
            deepest = max((node for node in forest.nodes if node.solved), key=lambda node: node.depth)
            path = ["root", *(name_of(node) for node in lineage(deepest))]
            log.append({"iter": iteration, "path": path, "event": "stop_selected_solved"})
            break
        (job,) = picked
        child = forest.add(job, scripted_rewards[iteration], solved=scripted_rewards[iteration] == 1.0)
        log.append(
            {
                "iter": iteration,
                "path": [name_of(node) for node in job.path],
                "expanded": name_of(job.node),
                "new_directions": m if job.new else 0,
                "direction": f"{name_of(job.node)}/d{job.node.directions.index(job.direction)}",
                "child": name_of(child),
                "score": child.score,
            }
        )
    return {"log": log, "nodes": named(forest)}


def lineage(node: ProgramNode) -> list[ProgramNode]:
    return [] if node.parent is None else [*lineage(node.parent), node]


def select_batch(seed_scores: list[float], m: int, c: float, batch: int) -> dict[str, Any]:
    forest = seeded(seed_scores, m, c)
    jobs = [
        {
            "node": name_of(job.node),
            "direction": f"{name_of(job.node)}/d{job.node.directions.index(job.direction)}",
            "new_directions": job.new,
            "path": [name_of(node) for node in job.path],
        }
        for job in forest.pick(batch) or ()
    ]
    return {"jobs": jobs, "nodes": named(forest)}


def select_child(children: list[list[Any]], parent_visits: int, c: float) -> dict[str, Any]:
    scores = [uct(value, parent_visits, visits, c) for value, visits in children]
    return {"index": first_best(scores), "scores": scores}


def puct_case(
    logprobs: list[float], values: list[float], visits: list[int], parent_visits: int, c: float, cbase: float
) -> dict[str, Any]:
    shares = priors(logprobs)
    rows = zip(values, shares, visits, strict=True)
    return {
        "priors": shares,
        "scores": [forest_puct(value, share, parent_visits, count, c, cbase) for value, share, count in rows],
    }


def final_recommended(nodes: list[dict[str, Any]]) -> str:
    fields = ("order", "passed_given", "n_given", "passed_generated", "n_generated", "depth", "chars", "votes")
    best = min(nodes, key=lambda node: preference(Candidate(**{name: node[name] for name in fields})))
    return str(best["id"])


def mean_iters(histogram: dict[str, float], k: int) -> dict[str, float]:
    values = mean_iterations({int(index): share for index, share in histogram.items()}, k)
    return dict(zip(("solved", "mean_all", "mean_excluding_first"), values, strict=True))


FUNCTIONS: dict[str, Any] = {
    "reward": reward,
    "uct": lambda value, visits, parent_visits, c: uct(value, parent_visits, visits, c),
    "select_child": select_child,
    "puct": puct_case,
    "backup_max": lambda path_values, leaf_value: backed_up(path_values, leaf_value),
    "no_better_child": lambda score, child_scores: no_better_child(score, child_scores),
    "forest_run": forest_run,
    "select_batch": select_batch,
    "final_official": first_highest,
    "final_recommended": final_recommended,
    "split_budget": lambda k: [list(split_programs(one)) for one in k],
    "theme_order": theme_order,
    "derive_seed": lambda cases: [derive_seed(*case) for case in cases],
    "curve": lambda histogram, k: pass_any_curve({int(index): share for index, share in histogram.items()}, k),
    "mean_iters": mean_iters,
    "pass_at_k": lambda cases: [pass_at_k(*case) for case in cases],
    "parse_directions": lambda text, m: directions_of(text, m),
    "parse_examples": lambda prompt, entry_point: [list(pair) for pair in parse_examples(prompt, entry_point)],
    "similarity": lambda codes: {
        "levenshtein": levenshtein_similarity(codes),
        "token_sequence": token_similarity(codes),
    },
}


def close(expected: Any) -> Any:
    """The same with numbers compared to the file's tolerance."""
    if isinstance(expected, dict):
        return {key: close(value) for key, value in expected.items()}
    if isinstance(expected, list):
        return [close(value) for value in expected]
    return pytest.approx(expected, abs=FILE["float_tolerance"]) if isinstance(expected, float) else expected


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
def test_vector(vector: dict[str, Any]) -> None:
    assert FUNCTIONS[vector["fn"]](**vector["input"]) == close(vector["expected"])


def test_every_vector_is_here() -> None:
    assert len(FILE["vectors"]) == FILE["count"] == len(VECTORS) + len(SANDBOX) == 37
