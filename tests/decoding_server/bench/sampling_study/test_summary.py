"""From rows to numbers, on rows whose numbers are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding_server.bench.rows import Row
from decoding_server.bench.sampling_study import summary
from decoding_server.bench.sampling_study.distributions import configurations
from decoding_server.bench.sampling_study.loops import copies_at_end


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_interval_lies_within_the_values(values: list[float]) -> None:
    found = summary.estimate(values)
    assert found["mean"] == pytest.approx(sum(values) / len(values), abs=1e-4)
    assert min(values) - 1e-4 <= found["low"] <= found["high"] <= max(values) + 1e-4


def test_the_interval_is_that_of_the_mean() -> None:
    # 100 fair coins: the mean's standard deviation is 0.05.
    found = summary.estimate([0.0, 1.0] * 50)
    assert found["low"] == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert found["high"] == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)
    assert summary.estimate([0.25] * 9) == {"mean": 0.25, "low": 0.25, "high": 0.25}


def loop_row(penalty: str, number: int, tr_n: float, text: str, **more: object) -> Row:
    row = {
        "model": "m",
        "penalty": penalty,
        "language": "python",
        "temperature": 0.0,
        "max_tokens": 8,
        "number": number,
        "text": text,
    }
    scores = {"tr_n": tr_n, "tr_s": 0.5, "raw_lines": 0.0, "ended": True, "eos": False, "compiles": False}
    return {**row, **scores, "tokens": 4 + number, "seconds": 2.0, "wave_tokens": 9, **more}


def test_loops_are_compared_program_by_program() -> None:
    rows = [
        loop_row("none", 0, 0.8, "a"),
        loop_row("none", 1, 0.2, "b"),
        loop_row("DRY", 1, 0.1, "b"),
        loop_row("DRY", 0, 0.7, "c"),
    ]
    none, dry = summary.of_loops(rows)
    assert (none["penalty"], dry["penalty"]) == ("none", "DRY")
    assert (none["tr_n"]["mean"], dry["tr_n"]["mean"]) == (0.5, 0.4)
    assert dry["tr_n_change"] == {"mean": -0.1, "low": -0.1, "high": -0.1}
    assert "tr_n_change" not in none
    assert dry["unchanged"] == 0.5
    assert dry["tokens_mean"] == 4.5
    assert dry["tokens_per_second"] == 4  # one batch of 9 tokens in 2 s, though it has two rows


def test_a_loop_is_what_the_text_is_cut_off_in() -> None:
    loop = "x = f(1)\ny = 2\n" + "print(a)\nx += 1\n" * 5
    rows = [
        loop_row("none", 0, 0.0, loop + "pri", ended=False),
        loop_row("none", 1, 0.0, loop),
        loop_row("none", 2, 0.0, loop + "y = 3\nz", ended=False),
        loop_row("none", 3, 0.0, loop.removesuffix("x += 1\n") + "x +", ended=False),
    ]
    assert summary.of_loops(rows)[0]["looping"]["mean"] == 0.25


@pytest.mark.parametrize(
    ("text", "longest", "copies"),
    [("", 4, 1), ("a", 4, 1), ("ab", 4, 1), ("cabab", 4, 2), ("aabaab", 4, 2), ("baaaa", 4, 4)],
)
def test_copies_at_the_end(text: str, longest: int, copies: int) -> None:
    assert copies_at_end(text, longest) == copies
    assert copies_at_end(text, 0) == 1


def harm_row(mode: str, task: str, text: str, outcome: str) -> Row:
    return {
        "model": "m",
        "mode": mode,
        "max_tokens": 9,
        "task": task,
        "text": text,
        "tokens": 3,
        "outcome": outcome,
    } | {"cut": task == "3"}


def test_harm_counts_what_is_lost_and_gained() -> None:
    outcomes = {"none": "ppft", "DRY": "pfpf"}
    names = {"p": "passed", "f": "failed", "t": "timeout"}
    rows = [
        harm_row(mode, str(i), "same" if i < 3 else mode, names[letter])
        for mode, letters in outcomes.items()
        for i, letter in enumerate(letters)
    ]
    none, dry = summary.of_harm(rows)
    assert (none["passed"], none["timeouts"], dry["passed"]) == (2, 1, 2)
    assert (dry["lost"], dry["gained"]) == (1, 1)
    assert dry["same"]["mean"] == 0.75
    assert dry["same_ended"]["mean"] == 1.0  # the fourth was cut
    assert dry["pass_change"]["mean"] == 0.0
    assert "lost" not in none


def test_distributions() -> None:
    def place(k: int, mass: float, entropy: float) -> Row:
        results = {name: [k, mass, entropy] for name in configurations()} | {"none": [100, 1.0, 3.0]}
        return {"temperatures": {"1": results, "1.5": results}, "example": {"p": [1.0]}}

    rows = [
        {"model": "m", "kind": "prose", "places": [place(1, 0.5, 0.0), place(3, 0.7, 1.0)]},
        {"model": "m", "kind": "code", "places": [place(8, 0.9, 2.0)]},
    ]
    [found] = summary.of_distributions(rows)
    assert (found["contexts"], found["distributions"]) == (2, 3)
    assert len(found["cells"]) == 2 * len(configurations())
    cell = found["cells"][1]
    assert (cell["k_mean"], cell["k_median"], cell["k_p95"], cell["k_max"]) == (4.0, 3, 7.5, 8)
    assert (cell["mass_mean"], cell["entropy_before"], cell["entropy_after"]) == (0.7, 3.0, 1.0)
    assert [(kind["kind"], kind["k"]["top_k 50"]) for kind in found["kinds"]] == [("prose", 2.0), ("code", 8.0)]
