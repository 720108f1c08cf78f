"""`decoding-server bench code`: contenders, a whole run on a scripted model, over HTTP too, and its page."""

import argparse
import asyncio
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "strategies" / "search"))
from runtime_server import serve_runtime
from scripted_coder import ScriptedCoder, code

from decoding_server import __version__
from decoding_server.bench import workload_file
from decoding_server.bench.code import documents, flags, summary
from decoding_server.bench.code.contenders import VisibleTests, contenders, parsed
from decoding_server.bench.code.judging import Judge
from decoding_server.bench.code.study import Settings, Study
from decoding_server.bench.code.tasks import CodeTask, load
from decoding_server.bench.rows import read_records
from decoding_server.cli import main
from strategies.sandbox.sandbox import open_sandbox

WRONG, RIGHT, LOOKS_RIGHT = code("return a"), code("return a + b"), code("return max(a, b) + 1")
HIDDEN = "\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 5) == 7\n"
PROMPT = 'def add(a, b):\n    """Adds.\n    >>> add(1, 2)\n    3\n    """\n'
FIELDS = ("source", "passed", "outcome", "score", "results", "tokens_so_far")


def humaneval(count: int = 1) -> list[dict[str, Any]]:
    return [
        {"task_id": f"HumanEval/{i}", "prompt": PROMPT, "entry_point": "add", "test": HIDDEN,
         "canonical_solution": "    return a + b\n"}
        for i in range(count)
    ]  # fmt: skip


def mbpp(number: int) -> dict[str, Any]:
    tests = ["assert add(1, 2) == 3", "assert add(2, 5) == 7", "assert add(LIMIT, 1) == 11"]
    return {
        "task_id": number, "text": "Write a function that adds.", "code": "def add(a, b):\r\n    return a + b",
        "test_setup_code": "LIMIT = 10", "test_list": tests, "challenge_test_list": [],
    }  # fmt: skip


def written(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def coder(seed: Sequence[str] = (WRONG, LOOKS_RIGHT), changed: Sequence[str] = (WRONG, RIGHT)) -> ScriptedCoder:
    """The second first program passes the prompt's example and fails a hidden test."""
    return ScriptedCoder(
        seed=seed,
        code=changed,
        directions=["Direction 1: add both\nDirection 2: use sum"],
        lessons=["Lessons:\n- x"],
        reflection=["It ignores b."],
        tests=["```\nassert add(0, 0) == 0\nassert add(3, 4) == 7\n```"],
    )


@pytest.fixture
def sandboxed() -> None:
    """Skips where no sandbox works."""
    from strategies.sandbox.outcome import SandboxUnavailable

    async def tried() -> None:
        await (await open_sandbox(["bwrap", "lsm"], warm=0)).close()

    try:
        asyncio.run(tried())
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox is usable: {error}")


# -- contenders --------------------------------------------------------------------------------------------------------


def task_of(tmp_path: Path) -> CodeTask:
    return load(written(tmp_path / "one.jsonl", humaneval())).tasks[0]


def test_contenders(tmp_path: Path) -> None:
    assert parsed("sfs").search == {"type": "scattered-forest"}
    assert parsed("plain").search is None
    assert (parsed("mine=sfs").name, parsed("mine=sfs").search) == ("mine", {"type": "scattered-forest"})
    assert parsed('no lessons={"type": "scattered-forest", "scout": false}').name == "no lessons"
    assert parsed('{"type": "code-tree", "branching": 3}').name == "code-tree branching=3"
    body = parsed('{"type": "code-tree", "k": 3}').body(task_of(tmp_path), VisibleTests("given", visible=1), 10)
    assert body is not None
    assert (body["k"], body["entry_point"], body["trace"]) == (3, "add", "full")
    assert body["tests"] == [{"assert": "assert add(1, 2) == 3"}]
    body = parsed("sfs").body(task_of(tmp_path), VisibleTests("generated", visible=1), 10)
    assert body is not None
    assert (body["tests"], body["examples_from_prompt"], body["generate_tests"]) == ([], False, "fill")
    body = parsed('{"type": "best-of-n", "samples": 3}').body(task_of(tmp_path), VisibleTests(), 10)
    assert body == {"type": "best-of-n", "samples": 3, "trace": "summary"}


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["nothing"], "no preset"),
        (["x={1}"], "no preset"),
        (['{"k": 3}'], "'type'"),
        (['{"type": "unheard-of"}'], "unheard-of"),
        (['{"type": "scattered-forest", "k": 0}'], "k"),
        (['{"type": "scattered-forest", "colour": 1}'], "colour"),
        (["sfs", "sfs"], "twice"),
    ],
)
def test_wrong_contenders(tmp_path: Path, texts: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        contenders(texts, task_of(tmp_path), VisibleTests(), 10)


# -- judging -----------------------------------------------------------------------------------------------------------


def test_judging(tmp_path: Path, sandboxed: None) -> None:
    (task,) = load(written(tmp_path / "m.jsonl", [mbpp(11)])).tasks
    sources = [
        "def add(a, b):\n    return a + b\n",
        "def add(a, b):\n    return max(a, b) + 1\n",
        "def add(a, b):\n    return b.x\n",
        "def subtract(a, b):\n    return a - b\n",
        "def add(a, b)\n",
        None,
    ]

    async def verdicts(one: CodeTask) -> list[tuple[str, str]]:
        sandbox = await open_sandbox(["bwrap", "lsm"], warm=1)
        try:
            return [(verdict.outcome, verdict.error) for verdict in await Judge(sandbox).judged(one, sources)]
        finally:
            await sandbox.close()

    outcomes = [outcome for outcome, _ in asyncio.run(verdicts(task))]
    assert outcomes[0] == "pass"
    assert outcomes[1:] == ["wrong_value", "exception", "missing_entry_point", "syntax_error", "no_program"]
    found = asyncio.run(verdicts(task_of(tmp_path)))
    assert [outcome for outcome, _ in found][:4] == ["pass", "assert_fail", "exception", "exception"]
    assert found[3][1] == "NameError"


# -- whole runs --------------------------------------------------------------------------------------------------------


def command(tmp_path: Path, url: str, *more: str, tasks: int = 2) -> list[str]:
    dataset = written(tmp_path / "h.jsonl.gz", humaneval(tasks))
    return [
        *("bench", "code", "--dataset", str(dataset), "--output", str(tmp_path / "out"), "--base-url", url),
        *("--k", "4", "--max-tokens", "200", "--concurrency", "3", *more),
    ]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_a_run_over_http(tmp_path: Path, sandboxed: None, capsys: pytest.CaptureFixture[str]) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / documents.PAGE).write_text("# Page\n\n<!-- code-bench:begin -->\n<!-- code-bench:end -->\n\nEnd.\n")
    names = ("greedy", "best-of-n", "line", "tree", "sfs", "plain")
    given = command(tmp_path, "", *(word for name in names for word in ("--strategy", name)))
    given += ["--concurrency", "1"]  # the coder's replies depend on the order of the questions
    with coder().serving() as runtime, serve_runtime(runtime) as server:
        given[given.index("--base-url") + 1] = f"{server.url}/v1"
        assert main([*given, "--write-docs", str(docs)]) == 0
        rows = rows_of(tmp_path / "out")
        assert main(given) == 0
        assert rows_of(tmp_path / "out") == rows  # nothing is measured twice
    assert len(rows) == 12
    by_name = {row["strategy"]: row for row in rows if row["task"] == "HumanEval/0"}
    for row in by_name.values():
        assert row["output_tokens"] > 0
        assert row["target_tokens"] > 0
        assert row["passed"] == (row["outcome"] == "pass")
        spent = [one["tokens_so_far"] for one in row["programs"]]
        assert spent == sorted(spent)
        assert all(program["source"].startswith("def add") for program in row["programs"])
    # Both tasks have one prompt, so the scripted replies of a search are the same for both.
    assert by_name["line"]["programs"][0]["source"] == "def add(a, b):\n    return a\n"
    tree = by_name["tree"]["programs"]
    assert [one["passed"] for one in tree][-1]
    assert by_name["tree"]["accepted"]
    assert by_name["greedy"]["programs"] == []
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    table = {entry["strategy"]: entry for entry in results["table"]}
    assert list(table) == list(names)
    assert results["run"]["missing"] == 0
    assert table["greedy"]["difference"] is None
    for entry in table.values():
        assert entry["tasks"] == 2
        assert entry["pass_any"] == sorted(entry["pass_any"])
    page = (docs / documents.PAGE).read_text()
    assert "| tree | " in page
    assert page.endswith("End.\n")
    (numbers,) = (docs / "measured").glob("code-*.json")
    assert json.loads(numbers.read_text())["table"] == results["table"]
    (published,) = (docs / "measured").glob("code-*.rows.jsonl.gz")
    assert read_records(published) == rows_of(tmp_path / "out")
    assert f"](measured/{published.name})" in page
    assert "programs evaluated" in (docs / "plots" / f"{numbers.stem}.svg").read_text()
    assert documents.rendered(docs, page) == page
    assert "| tree | " in capsys.readouterr().out


def test_a_runtime_in_this_process_gives_the_same_rows(tmp_path: Path, sandboxed: None) -> None:
    from decoding_server.bench.code import command as commands
    from decoding_server.config import load_config

    dataset = written(tmp_path / "h.jsonl", humaneval(1))

    def settings(folder: str) -> Settings:
        return Settings(tmp_path / folder, dataset, ("best-of-n", "sfs"), "m", k=4, max_tokens=200, concurrency=1)

    config = load_config({}, {}).config
    here, there = Study(settings("here"), lambda *_: None), Study(settings("there"), lambda *_: None)
    with coder([WRONG], [RIGHT]).serving() as runtime:

        async def in_process() -> Any:
            return await commands.in_process(config, lambda _: runtime)

        assert asyncio.run(here.run(in_process))
    with coder([WRONG], [RIGHT]).serving() as runtime, serve_runtime(runtime) as server:

        async def over_http() -> Any:
            return await commands.over_http(config, server.url, None, None)

        assert asyncio.run(there.run(over_http))
    assert len(here.rows.rows) == 2
    for one, other in zip(here.rows.rows, there.rows.rows, strict=True):
        assert {**one, "seconds": 0, "run": ""} == {**other, "seconds": 0, "run": ""}
    sfs = here.rows.rows[1]
    assert [one["passed"] for one in sfs["programs"]] == [False, False, True]
    assert sfs["source"] == sfs["programs"][2]["source"] == "def add(a, b):\n    return a + b\n"
    assert sfs["accepted"]


def test_generated_tests_are_not_the_prompts(tmp_path: Path, sandboxed: None) -> None:
    with coder().serving() as runtime, serve_runtime(runtime) as server:
        given = command(tmp_path, server.url, "--strategy", "best-of-n", "--tests", "generated", tasks=1)
        assert main(given) == 0
    (row,) = rows_of(tmp_path / "out")
    assert row["search"]["tests"] == {"given": 0, "prompt": 0, "generated": 2}
    assert not row["accepted"]  # max + 1 is not 7 for 3 and 4


def test_other_settings_are_measured_anew(tmp_path: Path, sandboxed: None) -> None:
    with coder().serving() as runtime, serve_runtime(runtime) as server:
        given = command(tmp_path, server.url, "--strategy", "greedy", tasks=1)
        assert main(given) == 0
        assert main([*given, "--k", "3"]) == 0
    assert len(rows_of(tmp_path / "out")) == 2
    assert json.loads((tmp_path / "out" / "results.json").read_text())["table"][0]["rows"] == 1


def test_numbers_are_of_the_runs_that_measured_them(tmp_path: Path, sandboxed: None) -> None:
    """The folder's last run measured something else."""
    out = tmp_path / "out"
    with coder().serving() as runtime, serve_runtime(runtime) as server:
        given = command(tmp_path, server.url, "--strategy", "greedy", tasks=1)
        assert main(given) == 0
        (first,) = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
        assert first["server_version"] == __version__
        other = {**first, "key": "other", "model": "another", "commit": "another"}
        with (out / "runs.jsonl").open("a") as runs:
            runs.write(json.dumps(other) + "\n")
        assert main(given) == 0
    assert [row["run"] for row in rows_of(out)] == [first["key"]]
    run = json.loads((out / "results.json").read_text())["run"]
    assert (run["key"], run["model"], run["commits"]) == (first["key"], first["model"], [first["commit"]])
    text = (out / "table.md").read_text()
    assert f"Of the benchmark itself: commit {first['commit']}, " in text
    assert "another," not in text


def test_the_models_of_two_servers_are_not_mixed(
    tmp_path: Path, sandboxed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with coder().serving() as runtime, serve_runtime(runtime) as server:
        given = command(tmp_path, server.url, "--strategy", "greedy", tasks=2)
        assert main([*given, "--count", "1"]) == 0
        (run,) = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
        (out / "runs.jsonl").write_text(json.dumps({**run, "model": "another"}) + "\n")
        assert main(given) == 1
    assert f"error: --output {out}" in " ".join(capsys.readouterr().out.split())
    assert len(rows_of(out)) == 1


def test_what_a_row_depends_on(tmp_path: Path) -> None:
    def digest(records: list[dict[str, Any]], **more: Any) -> str:
        path = written(tmp_path / "h.jsonl", records)
        study = Study(Settings(tmp_path / "out", path, ("greedy",), "m", **more), lambda *_: None)
        return study.digest(study.contenders[0])

    changed = [{**humaneval()[0], "test": HIDDEN.replace("7", "8")}]
    found = [digest(humaneval()), digest(changed), digest(humaneval(), engine={"dtype": "bfloat16"})]
    assert len(set(found)) == 3
    assert digest(humaneval()) == found[0]


def test_a_time_limit_ends_the_run(tmp_path: Path, sandboxed: None, capsys: pytest.CaptureFixture[str]) -> None:
    with coder().serving() as runtime, serve_runtime(runtime) as server:
        given = command(tmp_path, server.url, "--strategy", "greedy")
        assert main([*given, "--time-limit", "-1"]) == 3
        assert "2 cells are missing" in capsys.readouterr().out
        assert main(given) == 0


def test_a_task_that_does_not_fit_counts_as_failed(tmp_path: Path, sandboxed: None) -> None:
    with coder().serving(max_model_len=256) as runtime, serve_runtime(runtime) as server:
        assert main(command(tmp_path, server.url, "--strategy", "sfs", tasks=1)) == 0
    (row,) = rows_of(tmp_path / "out")
    assert (row["passed"], row["outcome"]) == (False, "context")
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())["table"]
    assert (entry["errors"], entry["pass_1"]) == (1, 0.0)


def test_no_server(tmp_path: Path, sandboxed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "http://127.0.0.1:9", "--strategy", "greedy")) == 1
    assert "does not answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (["--strategy", "sfs", "--strategy", "nothing"], 2),
        (["--sandbox", "paper"], 2),
        (["--dataset", "missing"], 1),
        (["--model", "x.gguf"], 2),
        (["--temperature", "3"], 2),
        (["--workload", "missing.yaml"], 2),
    ],
)
def test_wrong_flags(tmp_path: Path, more: list[str], status: int) -> None:
    assert main(command(tmp_path, "http://127.0.0.1:9", *more)) == status


def test_a_workload_file_gives_the_flags(tmp_path: Path, sandboxed: None) -> None:
    workload = tmp_path / "workload.yaml"
    workload.write_text("k: 3\nseed: 5\ncount: 2\nstrategies: {plain: null, mine: {type: code-greedy}}\n")
    with coder().serving() as runtime, serve_runtime(runtime) as server:
        given = command(tmp_path, server.url, "--workload", str(workload), tasks=3)
        assert main([*given, "--count", "1"]) == 0
        assert sorted(row["strategy"] for row in rows_of(tmp_path / "out")) == ["mine", "plain"]
        run = json.loads((tmp_path / "out" / "results.json").read_text())["run"]
        assert (run["k"], run["seeds"]) == (4, [5])  # the command line's, the file's
        assert main(given) == 0
    assert len(rows_of(tmp_path / "out")) == 4


def test_the_published_workloads_are_valid(tmp_path: Path) -> None:
    paths = sorted((Path(__file__).parents[3] / "docs" / "benchmarks" / "workloads").glob("code-*.yaml"))
    assert paths
    for path in paths:
        found = workload_file.read(path, flags.add_flags)
        assert [parsed(text).name for text in found["strategy"]][:5] == list(flags.STRATEGIES)
        given = argparse.Namespace(**{**flags.DEFAULTS, "output": tmp_path, **found})
        assert flags.complete(given).count


def test_the_projects_page_shows_its_numbers() -> None:
    folder = Path(__file__).parents[3] / "docs" / "strategies"
    page = (folder / documents.PAGE).read_text(encoding="utf-8")
    assert documents.rendered(folder, page) == page


PUBLISHED = sorted((Path(__file__).parents[3] / "docs" / "strategies" / documents.NUMBERS).glob("code-*.json"))


@pytest.mark.parametrize("numbers", PUBLISHED, ids=lambda path: path.stem)
def test_published_numbers_follow_from_their_raw_rows(numbers: Path) -> None:
    found = json.loads(numbers.read_text(encoding="utf-8"))
    names = list(found["run"]["strategies"])
    rows = summary.compared(read_records(numbers.with_name(numbers.stem + documents.ROWS)), names)
    assert summary.table(rows, names, found["run"]["k"]) == found["table"]
    assert len({row["task"] for row in rows}) == found["run"]["tasks"]
