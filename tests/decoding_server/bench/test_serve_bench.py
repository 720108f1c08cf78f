"""`decoding-server bench serve`: whole runs, loads, streamed answers and their faults over sockets, the numbers."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from runtime_server import serve_runtime
from scripted_answers import TOKENIZER, answering_runtime, records

from decoding_server import __version__
from decoding_server.bench import workload_file
from decoding_server.bench.quality.contenders import strategies
from decoding_server.bench.serving import documents, summary
from decoding_server.bench.serving import flags as serving_flags
from decoding_server.bench.serving.client import Answer, streamed
from decoding_server.bench.serving.loads import Load
from decoding_server.bench.serving.requests import Questions, marked
from decoding_server.bench.serving.study import timed
from decoding_server.cli import main
from models.scripted import scripted_runtime


def written(path: Path, found: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in found), encoding="utf-8")
    return path


def command(folder: Path, url: str, *more: str) -> list[str]:
    dataset = written(folder / "sums.jsonl", records(5))
    shared = ("--dataset", str(dataset), "--max-tokens", "20", "--requests", "6", "--warm-up", "1")
    return ["bench", "serve", "--base-url", url, "--output", str(folder / "out"), *shared, *more]


def slow(context: Sequence[int]) -> torch.Tensor:
    """Writes `z` for ever."""
    time.sleep(0.02)
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    logits[ord("z")] = 30.0
    return logits


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]


def table_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads((folder / "out" / "results.json").read_text())
    return {(entry["strategy"], entry["load"]): entry for entry in found["table"]}


# -- whole runs --------------------------------------------------------------------------------------------------------


def test_loads_and_strategies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strategies = ("--strategy", "greedy", "--strategy", 'vote={"decoding": {"search": "majority"}}')
    loads = ("--concurrency", "3", "--rate", "50", "--constant-rate", "40")
    limits = ("--slo-ttft", "1000", "--slo-tpot", "1000", "--slo-e2e", "0.000001")
    with serve_runtime(answering_runtime()) as server:
        given = command(tmp_path, f"{server.url}/v1", *strategies, *loads, *limits)
        assert main(given) == 0
        rows = rows_of(tmp_path)
        assert main(given) == 0
        assert rows_of(tmp_path) == rows  # nothing is measured twice
        assert main([*given, "--seed", "1", "--seed", "2"]) == 0
        assert len(rows_of(tmp_path)) == 2 * len(rows)
    assert len(rows) == 2 * 3 * 6
    for row in rows:
        assert row["error"] is None, row
        assert 0 < row["ttft"] <= row["e2e"]
        assert row["sent"] >= row["scheduled"] >= 0
        assert len(row["gaps"]) == row["chunks"] - 1
        assert row["prompt_tokens"] == 19 + len("[123456789] ")
    greedy = [row for row in rows if row["strategy"] == "greedy"]
    assert {row["output_tokens"] for row in greedy} == {11}
    assert all(1 <= row["chunks"] <= 10 for row in greedy)  # the end of the sequence has no text
    constant = [row["scheduled"] for row in rows if row["load"] == "constant 40/s" and row["strategy"] == "vote"]
    assert constant == pytest.approx([i / 40 for i in range(6)], abs=1e-5)
    votes = [row for row in rows if row["strategy"] == "vote"]
    assert all(row["target_tokens"] > 8 * 8 for row in votes)
    table = table_of(tmp_path)
    names = ("concurrency 3", "poisson 50/s", "constant 40/s")
    assert set(table) == {(strategy, load) for strategy in ("greedy", "vote") for load in names}
    for entry in table.values():
        assert (entry["answered"], entry["errors"], entry["goodput"], entry["met"]) == (12, {}, 0.0, 0.0)
        assert entry["output_tokens_per_second"] > 0
        assert entry["ttft"]["p50"] <= entry["ttft"]["p90"] <= entry["ttft"]["p99"]
    printed = capsys.readouterr().out
    assert "| constant 40/s | vote | 12 of 12 |" in printed
    assert f"a server of this project's version {__version__}, whose machine is not known" in printed
    assert "tokens returned per second" in (tmp_path / "out" / "latency.svg").read_text()


def test_refusals_are_counted_by_kind(tmp_path: Path) -> None:
    """A model that writes slowly for ever, one sequence at a time and one that waits."""
    with serve_runtime(scripted_runtime(slow, TOKENIZER, max_num_seqs=1, max_waiting=1)) as server:
        given = command(tmp_path, server.url, "--concurrency", "6", "--warm-up", "0", "--slo-e2e", "1000")
        assert main(given) == 0
    (entry,) = table_of(tmp_path).values()
    assert entry["errors"]["refused"] > 0
    assert entry["answered"] + sum(entry["errors"].values()) == 6
    assert entry["met"] == pytest.approx(entry["answered"] / 6, abs=1e-4)
    refused = next(row for row in rows_of(tmp_path) if row["error"] == "refused")
    assert "queue" in refused["detail"]
    assert refused["ttft"] is None


def test_a_request_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with serve_runtime(scripted_runtime(slow, TOKENIZER)) as server:
        given = command(tmp_path, server.url, "--concurrency", "2", "--warm-up", "0", "--requests", "2")
        assert main([*given, "--max-tokens", "200", "--timeout", "0.3"]) == 0
    assert [row["error"] for row in rows_of(tmp_path)] == ["timeout"] * 2


def test_no_prompt_is_cached(tmp_path: Path) -> None:
    """The same strategy under two names and loads, then once more from the start: each computes all its tokens, but
    for what any two prompts have in common, which is the first characters."""
    with serve_runtime(answering_runtime()) as server:
        twice = ("--strategy", "greedy", "--strategy", "again=greedy", "--concurrency", "1", "--concurrency", "2")
        assert main(command(tmp_path, server.url, *twice)) == 0
        first = rows_of(tmp_path)
        (tmp_path / "out" / "rows.jsonl").unlink()
        assert main(command(tmp_path, server.url, *twice)) == 0
    for row in [*first, *rows_of(tmp_path)]:
        whole = row["prompt_tokens"] + row["output_tokens"] - 1
        assert whole - 6 <= row["target_tokens"] <= whole, row


def test_a_load_whose_rows_are_cut_off_is_measured_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "out" / "rows.jsonl"
    with serve_runtime(answering_runtime()) as server:
        given = command(tmp_path, server.url, "--concurrency", "2")
        assert main(given) == 0
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:3]) + lines[3][:40])
        assert main(given) == 0
        assert main(given) == 0
    assert len({row["run"] for row in rows_of(tmp_path)[3:]}) == 1
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["rows"] == 6
    assert found["run"]["key"] == rows_of(tmp_path)[-1]["run"] != json.loads(lines[0])["run"]
    assert found["table"][0]["seconds"] == pytest.approx(
        max(row["ended"] for row in rows_of(tmp_path)[3:]) - min(row["sent"] for row in rows_of(tmp_path)[3:]), abs=1e-4
    )


def test_other_questions_and_other_models_are_other_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_runtime(answering_runtime()) as server:
        given = command(tmp_path, server.url, "--concurrency", "2")
        assert main(given) == 0
        both = [{**record, "other": record["question"].replace("1", "2")} for record in records(5)]
        written(tmp_path / "sums.jsonl", both)
        assert main([*given, "--question-field", "other"]) == 0
        assert len(rows_of(tmp_path)) == 12
        runs = tmp_path / "out" / "runs.jsonl"
        runs.write_text(runs.read_text().replace('"model": "scripted"', '"model": "another"'))
        assert main([*given, "--concurrency", "3"]) == 1
    assert "answers of another, not of scripted" in capsys.readouterr().out


def test_a_server_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded model in a process that ends with the benchmark."""
    given = ["bench", "serve", "--output", str(tmp_path / "out"), "--requests", "3", "--warm-up", "0"]
    given += ["--input-words", "8", "--max-tokens", "4", "--ignore-eos", "--concurrency", "2"]
    assert main([*given, "--kv-cache-memory", "lots"]) == 1
    assert "the server did not become ready" in capsys.readouterr().out
    assert main([*given, "--max-model-len", "256"]) == 0
    assert [row["output_tokens"] for row in rows_of(tmp_path)] == [4, 4, 4]
    printed = capsys.readouterr().out
    assert "exactly 4 tokens an answer" in printed
    assert "not known" not in printed  # it is this code, on this machine
    url = next(word for word in (tmp_path / "out" / "server.log").read_text().split() if word.startswith("http://"))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url.rstrip(',')}/health")
    assert main([*given, "--max-model-len", "256"]) == 0  # nothing is missing: no server is needed


def test_a_time_limit_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_runtime(answering_runtime()) as server:
        given = command(tmp_path, server.url, "--concurrency", "2")
        assert main([*given, "--time-limit", "-1"]) == 3
        assert "1 loads are missing" in capsys.readouterr().out
        assert main(given) == 0


def test_a_workload_file_gives_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text("concurrency: [1, 2]\nrequests: 2\nwarm-up: 0\nignore-eos: true\nstrategies: [greedy, sampling]\n")
    with serve_runtime(answering_runtime()) as server:
        given = ["bench", "serve", "--workload", str(path), "--base-url", server.url, "--output", str(tmp_path / "out")]
        assert main([*given, "--max-tokens", "5", "--dataset", str(written(tmp_path / "s.jsonl", records(2)))]) == 0
    assert {row["output_tokens"] for row in rows_of(tmp_path)} == {5}
    assert len(table_of(tmp_path)) == 4


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ([], 2, "say what load"),
        (["--concurrency", "2", "--strategy", "nothing"], 2, "no preset"),
        (["--concurrency", "2", "--temperature", "9"], 2, "--temperature"),
        (["--concurrency", "2", "--question-field", "q"], 2, "no field 'q'"),
        (["--concurrency", "2", "--dtype", "float32"], 2, "--dtype is of a server of its own"),
        (["--concurrency", "2", "--model", "x"], 2, "--model and --base-url exclude each other"),
        (["--concurrency", "2"], 1, "does not answer"),
        (["--concurrency", "2", "--dataset", "missing"], 1, "No such file"),
    ],
)
def test_wrong_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], status: int, words: str
) -> None:
    assert main(command(tmp_path, "http://127.0.0.1:9", *more)) == status
    printed = capsys.readouterr()
    assert words in printed.out + printed.err


# -- loads and questions -----------------------------------------------------------------------------------------------


def test_poisson_arrivals() -> None:
    """The mean of 4000 gaps of mean 1/20 s has a standard deviation of 1/20/sqrt(4000); six of them: false alarm 2e-9.
    The seed is fixed, so the test can only fail when the draw changes."""
    times = Load("poisson", 20.0).arrivals(4001, seed=3)
    assert times[0] == 0.0
    assert times == sorted(times)
    assert times[-1] / 4000 == pytest.approx(1 / 20, abs=6 / 20 / 4000**0.5)
    assert times != Load("poisson", 20.0).arrivals(4001, seed=4)
    assert times[:10] == Load("poisson", 20.0).arrivals(10, seed=3)
    assert Load("constant", 4.0).arrivals(3, seed=1) == [0.0, 0.25, 0.5]


def test_questions_are_the_same_for_everybody() -> None:
    passages = Questions(None, 12)
    assert passages.number(1, 0) == Questions(None, 12).number(1, 0)
    assert len({passages.number(1, i) for i in range(-4, 20)}) > 20
    assert len(passages.number(1, 0).split("\n\n")[1].split()) == 12
    given = Questions(["a", "b", "c"], 0)
    assert {given.number(1, i) for i in range(3)} == {"a", "b", "c"}
    assert {given.number(1, i) for i in range(3, 6)} == {"a", "b", "c"}


def test_marks_are_equally_long_and_differ() -> None:
    texts = [marked("text", "run", "greedy", i) for i in range(500)]
    assert len(set(texts)) == 500
    assert {len(text) for text in texts} == {len("[123456789] text")}
    assert texts[7] == marked("text", "run", "greedy", 7)


# -- one stream --------------------------------------------------------------------------------------------------------


def event(text: str | None = None, reason: str | None = None) -> str:
    delta = {} if text is None else {"content": text}
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}) + "\n\n"


USAGE = 'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
DONE = "data: [DONE]\n\n"


def answered(reply: str, status: str = "200 OK", length: int | None = None) -> Answer:
    """What the client makes of a server that sends these bytes, then closes the connection."""

    async def one() -> Answer:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            size = "" if length is None else f"content-length: {length}\r\n"
            writer.write(f"HTTP/1.1 {status}\r\nconnection: close\r\n{size}\r\n{reply}".encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            return await streamed(client, {"x": 1}, 10.0)

    return asyncio.run(one())


def test_a_whole_stream() -> None:
    answer = answered(event("a") + ": a comment\n\n" + event("") + event("b") + event(None, "stop") + USAGE + DONE)
    assert (answer.error, answer.finish_reason, len(answer.texts)) == (None, "stop", 2)
    assert answer.usage["completion_tokens"] == 2
    row = timed(answer, answer.sent - 1.0, answer.sent - 3.0)
    assert row["scheduled"] == pytest.approx(2.0)
    assert row["ttft"] > 1.0  # it was sent a second late, and that counts
    assert row["tpot"] == pytest.approx(answer.texts[1] - answer.texts[0], abs=1e-5)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_text(name: str) -> None:
    thought = event("hm").replace('"content"', f'"{name}"').replace('{"choices"', '{"error": null, "choices"')
    answer = answered(thought + event("a") + event(None, "tool_calls") + USAGE + DONE)
    assert (answer.error, len(answer.texts)) == (None, 2)


@pytest.mark.parametrize(
    ("reply", "status", "length", "error"),
    [
        (event("a"), "200 OK", None, "incomplete"),
        (event("a") + event(None, "stop"), "200 OK", None, "incomplete"),
        (event("a") + DONE, "200 OK", None, "incomplete"),
        (event("a") + 'data: {"error": {"message": "no"}}\n\n' + DONE, "200 OK", None, "stream error"),
        (event("a") + event(None, "abort") + DONE, "200 OK", None, "finish abort"),
        (event("a") + event(None, "error") + DONE, "200 OK", None, "finish error"),
        ("data: {nothing\n\n" + DONE, "200 OK", None, "stream error"),
        ("data: [1]\n\n" + DONE, "200 OK", None, "stream error"),
        ('{"error": {}}', "429 Too Many Requests", None, "refused"),
        ("", "503 Service Unavailable", None, "unavailable"),
        ("oh", "500 Internal Server Error", None, "status 500"),
        (event("a"), "200 OK", 5000, "connection"),
    ],
)
def test_faults_have_kinds(reply: str, status: str, length: int | None, error: str) -> None:
    assert answered(reply, status, length).error == error


def test_nobody_there() -> None:
    async def one() -> Answer:
        async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as client:
            return await streamed(client, {}, 5.0)

    assert asyncio.run(one()).error == "connection"


# -- numbers -----------------------------------------------------------------------------------------------------------


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "strategy": "a", "load": "concurrency 1", "load_kind": "closed", "load_value": 1, "seed": 1, "number": number,
        "scheduled": float(number), "sent": number + 0.25, "ended": number + 1.0, "ttft": 0.1 * (number + 1),
        "e2e": 1.0, "tpot": 0.05, "gaps": [0.04, 0.06], "output_tokens": 10, "target_tokens": 30, "flops": 1e9,
        "error": None, **more,
    }  # fmt: skip


def test_numbers_of_known_rows() -> None:
    rows = [row(0), row(1), row(2, e2e=9.0), row(3, error="refused", ttft=None, tpot=None, output_tokens=None)]
    (entry,) = summary.results(rows, {"ttft": 0.25, "e2e": 2.0})["table"]
    assert entry["seconds"] == 3.75  # from 0.25, when the first was sent, to 4.0
    assert entry["answered"] == 3
    assert entry["errors"] == {"refused": 1}
    assert entry["output_tokens_per_second"] == 8.0
    assert entry["flops_per_second"] == pytest.approx(8e8)
    assert entry["ttft"]["p50"] == pytest.approx(0.2)
    assert entry["ttft"]["p90"] == pytest.approx(0.28)
    assert entry["itl"]["p50"] == pytest.approx(0.05)
    assert entry["met"] == 0.5  # the third is late, the fourth refused
    assert entry["goodput"] == pytest.approx(2 / 3.75, abs=1e-5)
    assert entry["client_lag"] == 0.25
    (entry,) = summary.results([row(0, output_tokens=None)], {})["table"]
    assert (entry["output_tokens_per_second"], entry["goodput"]) == (None, None)
    (entry,) = summary.results([row(0, output_tokens=None, tpot=None)], {"tpot": 1.0})["table"]
    assert (entry["goodput"], entry["met"]) == (None, None)  # its server does not count
    (entry,) = summary.results([row(0, ttft=None, gaps=[]), row(1, output_tokens=1, tpot=None)], {"ttft": 9.0})["table"]
    assert entry["met"] == 0.5  # the first had no text
    (entry,) = summary.results([row(0, tpot=None, gaps=[]), row(1, output_tokens=1, tpot=None)], {"tpot": 9.0})["table"]
    assert entry["met"] == 0.5  # there was nothing to wait for in the second
    twice = [row(0), {**row(0), "seed": 2}]
    assert summary.results(twice, {})["table"][0]["output_tokens_per_second"] == pytest.approx(20 / 1.5, abs=1e-4)


def test_what_is_said_of_lengths_is_what_came() -> None:
    facts = {
        **dict.fromkeys(("label", "model", "data", "date"), "x"), "requests": 1, "warm_up": 0, "max_tokens": 10,
        "ignore_eos": True, "temperature": 0.0, "seeds": [1], "slo": {}, "missing": 0, "commits": ["c"],
        "machine": {"processor": "p", "cores": 2},
    }  # fmt: skip
    for tokens, words in ((10, "exactly 10 tokens"), (9, "at most 10 tokens")):
        assert words in documents.facts({"run": facts, **summary.results([row(0, output_tokens=tokens)], {})})


def test_the_published_workloads_are_valid(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "docs" / "benchmarks" / "workloads"
    paths = sorted(folder.glob("serve-*.yaml"))
    assert paths
    for path in paths:
        found = workload_file.read(path, serving_flags.add_flags)
        strategies(found["strategy"])
        given = {**serving_flags.DEFAULTS, "output": tmp_path, "base_url": "http://127.0.0.1:8000", **found}
        assert serving_flags.complete(argparse.Namespace(**given)).requests
