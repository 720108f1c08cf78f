"""Predictive decoding on the real engine: values, draws, whole answers that pool their first lines."""

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from search_stories import PROMPT, TOKENIZER, CallCounter, plain, rambling, solve, story

from models.scripted import scripted_runtime
from models.torch_runtime.runtime import TorchRuntime
from strategies.search.phi_options import StepOptions
from strategies.search.predictive_pool import step_lengths
from strategies.search.predictive_search import Predictive

VARIANTS = pytest.mark.parametrize("variant", ["phi", "original"])


@pytest.fixture(scope="module")
def rambler() -> Iterator[TorchRuntime]:
    runtime = scripted_runtime(rambling, TOKENIZER)
    yield runtime
    runtime.close()


@VARIANTS
async def test_answers_are_the_model_s_and_streamed_step_by_step(variant: str) -> None:
    answers = {f"first {w}\nthen {v}\nlast {w} {v}": 1.0 for w in ("ant", "bee") for v in ("up", "down")}
    runtime = scripted_runtime(story(answers), TOKENIZER)
    for seed in range(4):
        solved = await solve(runtime, Predictive.model_validate({"variant": variant, "rollouts": 4}), seed=seed)
        assert solved.texts[0] in answers
        assert solved.pieces == solved.texts[0].splitlines(keepends=True)
        assert solved.ends[0].finish_reason == "stop"
        assert solved.counts["steps"] == 3
    runtime.close()


async def test_values_are_means_over_step_and_foresight(rambler: TorchRuntime) -> None:
    with CallCounter(rambler) as counter:
        solved = await solve(rambler, Predictive(rollouts=4, t_max=3, tau=0.3), seed=2)
    assert len(counter.calls) - 1 <= 2 * solved.counts["steps"] + 1
    paths = {node["parent"]: node for node in solved.nodes if node.get("stage") == "foresight"}
    for node in (node for node in solved.nodes if node.get("stage") == "rollout"):
        ahead = paths.get(node["id"], {"logprob": 0.0, "tokens": 0})
        mean = (node["logprob"] + ahead["logprob"]) / (node["tokens"] + ahead["tokens"])
        assert node["value"] == pytest.approx(mean, abs=1e-5)
    for t in range(1, solved.counts["steps"] + 1):
        assert sum(bool(node.get("chosen")) for node in solved.nodes if node.get("step") == t) == 1


async def test_draws_follow_the_softmax_of_values() -> None:
    """One of 3 candidates each time; observed draws of the likelier text against the probabilities of each run's own
    candidates, worked out here. False-alarm rate: 6 standard errors, below 1e-8."""
    model = story({"a\nxy": 0.45, "b\nqr": 0.35, "b\nst": 0.2})
    runtime = scripted_runtime(model, TOKENIZER, max_num_seqs=256)
    search = Predictive.model_validate({"rollouts": 3, "t_max": 1, "tau": 0.2, "step": {"temperature": 1.0}})
    surplus, variance = 0.0, 0.0
    for start in range(0, 400, 50):
        for solved in await asyncio.gather(*(solve(runtime, search, seed=start + i) for i in range(50))):
            nodes = [node for node in solved.nodes if node.get("stage") == "rollout"]
            p = torch.softmax(torch.tensor([node["value"] / 0.2 for node in nodes], dtype=torch.float64), 0).tolist()
            a = sum(p for node, p in zip(nodes, p, strict=True) if node["text"] == "a\n")
            (chosen,) = [node for node in nodes if node["chosen"]]
            surplus += (chosen["text"] == "a\n") - a
            variance += a * (1 - a)
    runtime.close()
    assert variance > 20
    assert abs(surplus) < 6 * math.sqrt(variance)


async def test_equal_first_lines_pool_their_weights_and_old_answers_stay() -> None:
    """All answers have one likelihood, so the first line is drawn by how often it was sampled."""
    model = story({f"{line}\n{rest}": 1.0 for line in ("ab", "cd") for rest in ("ef\ngh", "ij\nkl")})
    runtime = scripted_runtime(model, TOKENIZER)
    search = Predictive(variant="original", rollouts=5, t_max=2)
    firsts: Counter[bool] = Counter()
    for seed in range(20):
        solved = await solve(runtime, search, seed=seed)
        samples = [node for node in solved.nodes if node.get("stage") == "rollout" and node["step"] == 1]
        (taken,) = [node for node in solved.nodes if node.get("step") == 1 and "stage" not in node]
        share = sum(node["text"].startswith(taken["text"]) for node in samples) / 5
        assert taken["value"] == pytest.approx(share)
        (second,) = [node for node in solved.nodes if node.get("step") == 2 and "stage" not in node]
        fresh = [node for node in solved.nodes if node.get("stage") == "rollout" and node["step"] == 2]
        kept = [node["text"] for node in samples if node["text"].startswith(taken["text"])]
        lines = [text.split("\n")[1] for text in kept] + [node["text"].split("\n")[0] for node in fresh]
        # A rest alone has half the likelihood of a whole answer less: it weighs more than an old one.
        assert second["text"].strip() in lines
        firsts[taken["text"] == "ab\n"] += 1
    runtime.close()
    assert len(firsts) == 2


@VARIANTS
async def test_seeds_and_plain_sampling(rambler: TorchRuntime, variant: str) -> None:
    search = Predictive.model_validate({"variant": variant, "rollouts": 4, "t_max": 3})
    alone = [await solve(rambler, search, seed=seed) for seed in range(3)]
    together = await asyncio.gather(*(solve(rambler, search, seed=seed) for seed in range(3)))
    assert [one.texts for one in alone] == [one.texts for one in together]
    assert len({one.texts[0] for one in alone}) == 3
    undeliberated = Predictive.model_validate({"variant": variant, "t_max": 0})
    solved = await solve(rambler, undeliberated, n=2, seed=4)
    assert solved.texts == await plain(rambler, n=2, seed=4)


@VARIANTS
async def test_n_answers(rambler: TorchRuntime, variant: str) -> None:
    search = Predictive.model_validate({"variant": variant, "rollouts": 6, "t_max": 2})
    one, three = await solve(rambler, search, seed=1), await solve(rambler, search, n=3, seed=1)
    assert three.texts[0] == one.texts[0]
    assert len(set(three.texts)) == 3


def test_steps_of_a_text_are_those_that_rollouts_would_have_ended_at() -> None:
    tokens = TOKENIZER.encode("\n ab\n\ncd\nef")
    assert step_lengths(tokens, TOKENIZER, StepOptions()) == [5, 4, 2]
    assert step_lengths(tokens, TOKENIZER, StepOptions(end="blank")) == [6, 5]
    assert step_lengths(tokens, TOKENIZER, StepOptions(end="chunk", max_tokens=4)) == [4, 4, 3]
    assert step_lengths([], TOKENIZER, StepOptions()) == []
    assert len(PROMPT) == 2


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"variant": "other"}, "variant"),
        ({"rollouts": 65}, "rollouts"),
        ({"tau": 0}, "tau"),
        ({"lines": 0}, "lines"),
        ({"beams": 2}, "beams"),
        ({"step": {"temperature": -1.0}}, "step.temperature"),
    ],
)
def test_parameters_are_strict(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Predictive.model_validate(given)
    assert [".".join(map(str, fault["loc"])) for fault in caught.value.errors()] == [field]
