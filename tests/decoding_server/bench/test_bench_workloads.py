"""Prompts: exact lengths, the same for every engine, never the same twice, shared where they should be."""

import pytest

from decoding_server.bench.passages import PASSAGES
from decoding_server.bench.workloads import FULL, QUICK, PromptSource, decode, shared_prefix


@pytest.fixture
def source() -> PromptSource:
    return PromptSource([range(start, start + 170) for start in range(0, 1360, 170)])


@pytest.mark.parametrize("workload", [*FULL, *QUICK], ids=lambda workload: workload.name)
def test_prompts_have_the_length_that_the_workload_says(source: PromptSource, workload: object) -> None:
    prompts = source.prompts(workload, 0)  # type: ignore[arg-type]
    assert len(prompts) == workload.requests  # type: ignore[attr-defined]
    assert {len(prompt) for prompt in prompts} == {workload.prefix_tokens + workload.prompt_tokens}  # type: ignore[attr-defined]


def test_prompts_are_a_function_of_the_cell(source: PromptSource) -> None:
    assert source.prompts(FULL[2], 1) == source.prompts(FULL[2], 1)


def test_no_two_prompts_of_a_session_share_more_than_an_opening(source: PromptSource) -> None:
    starts = [
        tuple(prompt[: PromptSource.OPENING + 1])
        for workload in FULL
        if workload.kind == "decode"
        for repeat in range(3)
        for prompt in source.prompts(workload, repeat)
    ]
    assert len(set(starts)) == len(starts) == 3 * (1 + 4 + 16 + 32)


def test_a_shared_prefix_is_shared_by_the_cell_and_its_warming_only(source: PromptSource) -> None:
    workload = shared_prefix(4, 128, 8, 8)
    timed, warming, next_repeat = source.prompts(workload, 0), source.warming(workload, 0), source.prompts(workload, 1)
    assert len({tuple(prompt[:128]) for prompt in timed + warming}) == 1
    assert len({tuple(prompt[128:]) for prompt in timed + warming}) == 8
    assert timed[0][:128] != next_repeat[0][:128]


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="100 tokens"):
        PromptSource([range(100)]).prompts(decode(1, 37, 128), 0)


def test_the_passages_differ_from_their_first_word_on() -> None:
    assert len({passage.split()[0] for passage in PASSAGES}) == len(PASSAGES)
    assert all(len(passage.split()) > 100 for passage in PASSAGES)
