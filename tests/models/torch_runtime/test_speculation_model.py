"""Speculation with the embedded model: n-gram look-up, its own first layers, and a second model as the draft.

Greedy output is that of plain decoding on the same engine, which `test_exactness` compares with transformers. A
difference is accepted only where plain decoding's two best log-probabilities are closer than NEAR_TIE.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from speculating_engine import chain, ngram, rsd_c, rsd_s, shape_name
from test_exactness import ASKED, CONTINUED, NEAR_TIE, TOPICS

from models.loading import ModelFiles, resolve
from models.torch_runtime.load import EngineOptions, load_runtime
from models.torch_runtime.runtime import TorchRuntime
from strategies.errors import ModelLoadError
from strategies.runtime import Generation, StopConditions, TokenLogprob
from strategies.sampling.standard import sampling
from strategies.speculative.speculation import Speculation

NEW_TOKENS = 32
LAYERS = 26  # of 30: the model was not trained for early exit, its first layers alone agree with it next to never
EXACTLY = StopConditions(max_tokens=NEW_TOKENS, ignore_eos=True)
GREEDY = sampling(temperature=0.0)


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return resolve(None)


@pytest.fixture(scope="module")
def runtime(files: ModelFiles) -> Iterator[TorchRuntime]:
    """The model drafts for itself: with all layers as a draft model, with the first ones as early exit."""
    options = EngineOptions(max_num_seqs=16, max_model_len=512, draft_models=[files], early_exit_layers=LAYERS)
    runtime = load_runtime(files, options)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def prompts(runtime: TorchRuntime) -> list[list[int]]:
    """20 prompts, chats and continuations of a text that repeats itself."""
    tokenizer = runtime.tokenizer
    texts = [CONTINUED.format(topic) for topic in TOPICS[:8]]
    texts += [
        tokenizer.render_chat([{"role": "user", "content": ASKED[i % 3].format(TOPICS[i])}]) for i in range(8, 20)
    ]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


Output = tuple[list[int], list[TokenLogprob]]


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


def check(outputs: Sequence[Output], expected: Sequence[Output]) -> None:
    near_ties = 0
    for (ours, _), (theirs, entries) in zip(outputs, expected, strict=True):
        assert len(ours) == NEW_TOKENS
        if ours != theirs:
            at = next(i for i in range(NEW_TOKENS) if ours[i] != theirs[i])
            (_, best), (_, second) = entries[at].top
            assert best - second < NEAR_TIE, f"token {at} differs without a near-tie"
            near_ties += 1
    assert near_ties <= 1


@pytest.mark.parametrize("speculation", [ngram(8), rsd_c(2, drafter="early-exit")], ids=shape_name)
def test_greedy_output_is_that_of_plain_decoding(
    runtime: TorchRuntime, prompts: list[list[int]], expected: list[Output], speculation: Speculation
) -> None:
    """One prompt in ten is there twice; the second one doesn't speculate."""
    requests = [Generation(prompt, GREEDY, EXACTLY, speculation=speculation) for prompt in prompts]
    neighbours = [Generation(prompt, GREEDY, EXACTLY) for prompt in prompts[::10]]
    outputs = run(runtime, [*requests, *neighbours])
    check(outputs, [*expected, *expected[::10]])
    spends = [request.meter.spend for request in requests]
    assert sum(spend.accepted_tokens for spend in spends) > 30
    assert sum(spend.draft_tokens for spend in spends) == 0 or speculation.uses_draft


@pytest.mark.parametrize("speculation", [rsd_s(2, 3), chain(4)], ids=shape_name)
def test_the_model_drafts_for_itself_without_a_refusal(
    runtime: TorchRuntime, prompts: list[list[int]], expected: list[Output], speculation: Speculation
) -> None:
    """The first draft model is the default; its keys and values must be right for every token to be accepted."""
    requests = [Generation(prompt, GREEDY, EXACTLY, speculation=speculation) for prompt in prompts[:3]]
    check(run(runtime, requests), expected[:3])
    for request in requests:
        spend = request.meter.spend
        assert spend.draft_tokens > 0
        if speculation.name == "chain":
            assert spend.accepted_tokens >= spend.drafted_tokens - 4  # a near-tie costs what follows it in a tree


def test_coupled_samples_are_those_of_plain_decoding(runtime: TorchRuntime, prompts: list[list[int]]) -> None:
    """The kernels' own draw serves both; a draw that a rounding difference flips is rarer than one in these."""

    def requests(speculation: Speculation | None) -> list[Generation]:
        kinds = (sampling(temperature=0.8), sampling(top_p=0.9, repetition_penalty=1.1))
        return [
            Generation(prompt, kinds[i % 2], StopConditions(max_tokens=16), seed=i, speculation=speculation)
            for i, prompt in enumerate(prompts[:6])
        ]

    plain = run(runtime, requests(None))
    for speculation in (rsd_c(3, 1, drafter="early-exit", coupled=True), ngram(4, coupled=True)):
        asked = requests(speculation)
        outputs = run(runtime, asked)
        assert sum(a[0] != b[0] for a, b in zip(outputs, plain, strict=True)) <= 1
        assert sum(request.meter.spend.accepted_tokens for request in asked) > 2


def test_early_exit_costs_what_its_layers_cost(runtime: TorchRuntime) -> None:
    drafter = runtime.engine.speculator.drafters["early-exit"]
    info = runtime.info
    head = 2.0 * info.vocab_size * info.hidden_size
    whole, part = info.flops(1, 100) - head, drafter.flops(1, 100) - head
    assert part == pytest.approx(whole * LAYERS / info.num_layers, rel=1e-6)
    assert list(runtime.engine.speculator.drafters)[-1] == "early-exit"


def test_early_exit_needs_layers_that_are_left_out(files: ModelFiles) -> None:
    with pytest.raises(ModelLoadError, match="early exit after 30 layers: the model has 30"):
        load_runtime(files, EngineOptions(early_exit_layers=30, kv_cache_memory=64 << 20))


@pytest.fixture(scope="module")
def foreign(files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has two of the target's tokens swapped."""
    folder = tmp_path_factory.mktemp("foreign")
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (files.folder / name).is_file():
            (folder / name).write_bytes((files.folder / name).read_bytes())
    tokenizer: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    by_id = {number: token for token, number in vocab.items()}
    vocab[by_id[1000]], vocab[by_id[1001]] = 1001, 1000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_draft_with_another_tokenizer_is_one_clear_error(foreign: Path) -> None:
    """From the command line: one line, no traceback."""
    command = [sys.executable, "-m", "decoding_server", "serve", "--port", "0", "--draft-model", str(foreign)]
    command += ["--kv-cache-memory", "64MiB"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ, check=False)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if "can't draft for" in line]
    assert len(lines) == 1
    assert foreign.name in lines[0]
    assert "token 1000 is" in lines[0]
    assert "same tokenizer" in lines[0]
