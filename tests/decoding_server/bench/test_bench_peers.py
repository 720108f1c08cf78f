"""What is compared differs in nothing but what the comparison is about."""

import itertools
from pathlib import Path

import pytest

from decoding_server.bench.peers import Settings
from decoding_server.bench.peers.vllm import ENGINE, Vllm
from decoding_server.bench.peers.vllm_runtime import VllmRuntime
from decoding_server.bench.throughput import chosen_workloads, parser


def settings(tmp_path: Path) -> Settings:
    return Settings(model_folder=tmp_path / "model", work=tmp_path, threads=1, vllm_python="python-with-vllm")


def test_vllms_own_server_and_ours_start_the_same_engine(tmp_path: Path) -> None:
    theirs, ours = Vllm(settings(tmp_path)), VllmRuntime(settings(tmp_path))
    assert theirs.environment() == ours.environment()
    for engine in (theirs, ours):
        command = engine.command(8000)
        assert ENGINE in [tuple(command[start : start + len(ENGINE)]) for start in range(len(command))]
        assert str(tmp_path / "model") in command
        assert any(word in command for word in ("--enable-prefix-caching", "--prefix-cache"))


def test_a_workload_stands_beside_itself_with_each_strategy() -> None:
    given = ["--output", "x", "--concurrency", "1,8", "--strategies", "bregman,grammar", "--temperature", "1"]
    workloads = chosen_workloads(parser().parse_args(given))
    names = [workload.name for workload in workloads]
    plain = ("decode-37-128-c1", "decode-37-128-c8")
    assert names == list(itertools.chain.from_iterable((name, f"{name}-bregman", f"{name}-grammar") for name in plain))
    assert [workload.plain for workload in workloads] == ["", plain[0], plain[0], "", plain[1], plain[1]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--strategies", "magic"], "unknown strategy"),
        (["--strategies", "bregman", "--temperature", "1"], "--concurrency"),
        (["--strategies", "bregman", "--concurrency", "1"], "--temperature"),
    ],
)
def test_a_strategy_that_would_measure_nothing_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        chosen_workloads(parser().parse_args(["--output", "x", *given]))
