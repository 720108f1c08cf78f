"""An engine that speculates by vLLM's own means: what its sampler has works, the rest is refused by name."""

from collections.abc import Iterator
from typing import Any

import pytest
from asking import answer, answers, asking

from models.loading import resolve
from models.torch_runtime.runtime import TorchRuntime
from models.vllm_runtime.load import VllmOptions, load_runtime
from models.vllm_runtime.native import native_parameters
from models.vllm_runtime.runtime import VllmRuntime
from strategies.errors import InvalidRequest
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.bregman.transform import Bregman
from strategies.sampling.penalties import CountPenalty, LogitBias, RepetitionPenalty
from strategies.sampling.truncation import MinP, TopK, TopP

REPEATING = "one two three four five one two three four five one two three"


@pytest.fixture(scope="module")
def speculating(vllm_is_here: None) -> Iterator[VllmRuntime]:
    options = VllmOptions(
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory=64 << 20,
        engine_arguments=(
            "enforce_eager=true",
            'speculative_config={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}',
        ),
    )
    runtime = load_runtime(resolve(None), options)
    yield runtime
    runtime.close()


async def test_greedy_tokens(speculating: VllmRuntime, torch_runtime: TorchRuntime) -> None:
    """Several of them may come in one step."""
    generation = asking(speculating, REPEATING, 24, logprobs=1)
    ours, theirs = await answer(speculating, generation), await answer(torch_runtime, generation)
    assert ours.tokens == theirs.tokens
    assert ours.text == theirs.text
    assert len(ours.logprobs) == 24
    assert ours.deltas < 24


async def test_a_seed_is_repeatable(speculating: VllmRuntime) -> None:
    sampling = SamplingParameters(1.0, (TopK(k=50), TopP(p=0.9), RepetitionPenalty(penalty=1.1)))
    generations = [asking(speculating, REPEATING, 12, sampling=sampling, seed=3, branch=(i % 2,)) for i in range(4)]
    found = await answers(speculating, generations)
    assert found[0].tokens == found[2].tokens != found[1].tokens == found[3].tokens


def test_fields_of_vllms_sampler() -> None:
    transforms = (TopK(k=5), TopP(p=0.5), RepetitionPenalty(penalty=1.2), CountPenalty(presence=0.1, frequency=0.2))
    generation = Generation([1], SamplingParameters(0.7, transforms), StopConditions(min_tokens=4), seed=2**64 - 1)
    fields = native_parameters(generation)
    assert 0 <= fields.pop("seed") < 2**63
    assert fields == {
        "temperature": 0.7,
        "min_tokens": 4,
        "top_k": 5,
        "top_p": 0.5,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
    }
    assert native_parameters(Generation([1], SamplingParameters(1e-7)))["temperature"] == 0.0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampling": SamplingParameters(1.0, (Bregman(alpha=1.5, tau=0.05),))}, "decoding.sampler"),
        ({"sampling": SamplingParameters(1.0, (MinP(p=0.1),))}, "decoding.sampler"),
        ({"sampling": SamplingParameters(1.0, (LogitBias(bias={1: 1.0}),))}, "logit_bias"),
        ({"sampling": SamplingParameters(1.0, (CountPenalty(presence=1.0),)), "answer": [1]}, "decoding.penalty"),
        ({"sampling": SamplingParameters(1.0, (), ("top_p", "top_k"))}, "decoding"),
        ({"logprobs": 1, "logprobs_mode": "processed"}, "logprobs_mode"),
        ({"pooling": "last"}, "pooling"),
    ],
)
def test_what_it_does_not_have(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        native_parameters(Generation([1], **fields))
    assert refused.value.param == param
