"""The interleaved run, with engines whose speed is given."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from decoding_server.bench.load import LoadError
from decoding_server.bench.peers.engine import Engine
from decoding_server.bench.session import WARM_UP_TOKENS, Limits, RowFile, Session
from decoding_server.bench.workloads import Prompt, PromptSource, Workload, decode, first_token, shared_prefix

DECODE, FIRST, SHARED = decode(2, 37, 16), first_token(37, 3), shared_prefix(2, 64, 8, 4)


class Metronome(Engine):
    """Generates `rate` tokens a second by its own clock, and writes what it is asked into a log that engines share."""

    def __init__(self, name: str, rate: float, log: list[str], *, fails_at: str = "", hangs: bool = False) -> None:
        self.name = name
        self.rate = rate
        self.log = log
        self.fails_at = fails_at
        self.hangs = hangs
        self.awake = False

    async def start(self, prompt: Prompt, limit: float) -> float:
        self.log.append(f"{self.name} start")
        self.awake = True
        return 2.0

    async def generate(self, prompts: Sequence[Prompt], max_tokens: int, strategy: str = "") -> tuple[int, float]:
        assert self.awake, "asked while paused"
        if self.hangs and max_tokens != WARM_UP_TOKENS:
            await asyncio.sleep(60)
        call = f"{self.name} {len(prompts)}x{len(prompts[0])}+{max_tokens}{strategy and ' ' + strategy}"
        self.log.append(call)
        if call == self.fails_at:
            raise LoadError("status 500")
        tokens = len(prompts) * max_tokens
        return tokens, tokens / self.rate

    async def first_token(self, prompt: Prompt) -> float:
        self.log.append(f"{self.name} first")
        return [0.3, 0.1, 0.2][sum(entry == f"{self.name} first" for entry in self.log) % 3]

    async def pause(self) -> None:
        self.awake = False

    async def resume(self) -> None:
        self.awake = True

    async def stop(self) -> None:
        self.awake = False
        self.log.append(f"{self.name} stop")

    def peak_memory(self) -> int | None:
        return 512 << 20

    def versions(self) -> dict[str, str]:
        return {}


@pytest.fixture
def prompts() -> PromptSource:
    return PromptSource([range(2000)])


def session(
    engines: list[Engine],
    workloads: list[Workload],
    prompts: PromptSource,
    rows: RowFile,
    *,
    repeats: int = 2,
    limits: Limits | None = None,
) -> Session:
    def report(what: str, done: int, total: int) -> None:
        assert 0 < done <= total, what

    return Session(engines, workloads, prompts, rows, repeats=repeats, limits=limits or Limits(), report=report)


async def test_engines_take_turns_within_each_workload_and_repeat(tmp_path: Path, prompts: PromptSource) -> None:
    log: list[str] = []
    engines: list[Engine] = [Metronome("us", 50.0, log), Metronome("peer", 20.0, log)]
    rows = RowFile(tmp_path / "rows.jsonl")
    await session(engines, [DECODE, SHARED], prompts, rows).run()
    warm_up = f"1x16+{WARM_UP_TOKENS}"
    expected = []
    for order in (("us", "peer"), ("peer", "us")):  # each is first once, so that what comes first gains nothing
        expected += [f"{name} {what}" for name in order for what in (warm_up, "2x37+16")]
        expected += [f"{name} {what}" for name in order for what in (warm_up, "2x72+1", "2x72+4")]
    measured = [entry for entry in log if "x" in entry]
    assert measured == expected
    speeds = {(row.engine, row.workload): row.value for row in rows.rows}
    assert speeds[("us", DECODE.name)] == pytest.approx(50.0)
    assert speeds[("peer", SHARED.name)] == pytest.approx(20.0)
    assert speeds[("us", "start")] == 2.0
    assert speeds[("us", "memory")] == 512
    assert log[-2:] == ["us stop", "peer stop"]


async def test_a_strategy_is_measured_where_there_is_one(tmp_path: Path, prompts: PromptSource) -> None:
    log: list[str] = []
    ours, peer = Metronome("us", 50.0, log), Metronome("peer", 20.0, log)
    ours.has_strategies = True
    workloads = [DECODE, decode(2, 37, 16, "bregman")]
    run = session([ours, peer], workloads, prompts, RowFile(tmp_path / "rows.jsonl"), repeats=1)
    await run.run()
    assert [entry for entry in log if "+16" in entry] == ["us 2x37+16", "peer 2x37+16", "us 2x37+16 bregman"]
    assert run.missing() == []


async def test_the_first_token_time_is_the_median_of_the_requests(tmp_path: Path, prompts: PromptSource) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    await session([Metronome("us", 50.0, [])], [FIRST], prompts, rows, repeats=1).run()
    (row,) = [row for row in rows.rows if row.workload == FIRST.name]
    assert row.value == 0.2
    assert sorted(row.detail["seconds"]) == [0.1, 0.2, 0.3]


async def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path, prompts: PromptSource) -> None:
    path = tmp_path / "rows.jsonl"
    await session([Metronome("us", 50.0, [])], [DECODE], prompts, RowFile(path), repeats=1).run()
    with path.open("a") as sink:
        sink.write('{"engine": "us", "workl')  # the crash
    log: list[str] = []
    rows = RowFile(path)
    await session([Metronome("us", 50.0, log)], [DECODE], prompts, rows, repeats=2).run()
    assert log.count("us 2x37+16") == 1
    assert sorted(row.repeat for row in rows.rows if row.workload == DECODE.name) == [0, 1]
    assert [json.loads(line)["engine"] for line in path.read_text().splitlines()] == ["us"] * len(rows.rows)
    log.clear()
    await session([Metronome("us", 50.0, log)], [DECODE], prompts, RowFile(path), repeats=2).run()
    assert "us start" not in log  # nothing left to measure


async def test_a_failing_engine_leaves_and_the_others_go_on(tmp_path: Path, prompts: PromptSource) -> None:
    log: list[str] = []
    rows = RowFile(tmp_path / "rows.jsonl")
    engines: list[Engine] = [Metronome("us", 50.0, log), Metronome("peer", 20.0, log, fails_at="peer 2x37+16")]
    run = session(engines, [DECODE, SHARED], prompts, rows)
    await run.run()
    (failure,) = [row for row in rows.rows if row.engine == "peer" and row.value is None]
    assert failure.error == "LoadError: status 500"
    assert sum(row.engine == "us" and row.workload in (DECODE.name, SHARED.name) for row in rows.rows) == 4
    assert len(run.missing()) == 4
    assert "LoadError: status 500" in run.missing()[0]


async def test_a_hanging_engine_is_cut_off(tmp_path: Path, prompts: PromptSource) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    engine = Metronome("us", 50.0, [], hangs=True)
    await session([engine], [DECODE], prompts, rows, limits=Limits(cell=0.1)).run()
    errors = [row.error for row in rows.rows if row.error]
    assert len(errors) == 1
    assert errors[0].startswith("TimeoutError")


async def test_an_engine_over_its_total_time_measures_no_more(tmp_path: Path, prompts: PromptSource) -> None:
    log: list[str] = []
    rows = RowFile(tmp_path / "rows.jsonl")
    await session([Metronome("us", 50.0, log)], [DECODE], prompts, rows, limits=Limits(engine=0.0)).run()
    assert log.count("us 2x37+16") == 1  # the limit is looked at before each cell
    assert rows.rows[-2].error == "over the engine's 0 s"
