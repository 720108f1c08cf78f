"""Contrastive search through the engine equals its definition, computed step by step with plain transformers."""

import asyncio
from typing import Any

import pytest
import torch
import transformers

from models.loading import ModelFiles, resolve
from models.torch_runtime.load import EngineOptions, load_runtime
from models.torch_runtime.runtime import TorchRuntime
from strategies.budget import Budget, Meter
from strategies.errors import InvalidRequest
from strategies.runtime import Generation, StopConditions
from strategies.sampling.contrastive import Contrastive
from strategies.sampling.standard import sampling
from strategies.speculative.speculation import NgramSpeculation

PROMPTS = ("The capital of France is", "def add(a, b):\n", "Once upon a time, once upon a time, once upon", "1, 2, 3,")
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return resolve(None)


@pytest.fixture(scope="module")
def runtime(files: ModelFiles) -> Any:
    runtime = load_runtime(files, EngineOptions(max_num_seqs=8, dtype="float32", max_num_batched_tokens=16))
    yield runtime
    runtime.close()


def generation(runtime: TorchRuntime, prompt: str, search: Contrastive, **options: Any) -> Generation:
    tokens = runtime.tokenizer.encode(prompt, add_special_tokens=False)
    stopping = StopConditions(max_tokens=NEW_TOKENS, ignore_eos=True)
    return Generation(tokens, sampling(transforms=[search]), stopping, **options)


def run(runtime: TorchRuntime, generations: list[Generation]) -> list[list[int]]:
    async def collect() -> list[list[int]]:
        return [[token async for delta in stream for token in delta.tokens] for stream in runtime.submit(generations)]

    return asyncio.run(collect())


def expected(model: Any, prompt: list[int], search: Contrastive) -> list[int]:
    """Eq. 5 of the paper, with every context computed anew."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            probabilities = model(torch.tensor([tokens]), logits_to_keep=1).logits[0, -1].softmax(-1)
            top = probabilities.topk(search.k).indices.tolist()
            states = model.model(torch.tensor([[*tokens, v] for v in top])).last_hidden_state
            scores = []
            for v, state in zip(top, states, strict=True):
                similarity = torch.cosine_similarity(state[-1:], state[:-1]).max()
                scores.append(float((1 - search.alpha) * probabilities[v] - search.alpha * similarity))
            tokens.append(top[scores.index(max(scores))])
    return tokens[len(prompt) :]


def test_it_equals_the_definition_in_a_batch(files: ModelFiles, runtime: TorchRuntime) -> None:
    search = Contrastive(k=3, alpha=0.5)
    model = transformers.AutoModelForCausalLM.from_pretrained(files.folder, dtype=torch.float32).eval()
    generations = [generation(runtime, prompt, search) for prompt in PROMPTS]
    found = run(runtime, generations)
    assert found == [expected(model, list(one.prompt), search) for one in generations]
    pool, cache = runtime.engine.pool, runtime.engine.scheduler.cache
    assert pool.num_free + cache.size == pool.num_slots
    spend = generations[0].meter.spend
    assert spend.target_tokens == len(generations[0].prompt) + NEW_TOKENS - 1 + NEW_TOKENS * search.k


def test_alpha_0_is_greedy_and_the_seed_plays_no_part(runtime: TorchRuntime) -> None:
    greedy = Generation(
        runtime.tokenizer.encode(PROMPTS[0]), sampling(temperature=0.0), StopConditions(NEW_TOKENS, ignore_eos=True)
    )
    plain = generation(runtime, PROMPTS[0], Contrastive(alpha=0.0), seed=1)
    other = generation(runtime, PROMPTS[0], Contrastive(alpha=0.0), seed=2)
    first, second, third = run(runtime, [greedy, plain, other])
    assert first == second == third


def test_its_candidates_are_paid_for(runtime: TorchRuntime) -> None:
    meter = Meter(Budget(forward_tokens=25))
    one = generation(runtime, PROMPTS[0], Contrastive(), meter=meter)
    (found,) = run(runtime, [one])
    # 5 or so prompt tokens, then 1 + 4 for every token.
    assert meter.spend.target_tokens <= 25
    assert meter.exhausted == "forward_tokens"
    assert len(found) == (25 - len(one.prompt) + 1) // 5


def test_it_cannot_follow_draft_trees(runtime: TorchRuntime) -> None:
    async def submit() -> None:
        runtime.submit([generation(runtime, PROMPTS[0], Contrastive(), speculation=NgramSpeculation())])

    with pytest.raises(InvalidRequest, match="contrastive"):
        asyncio.run(submit())
