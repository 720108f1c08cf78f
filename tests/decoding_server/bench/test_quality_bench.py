"""`decoding-server bench quality`: whole runs on a scripted model, in this process and over a socket, on a plain peer,
resumed, and with wrong flags."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from runtime_server import Server, serve_runtime
from scripted_answers import answering_runtime, records

from decoding_server import __version__
from decoding_server.bench import workload_file
from decoding_server.bench.command import add_bench
from decoding_server.bench.quality import flags as quality_flags
from decoding_server.bench.quality.command import run
from decoding_server.cli import main
from decoding_server.config import load_config

BUDGETS = ("--budget", "30", "--budget", "200")
PROMPT_TOKENS = 19


def written(path: Path, found: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in found), encoding="utf-8")
    return path


def command(folder: Path, *more: str, tasks: int = 6) -> list[str]:
    dataset = written(folder / "sums.jsonl", records(tasks))
    return ["bench", "quality", "--dataset", str(dataset), "--output", str(folder / "out"), *more]


def run_here(arguments: Sequence[str], **engine: Any) -> int:
    """The command on the scripted model in this process. engine: settings of `serve`, which that model does not see."""
    parser = argparse.ArgumentParser()
    add_bench(parser)
    flags = workload_file.merged(parser.parse_args(arguments[1:]), quality_flags.add_flags, quality_flags.DEFAULTS)
    return run(quality_flags.complete(flags), load_config(engine, {}).config, lambda _: answering_runtime())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())
    return found


STRATEGIES = (
    *("--strategy", "greedy", "--strategy", "majority", "--strategy", "speculation"),
    *("--strategy", 'three={"decoding": {"search": {"type": "majority", "samples": 3}}}'),
)


def test_a_vote_uses_its_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = command(tmp_path, *STRATEGIES, *BUDGETS, "--answer-cost", "11", "--temperature", "1")
    assert run_here(given) == 0
    rows = {(row["strategy"], row["budget"], row["task"]): row for row in rows_of(tmp_path)}
    assert len(rows) == 4 * 2 * 6
    for (strategy, budget, _), row in rows.items():
        assert row["forward_tokens"] <= budget
        assert row["forward_tokens"] == row["target_tokens"] + row["draft_tokens"] + row["scorer_tokens"]
        assert row["prompt_tokens"] == PROMPT_TOKENS
        assert row["cached_tokens"] == 0 or strategy in ("majority", "three")  # nobody profits from others' prompts
        assert row["flops"] > 0
        assert row["seconds"] > 0
    one = {name: rows[name, 200, "sums/3"] for name in ("greedy", "majority", "speculation", "three")}
    assert one["greedy"]["correct"] is False
    assert one["greedy"]["answer"] == "28"
    assert one["greedy"]["forward_tokens"] == PROMPT_TOKENS + 10
    assert one["majority"]["width"] == {"samples": (200 - PROMPT_TOKENS) // 11}
    assert one["majority"]["correct"] is True
    assert one["majority"]["output_tokens"] > 100
    assert one["three"]["output_tokens"] == 33
    assert one["speculation"]["answer"] == "28"  # exact: greedy's own answer
    small = rows["majority", 30, "sums/3"]
    assert small["width"] == {"samples": 1}
    # What no budget ended is not asked again under a larger one, where the strategy does not look at the budget.
    assert one["greedy"]["same_as"] == rows["greedy", 30, "sums/3"]["key"]
    assert "same_as" not in one["three"]
    table = {(entry["strategy"], entry["budget"]): entry for entry in results_of(tmp_path)["table"]}
    assert table["greedy", 30]["accuracy"] == 0.0
    assert table["majority", 200]["accuracy"] == 1.0
    assert table["majority", 200]["difference"][0] == 1.0
    (best,) = [entry for entry in results_of(tmp_path)["optimal"] if entry["budget"] == 200]
    assert best["strategy"] in ("majority", "three")  # three samples may do as well
    assert best["accuracy"] == 1.0
    assert "| majority | 200 | 100.0 % |" in capsys.readouterr().out
    assert "| majority | 200 | 100.0 % |" in (tmp_path / "out" / "table.md").read_text()
    assert "majority" in (tmp_path / "out" / "frontier.svg").read_text()
    (facts,) = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert {row["run"] for row in rows.values()} == {facts["key"]}
    assert facts["commit"]
    assert facts["versions"]["torch"]
    assert "server_version" not in facts
    assert f" Commit {facts['commit']}" in (tmp_path / "out" / "table.md").read_text()


def test_a_cut_off_answer_is_said_to_be(tmp_path: Path) -> None:
    assert run_here(command(tmp_path, "--strategy", "greedy", "--budget", "25", "--budget", "60")) == 0
    for row in rows_of(tmp_path):
        assert row["budget_ended"] is (row["budget"] == 25)
        assert "same_as" not in row
        assert row["finish_reason"] == ("length" if row["budget"] == 25 else "stop")
        assert row["forward_tokens"] == min(row["budget"], PROMPT_TOKENS + 10)


def test_over_http_it_is_the_same(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    more = (*STRATEGIES, *BUDGETS, "--answer-cost", "11")
    assert run_here(command(here, *more, tasks=2)) == 0
    with serve_runtime(answering_runtime()) as server:
        given = command(there, *more, "--base-url", f"{server.url}/v1", tasks=2)
        assert main(given) == 0
        before = rows_of(there)
        # What the benchmark knows of commit and machine is its own; of the server, what that says.
        assert results_of(there)["run"]["server_version"] == __version__
        told = f"a server of this project's version {__version__}, whose machine is not known. Of the benchmark itself:"
        assert told in (there / "out" / "table.md").read_text()
        assert main(given) == 0
        assert rows_of(there) == before  # nothing is measured twice
        assert main([*given, "--max-tokens", "9"]) == 0
        assert len(rows_of(there)) == 2 * len(before)  # other settings are measured anew

    def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        changing = ("key", "seconds", "run", "same_as", "forward_passes")
        found = [{name: value for name, value in row.items() if name not in changing} for row in rows]
        return sorted(found, key=lambda row: (row["strategy"], row["budget"], row["task"]))

    assert comparable(rows_of(here)) == comparable(before)


class PlainPeer:
    """This project's application without its extensions, as another server would be."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.state = app.state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in ("/v1/models", "/v1/chat/completions"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        started: dict[str, Any] = {}
        parts: list[bytes] = []

        async def strip(message: Any) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body"):
                return
            found = json.loads(b"".join(parts))
            if "usage" in found:
                del found["usage"]["decoding"]
            await send({**started, "headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": json.dumps(found).encode()})

        await self.app(scope, receive, strip)


def test_a_plain_peer_serves_the_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Server.__init__

    def plain(self: Server, config: Any) -> None:
        config.app = PlainPeer(config.app)
        made(self, config)

    monkeypatch.setattr(Server, "__init__", plain)
    with serve_runtime(answering_runtime()) as server:
        url = ("--base-url", server.url)
        given = command(tmp_path, *url, "--strategy", "greedy", "--strategy", "sampling", "--unit", "output_tokens")
        assert main([*given, "--budget", "4", "--budget", "40"]) == 0
        for more, words in (
            (["--strategy", "majority"], "has no `decoding`"),
            (["--budget", "100", "--unit", "forward_tokens"], "--unit output_tokens only"),
        ):
            error = run_quietly([*command(tmp_path, *url, "--strategy", "greedy"), *more])
            assert error[0] == 2, error
            assert words in error[1]
    rows = rows_of(tmp_path)
    assert all(row["flops"] is None and row["forward_tokens"] is None for row in rows)
    assert {
        (row["budget"], row["output_tokens"], row["budget_ended"]) for row in rows if row["strategy"] == "greedy"
    } == {
        (4, 4, True),
        (40, 11, False),
    }
    table = results_of(tmp_path)["table"]
    assert all(entry["flops"] is None for entry in table)
    assert results_of(tmp_path)["frontier_cost"] == "output_tokens"
    assert results_of(tmp_path)["run"]["server_version"] is None
    assert "a server of another kind" in (tmp_path / "out" / "table.md").read_text()
    assert "unknown" in (tmp_path / "out" / "table.md").read_text()


def run_quietly(arguments: Sequence[str]) -> tuple[int, str]:
    import contextlib
    import io

    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        return main(list(arguments)), error.getvalue()


def test_a_time_limit_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = command(tmp_path, "--strategy", "greedy", tasks=2)
    assert run_here([*given, "--time-limit", "-1"]) == 3
    assert "2 cells are missing" in capsys.readouterr().out
    assert run_here(given) == 0
    assert [row["budget"] for row in rows_of(tmp_path)] == [None, None]


def test_a_task_that_does_not_fit_counts_as_wrong(tmp_path: Path) -> None:
    given = command(tmp_path, "--strategy", "greedy", "--max-tokens", "1010", tasks=2)
    assert run_here(given) == 0
    assert all("context" in row["error"] and row["correct"] is False for row in rows_of(tmp_path))
    assert results_of(tmp_path)["table"][0]["errors"] == 2


def test_what_the_server_refuses_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_runtime(answering_runtime()) as server:
        bad = 'bad={"decoding": {"search": {"type": "majority", "samples": 0}}}'
        assert main(command(tmp_path, "--base-url", server.url, "--strategy", bad)) == 1
    assert "bad, sums/" in (printed := capsys.readouterr().out)
    assert "samples" in printed
    assert main(command(tmp_path, "--base-url", "http://127.0.0.1:9", "--strategy", "greedy")) == 1
    assert "does not answer" in capsys.readouterr().out


def test_the_embedded_model(tmp_path: Path) -> None:
    given = command(tmp_path, "--strategy", "greedy", "--strategy", "bregman", "--budget", "80", "--max-tokens", "8")
    assert main([*given, "--max-model-len", "256", "--kv-cache-memory", "64MiB"]) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 12
    assert all(0 < row["forward_tokens"] <= 80 for row in rows)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--strategy", "nothing"], "is no preset"),
        (["--strategy", "greedy", "--strategy", "greedy"], "given twice"),
        (["--strategy", 'x={"n": 3}'], "n is not for a strategy"),
        (["--strategy", 'x={"decoding": {"budget": {}}}'], "--budget"),
        (["--strategy", 'x={"scale": {"samples": 1}}'], "needs a decoding.search"),
        (["--strategy", 'x={"decoding": {"search": {"type": "majority"}}, "scale": {"samples": 0}}'], "above 0"),
        (["--strategy", 'x={"decoding": {"search": {"type": "majority", "samples": 0}}}'], "decoding.search"),
        (["--strategy", 'x={"decoding": {"search": {"type": "unheard-of"}}}'], "unheard-of"),
        (["--strategy", "sfs"], "writes programs"),
        (["--budget", "1.5"], "whole numbers"),
        (["--unit", "seconds", "--budget", "2"], "--answer-cost"),
        (["--temperature", "3"], "--temperature"),
        (["--prompt", "no place"], "{question}"),
        (["--grader", "regex"], "--pattern"),
        (["--grader", "numeric", "--pattern", "x"], "--pattern"),
        (["--answer-field", "gold"], "--grader"),
        (["--grader", "numeric", "--answer-field", "gold"], "no field 'gold'"),
        (["--grader", "choice"], "is no letter"),
        (["--model", "m", "--base-url", "http://x"], "exclude"),
        (["--served-model", "m"], "--base-url"),
        (["--dtype", "int3"], "--dtype"),
    ],
)
def test_wrong_flags(tmp_path: Path, more: list[str], words: str) -> None:
    status, error = run_quietly([*command(tmp_path), *more])
    assert (status, words in error) == (2, True), error


def test_a_missing_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["bench", "quality", "--dataset", str(tmp_path / "no.jsonl"), "--output", str(tmp_path / "out")]
    assert main(given) == 1
    assert "No such file" in capsys.readouterr().out
    assert run_quietly(given[:4])[0] == 2


# -- workload files ----------------------------------------------------------------------------------------------------

WORKLOAD = """
grader: math
budget: [60, 200]
answer-cost: 11
temperature: 1
count: 2
stop: ["\\n\\n"]
strategies:
  greedy:
  voting: majority
  three: {decoding: {search: {type: majority, samples: 3}}, temperature: 0.9}
"""


def test_a_workload_file_gives_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text(WORKLOAD)
    assert run_here(command(tmp_path, "--workload", str(path))) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 3 * 2 * 2
    assert {row["strategy"] for row in rows} == {"greedy", "voting", "three"}
    run_facts = results_of(tmp_path)["run"]
    assert (run_facts["stop"], run_facts["temperature"]) == (["\n\n"], 1.0)
    # What the command line gives takes the place of the file's.
    assert run_here(command(tmp_path, "--workload", str(path), "--strategy", "greedy", "--budget", "70")) == 0
    assert len(rows_of(tmp_path)) == len(rows) + 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("colour: red", "--colour"),
        ("budget: many", "budget"),
        ("grader: taste", "taste"),
        ("strategies: 3", "strategies"),
        ("prompt: {a: b}", "prompt"),
        ("workload: other.yaml", "can't name another"),
        ("workload: null", "can't name another"),
        ("answer-cst: null", "no flag --answer-cst"),
        ("answer-cst: false", "no flag --answer-cst"),
        ("answer-cst: []", "no flag --answer-cst"),
        ("budget: 100\nbudget: 200", "'budget' stands twice"),
        ("answer-cost: 100\nanswer_cost: 200", "given twice"),
        ("strategies: {greedy: null, greedy: {temperature: 1}}", "'greedy' stands twice"),
    ],
)
def test_wrong_workload_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text(text)
    status, error = run_quietly(command(tmp_path, "--workload", str(path)))
    assert (status, words in error) == (2, True), error


def test_the_command_lines_server_takes_the_place_of_the_files_model(tmp_path: Path) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text("model: something\nstrategies: [greedy]\n")
    with serve_runtime(answering_runtime()) as server:
        assert main(command(tmp_path, "--workload", str(path), "--base-url", server.url, tasks=1)) == 0
    assert len(rows_of(tmp_path)) == 1


def test_the_documented_workload_is_valid(tmp_path: Path) -> None:
    from decoding_server.bench.quality.contenders import check, strategies

    page = (Path(__file__).parents[3] / "docs/bench.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "workload.yaml"
    path.write_text(text)
    found = workload_file.read(path, quality_flags.add_flags)
    assert found["budget"] == [512, 1024, 2048]
    for one in strategies(found["strategy"]):
        check(one)


def test_the_published_workloads_are_valid(tmp_path: Path) -> None:
    from decoding_server.bench.quality.contenders import check, strategies

    folder = Path(__file__).parents[3] / "docs" / "benchmarks" / "workloads"
    paths = sorted(folder.glob("quality-*.yaml"))
    assert paths
    for path in paths:
        found = workload_file.read(path, quality_flags.add_flags)
        chosen = strategies(found["strategy"])
        for one in chosen:
            check(one)
        flags = argparse.Namespace(**{**quality_flags.DEFAULTS, "output": tmp_path, **found})
        assert quality_flags.complete(flags).budget
