"""The grammar penalty as a stage of the pipeline: which logits it changes, for which rows, and that it ends a loop."""

import asyncio
from typing import Any

import pytest
import torch
from torch import Tensor

from models.scripted import ByteTokenizer, scripted_runtime
from strategies import registry
from strategies.errors import InvalidRequest
from strategies.runtime import Generation, StopConditions
from strategies.sampling import pipeline
from strategies.sampling.grammar_repetition.transform import GrammarRepetition
from strategies.sampling.row import Row
from strategies.sampling.standard import sampling

TOKENIZER = ByteTokenizer()
LINES = [f"print(fib({i * 10}))\n" for i in range(1, 9)]
LOOP = "".join(LINES)
PYTHON = GrammarRepetition(language="python", scope="all")


def row(text: str, *transforms: Any, output: str = "") -> Row:
    generation = Generation(TOKENIZER.encode(text), sampling(transforms=transforms))
    made = Row(generation, frozenset({256}), TOKENIZER)
    for token in TOKENIZER.encode(output):
        made.append(token)
    return made


def changed(one: Row) -> dict[int, float]:
    """Token -> change of its logit."""
    logits = torch.linspace(-3, 3, TOKENIZER.vocab_size)[None]
    found = pipeline.process(logits.clone(), [one])
    return {token: float(found[0, token] - logits[0, token]) for token in (found != logits).nonzero()[:, 1].tolist()}


def test_it_is_registered() -> None:
    assert registry.find("transform", "grammar", "decoding.penalty") is GrammarRepetition


@pytest.mark.parametrize(("copies", "factor"), [(2, 1.0), (4, 1.0), (5, 0.5), (6, 0.25), (8, 0.0625)])
def test_the_anchor_of_another_copy_is_penalised_beyond_what_code_may_repeat(copies: int, factor: float) -> None:
    """4 copies of a line of code are left alone; then one factor of 0.5 per copy on the token that begins the next."""
    found = changed(row("".join(LINES[:copies]), PYTHON))
    if factor == 1.0:
        assert found == {}
    else:
        assert found[ord("p")] == pytest.approx(torch.tensor(factor).log().item(), abs=1e-5)
        assert all(change < 0 for change in found.values())


def test_it_reads_the_output_and_stops_when_the_line_has_begun() -> None:
    assert ord("p") in changed(row("", PYTHON, output=LOOP))
    assert changed(row("", PYTHON, output=LOOP + "p")) == {}
    assert changed(row("", PYTHON, output=LOOP + "x = 1\n")) == {}


def test_off_unknown_text_and_lambda_1_change_nothing() -> None:
    assert changed(row(LOOP, GrammarRepetition(language="off", scope="all"))) == {}
    assert changed(row(LOOP, GrammarRepetition())) == {}  # auto: no fence, no code
    assert changed(row(LOOP, GrammarRepetition.model_validate({"language": "python", "lambda": 1.0}))) == {}


def test_each_row_of_a_batch_has_its_own_state() -> None:
    rows = [
        row(LOOP, PYTHON),
        row(LOOP),
        row("x = 1\n", PYTHON),
        row(LOOP, GrammarRepetition(mode="paper", language="python")),
    ]
    logits = torch.linspace(-3, 3, TOKENIZER.vocab_size).repeat(4, 1)
    together = pipeline.process(logits.clone(), rows)
    for i, one in enumerate(rows):
        assert torch.equal(together[i], pipeline.process(logits[i : i + 1].clone(), [one])[0])
    assert [bool((together[i] != logits[i]).any()) for i in range(4)] == [True, False, False, True]


def test_forks_go_on_independently() -> None:
    one = row("", PYTHON, output=LOOP)
    fork = one.fork()
    for token in b"x = 1\n":
        one.append(token)
    assert changed(one) == {}
    assert ord("p") in changed(fork)


def test_a_masked_token_stays_masked() -> None:
    logits = torch.zeros(1, TOKENIZER.vocab_size)
    logits[0, ord("p")] = float("-inf")
    assert torch.isneginf(pipeline.process(logits, [row(LOOP, PYTHON)])[0, ord("p")])


def test_a_greedy_loop_ends() -> None:
    """A model that prefers another line over the end by 1.4 nats: greedy decoding leaves after the sixth copy."""
    line = b"print(fib(1))\n"

    def distribution(context: Any) -> Tensor:
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        at = len(context) % len(line)
        logits[line[at]] = 1.0
        if at == 0:
            logits[256] = -0.3
        return logits

    runtime = scripted_runtime(distribution, TOKENIZER)

    async def generate(*transforms: Any) -> list[int]:
        prompt = list(line)
        stopping = StopConditions(max_tokens=20 * len(line))
        generation = Generation(prompt, sampling(temperature=0.0, transforms=transforms), stopping)
        (stream,) = runtime.submit([generation])
        return [token async for delta in stream for token in delta.tokens]

    try:
        assert len(asyncio.run(generate())) == 20 * len(line)
        lines_only = GrammarRepetition(language="python", scope="all", tokens=False)
        ended = asyncio.run(generate(lines_only))
        assert ended[-1] == 256
        assert len(ended) == 5 * len(line) + 1
    finally:
        runtime.close()


def test_without_a_tokenizer_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="tokenizer"):
        Row(Generation([1], sampling(transforms=[PYTHON])), frozenset())
