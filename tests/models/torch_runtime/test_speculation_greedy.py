"""Every speculation method on the embedded model: greedy output is plain decoding's, token for token, on 100 prompts.

Plain decoding on the same engine is the reference, which `test_exactness` compares with transformers. The batches mix
prompts of all lengths. A difference is accepted only where plain decoding's two best log-probabilities lie closer than
NEAR_TIE; such differences are counted.

What `auto` picks depends on what steps take, so the engine's clock is scripted: drafts are cheap, on every machine.
"""

import asyncio
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from speculating_engine import auto, chain, multi_draft, ngram, rsd_c, rsd_s, shape_name, spectr
from test_exactness import ASKED, CONTINUED, NEAR_TIE, TOPICS

from models.loading import resolve
from models.torch_runtime import load
from models.torch_runtime.batch import PackedBatch
from models.torch_runtime.engine import Engine
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.load import EngineOptions, load_runtime
from models.torch_runtime.runtime import TorchRuntime
from strategies.budget import Spend
from strategies.runtime import Generation, StopConditions, TokenLogprob
from strategies.sampling.standard import sampling
from strategies.speculative.speculation import Speculation

pytestmark = pytest.mark.timeout(600)

NEW_TOKENS = 20
LAYERS = 24  # of 30, so that some drafts are accepted and some are not
TARGET_SECONDS, DRAFT_SECONDS = 1.0, 0.01  # a forward's, whatever its tokens
GREEDY = sampling(temperature=0.0)
EXACTLY = StopConditions(max_tokens=NEW_TOKENS, ignore_eos=True)
METHODS = (chain(3), multi_draft(2, 2), spectr(3, 2), rsd_c(2, 2), rsd_s(2, 3), ngram(6), auto())
Output = tuple[list[int], list[TokenLogprob]]


class ScriptedClock:
    """Advances by what forwards are said to take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def time(self, model: Any) -> None:
        forward = model.forward

        def timed(batch: PackedBatch, pool: SlotPool, **options: Any) -> Any:
            self.now += DRAFT_SECONDS if "layers" in options else TARGET_SECONDS
            return forward(batch, pool, **options)

        model.forward = timed


@pytest.fixture(scope="module")
def runtime() -> Iterator[TorchRuntime]:
    options = EngineOptions(dtype="float32", max_num_seqs=32, max_model_len=512, early_exit_layers=LAYERS)
    clock = ScriptedClock()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(load, "Engine", functools.partial(Engine, clock=clock))
        runtime = load_runtime(resolve(None), options)
    clock.time(runtime.engine.model)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def prompts(runtime: TorchRuntime) -> list[list[int]]:
    """100 prompts of 10 to 80 tokens: chats, and a text that repeats itself."""
    tokenizer = runtime.tokenizer
    texts = [CONTINUED.format(topic) for topic in TOPICS]
    texts += [
        tokenizer.render_chat([{"role": "user", "content": ask.format(topic)}]) for topic in TOPICS for ask in ASKED
    ]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def run(runtime: TorchRuntime, requests: Sequence[Generation]) -> list[Output]:
    async def collect() -> list[Output]:
        outputs = []
        for stream in runtime.submit(requests):
            deltas = [delta async for delta in stream]
            entries = [entry for delta in deltas for entry in delta.logprobs or []]
            outputs.append(([token for delta in deltas for token in delta.tokens], entries))
        return outputs

    return asyncio.run(collect())


@pytest.fixture(scope="module")
def expected(runtime: TorchRuntime, prompts: list[list[int]]) -> list[Output]:
    return run(runtime, [Generation(prompt, GREEDY, EXACTLY, logprobs=2) for prompt in prompts])


@pytest.mark.parametrize("speculation", METHODS, ids=shape_name)
def test_greedy_output_is_plain_decodings(
    runtime: TorchRuntime, prompts: list[list[int]], expected: list[Output], speculation: Speculation
) -> None:
    requests = [Generation(prompt, GREEDY, EXACTLY, speculation=speculation) for prompt in prompts]
    near_ties = 0
    for (ours, _), (theirs, entries) in zip(run(runtime, requests), expected, strict=True):
        assert len(ours) == NEW_TOKENS
        if ours != theirs:
            at = next(i for i in range(NEW_TOKENS) if ours[i] != theirs[i])
            (_, best), (_, second) = entries[at].top
            assert best - second < NEAR_TIE, f"token {at} differs without a near-tie"
            near_ties += 1
    assert near_ties <= 2
    spends: list[Spend] = [request.meter.spend for request in requests]
    accepted = sum(spend.accepted_tokens for spend in spends)
    drafted = sum(spend.drafted_tokens for spend in spends)
    assert min(accepted, drafted - accepted) > 50
