"""The same weights in float32: the same tokens, log-probabilities and hidden states from both runtimes."""

import math

import numpy as np
import pytest
from asking import GREEDY, answer, answers, asking

from models.torch_runtime.runtime import TorchRuntime
from models.vllm_runtime.runtime import VllmRuntime
from strategies.runtime import SamplingParameters
from strategies.sampling.bans import BadWords
from strategies.sampling.bregman.transform import Bregman
from strategies.sampling.cutoffs import EpsilonCutoff, EtaCutoff, TopNSigma
from strategies.sampling.dry import DRY
from strategies.sampling.grammar_repetition.transform import GrammarRepetition
from strategies.sampling.mirostat import Mirostat
from strategies.sampling.ngram import NoRepeatNgram
from strategies.sampling.penalties import CountPenalty, LogitBias, RepetitionPenalty
from strategies.sampling.structured import compile_structure
from strategies.sampling.structured_grammar import Regex
from strategies.sampling.truncation import MinP, TopK, TopP
from strategies.sampling.typical import TypicalP
from strategies.sampling.xtc import ExcludeTopChoices

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time there was a little",
    "Q: How many legs has a spider? A:",
)
CODE = "```python\nx = 0\nx = x + 1\nx = x + 1\nx = x + 1\n"
PIPELINES = {
    "plain": (),
    "top_k": (TopK(k=20),),
    "top_p": (TopP(p=0.8),),
    "min_p": (MinP(p=0.1),),
    "typical": (TypicalP(mass=0.7),),
    "top_n_sigma": (TopNSigma(n=1.0),),
    "epsilon": (EpsilonCutoff(epsilon=0.001),),
    "eta": (EtaCutoff(epsilon=0.001),),
    "xtc": (ExcludeTopChoices(threshold=0.05, probability=0.7),),
    "mirostat": (Mirostat(tau=4.0),),
    "bregman": (Bregman(alpha=1.5, tau=0.05),),
    "bregman-and-penalties": (RepetitionPenalty(penalty=1.2), NoRepeatNgram(size=2), Bregman(alpha=2.0, tau=0.05)),
    "repetition": (RepetitionPenalty(penalty=1.4),),
    "presence-frequency": (CountPenalty(presence=0.5, frequency=0.4),),
    "dry": (DRY(multiplier=2.0, allowed_length=1),),
    "bias": (LogitBias(bias={260: 5.0, 28: -100.0}),),
    "bad-words": (BadWords(sequences=((28,), (30, 198))),),
}


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_greedy_tokens(vllm: VllmRuntime, torch_runtime: TorchRuntime, prompt: str) -> None:
    theirs = await answer(torch_runtime, asking(torch_runtime, prompt, 32))
    ours = await answer(vllm, asking(vllm, prompt, 32))
    assert (ours.tokens, ours.text, ours.finish_reason) == (theirs.tokens, theirs.text, theirs.finish_reason)
    assert len(ours.tokens) > 4


@pytest.mark.parametrize("name", PIPELINES)
async def test_a_seed_draws_the_same_tokens(vllm: VllmRuntime, torch_runtime: TorchRuntime, name: str) -> None:
    """Other noise, or another distribution, would differ within a few of these 96 tokens."""
    sampling = SamplingParameters(0.9, PIPELINES[name])
    generations = [
        asking(vllm, prompt, 24, sampling=sampling, seed=11, branch=(number,))
        for number, prompt in enumerate((*PROMPTS[:3], CODE))
    ]
    theirs = await answers(torch_runtime, generations)
    ours = await answers(vllm, generations)
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    assert [one.text for one in ours] == [one.text for one in theirs]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_the_grammar_penalty(vllm: VllmRuntime, torch_runtime: TorchRuntime, temperature: float) -> None:
    """The program repeats a line from the prompt on, which the penalty ends."""
    sampling = SamplingParameters(temperature, (GrammarRepetition(language="python"),))
    generation = asking(vllm, CODE, 40, sampling=sampling, seed=3)
    ours, theirs = await answer(vllm, generation), await answer(torch_runtime, generation)
    assert ours.tokens == theirs.tokens
    if not temperature:
        plain = await answer(vllm, asking(vllm, CODE, 40))
        assert ours.tokens != plain.tokens


async def test_structured_output(vllm: VllmRuntime, torch_runtime: TorchRuntime) -> None:
    structure = compile_structure(Regex(r"[A-Z][a-z]{2,6}, [0-9]{4}"), vllm.tokenizer)
    sampling = SamplingParameters(1.0, (structure,))
    generation = asking(vllm, "Name and year:", 24, sampling=sampling, seed=5)
    ours, theirs = await answer(vllm, generation), await answer(torch_runtime, generation)
    assert (ours.tokens, ours.text, ours.finish_reason) == (theirs.tokens, theirs.text, "stop")
    assert ours.text[0].isupper()
    assert ours.text[-4:].isdigit()


async def test_an_answer_goes_on_where_it_was(vllm: VllmRuntime, torch_runtime: TorchRuntime) -> None:
    """Searches ask for continuations: penalties, noise and grammars take the tokens before for generated ones."""
    structure = compile_structure(Regex(r"([a-c][0-9]){30}"), vllm.tokenizer)
    for transforms in ((CountPenalty(presence=1.0),), (structure,)):
        sampling = SamplingParameters(1.0, transforms)
        whole = await answer(vllm, asking(vllm, PROMPTS[0], 12, sampling=sampling, seed=9))
        assert len(whole.tokens) == 12
        begun = asking(vllm, PROMPTS[0], 12 - 5, sampling=sampling, seed=9, answer=whole.tokens[:5])
        assert (await answer(vllm, begun)).tokens == whole.tokens[5:]
        assert (await answer(torch_runtime, begun)).tokens == whole.tokens[5:]


@pytest.mark.parametrize("mode", ["raw", "processed"])
@pytest.mark.parametrize("long", [False, True])
async def test_logprobs(vllm: VllmRuntime, torch_runtime: TorchRuntime, mode: str, long: bool) -> None:
    """Of a prompt in several chunks, too: vLLM samples after each of them, and drops all but the last sample."""
    prompt = " ".join(PROMPTS) * (8 if long else 1)
    generation = asking(
        vllm, prompt, 8, sampling=SamplingParameters(0.7, (TopP(p=0.9),)), seed=2, logprobs=5, logprobs_mode=mode
    )
    ours, theirs = await answer(vllm, generation), await answer(torch_runtime, generation)
    assert ours.tokens == theirs.tokens
    assert len(ours.logprobs) == len(ours.tokens)
    for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=2e-3)
        finite = [pair for pair in other.top if math.isfinite(pair[1])]  # ties among impossible ones have no order
        assert [token for token, _ in one.top[: len(finite)]] == [token for token, _ in finite]
        assert [value for _, value in one.top[: len(finite)]] == pytest.approx([v for _, v in finite], abs=2e-3)
        assert len(one.top) == len(other.top)
        if one.token in dict(one.top):
            assert dict(one.top)[one.token] == one.logprob


async def test_logprobs_of_the_chosen_token_alone(vllm: VllmRuntime) -> None:
    for mode in ("raw", "processed"):
        found = await answer(vllm, asking(vllm, PROMPTS[0], 3, logprobs=0, logprobs_mode=mode))
        assert [(entry.token, entry.top) for entry in found.logprobs] == [(token, ()) for token in found.tokens]


async def test_prompt_logprobs(vllm: VllmRuntime, torch_runtime: TorchRuntime) -> None:
    generation = asking(vllm, " ".join(PROMPTS) * 3, 0, prompt_logprobs=2)
    ours, theirs = await answer(vllm, generation), await answer(torch_runtime, generation)
    assert ours.tokens == theirs.tokens == []
    assert ours.finish_reason == "length"
    assert ours.prompt_logprobs is not None
    assert theirs.prompt_logprobs is not None
    assert ours.prompt_logprobs[0] is None
    for one, other in zip(ours.prompt_logprobs[1:], theirs.prompt_logprobs[1:], strict=True):
        assert one is not None
        assert other is not None
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=5e-3)
        assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=5e-3)
        assert abs(one.rank - other.rank) <= 1 + other.rank // 100


@pytest.mark.parametrize("long", [False, True])
async def test_the_last_hidden_state(vllm: VllmRuntime, torch_runtime: TorchRuntime, long: bool) -> None:
    """What value heads read; beside other requests, so that rows can be mixed up."""
    prompts = [prompt * (20 if long else 1) for prompt in PROMPTS]
    generations = [asking(vllm, prompt, 0, pooling="last") for prompt in prompts]
    others = [asking(vllm, prompt, 6) for prompt in PROMPTS]
    mixed = [one for pair in zip(generations, others, strict=True) for one in pair]
    ours, theirs = await answers(vllm, mixed), await answers(torch_runtime, mixed)
    for one, other in zip(ours[::2], theirs[::2], strict=True):
        assert one.embedding is not None
        assert other.embedding is not None
        scale = float(np.abs(other.embedding).max())
        assert np.abs(np.array(one.embedding) - np.array(other.embedding)).max() < 1e-3 * scale


DRAWS = 600


@pytest.mark.parametrize("name", ["plain", "bregman", "grammar", "repetition"])
async def test_the_distribution(vllm: VllmRuntime, torch_runtime: TorchRuntime, name: str) -> None:
    """One token with 600 seeds, by chi-square against the probabilities of the torch runtime. Bins expect at least 10
    draws; a false alarm has a probability below 1e-6."""
    transforms = {**PIPELINES, "grammar": (GrammarRepetition(language="python"),)}[name]
    prompt = CODE if name == "grammar" else PROMPTS[2]
    sampling = SamplingParameters(1.0, transforms)
    known = await answer(
        torch_runtime, asking(vllm, prompt, 1, sampling=sampling, logprobs=200, logprobs_mode="processed")
    )
    probabilities = {token: math.exp(value) for token, value in known.logprobs[0].top}
    bins = [token for token, p in probabilities.items() if p * DRAWS >= 10]
    counts = dict.fromkeys(bins, 0)
    for start in range(0, DRAWS, 50):
        generations = [asking(vllm, prompt, 1, sampling=sampling, seed=seed) for seed in range(start, start + 50)]
        for one in await answers(vllm, generations):
            if one.tokens[0] in counts:
                counts[one.tokens[0]] += 1
    expected = [probabilities[token] * DRAWS for token in bins]
    observed = [counts[token] for token in bins]
    rest = DRAWS - sum(expected)
    if rest >= 10:
        expected, observed = [*expected, rest], [*observed, DRAWS - sum(observed)]
    assert len(expected) >= 2
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    degrees = len(expected) - 1
    # Wilson-Hilferty: the cube root of chi-square over its degrees is close to normal; 5 deviations are 3e-7.
    limit = degrees * (1 - 2 / (9 * degrees) + 5.0 * math.sqrt(2 / (9 * degrees))) ** 3
    assert statistic < limit


async def test_greedy_ignores_the_seed(vllm: VllmRuntime) -> None:
    first, second = await answers(vllm, [asking(vllm, PROMPTS[0], 8, seed=seed) for seed in (1, 2)])
    assert first.tokens == second.tokens
    assert GREEDY.temperature == 0
