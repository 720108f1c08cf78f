"""`decoding-server bench report`: pages of quality, serve and code runs, of two compared, and of bad folders."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from runtime_server import serve_runtime
from scripted_answers import answering_runtime, records

from decoding_server.bench.reporting import publishing
from decoding_server.cli import main

EVIL = '<script>alert("x")</script>|`'


class Page(HTMLParser):
    """Collects elements, and whatever a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.runs: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "poster") and not (value or "").startswith("data:image/svg"):
                self.loads.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.runs.append(f"{tag} {name}")
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form"):
            self.runs.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(folder: Path) -> Page:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text
    assert "url(" not in text
    assert "@import" not in text
    found = Page(text)
    assert (found.loads, found.runs) == ([], [])
    return found


def quality(folder: Path, *more: str, tasks: int = 5) -> Path:
    dataset = folder / "sums.jsonl"
    dataset.write_text("".join(json.dumps(record) + "\n" for record in records(tasks)))
    given = ["bench", "quality", "--dataset", str(dataset), "--output", str(folder / "out"), "--answer-cost", "11"]
    given += ["--strategy", "greedy", "--strategy", "majority", "--budget", "60", "--budget", "200"]
    with serve_runtime(answering_runtime()) as server:
        assert main([*given, *more, "--base-url", server.url]) == 0
    return folder / "out"


def serve(folder: Path) -> Path:
    given = ["bench", "serve", "--output", str(folder / "out"), "--concurrency", "2", "--requests", "3"]
    dataset = folder / "sums.jsonl"
    dataset.write_text("".join(json.dumps(record) + "\n" for record in records(3)))
    with serve_runtime(answering_runtime()) as server:
        assert main([*given, "--dataset", str(dataset), "--base-url", server.url, "--slo-ttft", "9"]) == 0
    return folder / "out"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return tmp_path / "a", tmp_path / "b"


def test_a_quality_run(folders: tuple[Path, Path]) -> None:
    run = quality(folders[0], "--label", EVIL, "--strategy", f"{EVIL}=greedy")
    out = folders[1] / "report"
    assert main(["bench", "report", str(run), "--output", str(out)]) == 0
    page = page_of(out)
    text = " ".join(page.text)
    assert text.count(EVIL) > 3  # shown, and not part of the page
    assert "img" in page.tags
    results = json.loads((run / "results.json").read_text())
    for entry in results["table"]:
        assert f"{100 * entry['accuracy']:.1f} %" in text
    # Every figure can be traced: the file of rows by its hash, each row by its key, and what made it.
    import hashlib

    assert hashlib.sha256((run / "rows.jsonl").read_bytes()).hexdigest() in text
    for row in map(json.loads, (run / "rows.jsonl").read_text().splitlines()):
        assert row["key"] in text
    for fact in (results["run"]["commit"], results["run"]["versions"]["torch"], results["run"]["machine"]["processor"]):
        assert fact in text
    assert "commit of the benchmark" in text  # a server was asked, whose own is not known
    markdown = (out / "report.md").read_text()
    assert "<script" not in markdown
    assert "| majority | 200 |" in markdown
    (plot,) = re.findall(r"\]\(([\w-]+\.svg)\)", markdown)
    drawn = (out / plot).read_text()
    assert "<script" not in drawn
    assert "majority" in drawn


def test_the_report_counts_again_from_the_rows(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = quality(folders[0])
    results = json.loads((run / "results.json").read_text())
    results["table"] = []
    (run / "results.json").write_text(json.dumps(results))
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        row["correct"] = True
    (run / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folders[1] / "report"
    assert main(["bench", "report", str(run), "--output", str(out), "--title", "Mine"]) == 0
    assert "| greedy | 60 | 100.0 % |" in (out / "report.md").read_text()
    assert (out / "report.md").read_text().startswith("# Mine\n")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["bench", "report", str(run), "--output", str(out), "--title", "Mine"]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before  # the same bytes every time


def test_rows_of_other_settings_do_not_count(folders: tuple[Path, Path]) -> None:
    run = quality(folders[0], tasks=6)
    quality(folders[0], "--max-tokens", "3", "--count", "2", tasks=6)
    out = folders[1] / "report"
    assert main(["bench", "report", str(run), "--output", str(out)]) == 0
    assert "2 tasks of sums" in (out / "report.md").read_text()
    assert "8 of rows.jsonl" in (out / "report.md").read_text()


def test_two_quality_runs(folders: tuple[Path, Path]) -> None:
    first = quality(folders[0], "--temperature", "0")
    second = quality(folders[1], "--temperature", "1")
    out = folders[0] / "report"
    assert main(["bench", "report", str(first), str(second), "--output", str(out)]) == 0
    markdown = (out / "report.md").read_text()
    # At temperature 0 all samples of a vote are greedy's.
    assert "| majority | 200 | 5 | 0.0 % | 100.0 % | +100.0 (+100.0 to +100.0) | " in markdown
    assert "| greedy | 200 | 5 | 0.0 % | 0.0 % | +0.0 (+0.0 to +0.0) | 1.00x | 1.00x |" in markdown
    assert "temperature differ" in markdown
    assert sorted(path.name for path in out.glob("*.svg")) == ["first-frontier.svg", "second-frontier.svg"]
    page_of(out)


def test_costs_are_compared_over_the_common_tasks(folders: tuple[Path, Path]) -> None:
    """A run beside a part of itself: nothing differs, though the tasks of one alone cost ten times more."""
    first, second = quality(folders[0]), quality(folders[1])
    rows = [json.loads(line) for line in (first / "rows.jsonl").read_text().splitlines()]
    others = {"sums/0", "sums/1"}
    for row in rows:
        if row["task"] in others:
            row |= {name: 10 * row[name] for name in ("forward_tokens", "flops", "seconds")}
    (first / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = "".join(json.dumps(row) + "\n" for row in rows if row["task"] not in others)
    (second / "rows.jsonl").write_text(kept)
    for name in ("results.json", "runs.jsonl"):
        (second / name).write_text((first / name).read_text())
    out = folders[0] / "report"
    assert main(["bench", "report", str(first), str(second), "--output", str(out)]) == 0
    lines = re.findall(r"\| (?:greedy|majority) \| \d+ \| 3 \| .* \|", (out / "report.md").read_text())
    assert len(lines) == 4
    assert all(line.endswith("| 1.00x | 1.00x | 1.00x |") for line in lines), lines


def test_serve_runs(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = serve(folders[0]), serve(folders[1])
    out = folders[0] / "report"
    assert main(["bench", "report", str(first), str(second), "--output", str(out)]) == 0
    markdown = (out / "report.md").read_text()
    assert re.search(r"\| greedy \| concurrency 2 \| [\d.]+ → [\d.]+ \([\d.]+x\) \|", markdown)
    assert "| concurrency 2 | greedy | 3 of 3 | – |" in markdown
    page_of(out)
    # Runs of two kinds can't be compared.
    other = quality(_new(folders[1]))
    assert main(["bench", "report", str(first), str(other), "--output", str(out)]) == 1
    assert "nothing in common" in capsys.readouterr().err


def _new(folder: Path) -> Path:
    made = folder / "other"
    made.mkdir()
    return made


def test_runs_of_other_data_are_not_compared(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = quality(folders[0]), quality(folders[1], "--grader", "numeric")
    assert main(["bench", "report", str(first), str(second), "--output", str(folders[0] / "r")]) == 1
    assert "differ in grader" in capsys.readouterr().err


def test_other_records_of_one_name_are_not_compared(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = quality(folders[0]), quality(folders[1], tasks=4)
    report = ["bench", "report", str(first), str(second), "--output", str(folders[0] / "r")]
    assert main(report) == 1
    assert "differ in dataset_sha256" in capsys.readouterr().err
    # Runs from before the records were hashed are known by the name alone.
    results = json.loads((first / "results.json").read_text())
    del results["run"]["dataset_sha256"]
    (first / "results.json").write_text(json.dumps(results))
    assert main(report) == 0


CODE_RUN: dict[str, Any] = {
    "kind": "code", "key": "1", "date": "2026-01-01", "commit": "abc", "model": "m", "sandbox": "bwrap",
    "concurrency": 1, "versions": {"torch": "2"},
    "machine": {
        "processor": "p", "cores": 2, "instruction_sets": [], "memory_gib": 1.0, "system": "s", "python": "3",
        "load_average_at_start": 0.1,
    },
    "dataset": "HumanEval", "tasks": 2, "of": 2, "tests": "given", "visible": 0, "n_tests": 6, "k": 2, "seeds": [1],
    "max_tokens": 9, "missing": 0, "strategies": {"plain": None, "tree": {"type": "code-tree"}},
    "digests": {"plain": "d1", "tree": "d2"}, "task_names": ["t0", "t1"],
}  # fmt: skip


def code_run(folder: Path, right: int, *, tasks: int = 2) -> Path:
    """Of `tasks` tasks, each of which costs ten times as much as the one before."""
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "key": f"{name}|t{i}|1|{digest}", "strategy": name, "task": f"t{i}", "seed": 1, "passed": i < right,
            "outcome": "pass" if i < right else "wrong", "accepted": None, "source": "x = 1", "finish_reason": "stop",
            "target_tokens": 10 ** (i + 1), "cached_tokens": 0, "output_tokens": 5, "flops": 10.0 ** (i + 8),
            "seconds": 1.0, "programs": [], "search": {},
        }
        for name, digest in CODE_RUN["digests"].items()
        for i in range(tasks)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "results.json").write_text(json.dumps({"run": CODE_RUN, "table": []}))
    return folder


def test_code_runs(tmp_path: Path) -> None:
    first, second = code_run(tmp_path / "a", 1), code_run(tmp_path / "b", 2)
    out = tmp_path / "report"
    assert main(["bench", "report", str(first), str(second), "--output", str(out)]) == 0
    markdown = (out / "report.md").read_text()
    assert "| tree | 2 | 50.0 % | 100.0 % | +50.0 (+0.0 to +100.0) | 1.00x | 1.00x | 1.00x |" in markdown
    assert "| plain | 50.0 % |" in markdown
    assert sorted(path.name for path in out.glob("*.svg")) == ["first-pass-any.svg", "second-pass-any.svg"]
    page_of(out)


def test_costs_of_code_runs_are_compared_over_the_common_tasks(tmp_path: Path) -> None:
    first, second = code_run(tmp_path / "a", 1), code_run(tmp_path / "b", 1, tasks=1)
    out = tmp_path / "report"
    assert main(["bench", "report", str(first), str(second), "--output", str(out)]) == 0
    markdown = (out / "report.md").read_text()
    assert "| tree | 1 | 100.0 % | 100.0 % | +0.0 (+0.0 to +0.0) | 1.00x | 1.00x | 1.00x |" in markdown


# -- pages of the documentation ----------------------------------------------------------------------------------------

DOCUMENT = "# Sums\n\n<!-- report:begin -->\nNothing yet.\n<!-- report:end -->\n\nEnd.\n"


def test_a_published_run_can_be_reported_on_again(folders: tuple[Path, Path]) -> None:
    run, page = quality(folders[0]), folders[1] / "sums.md"
    page.write_text(DOCUMENT)
    assert main(["bench", "report", str(run), "--write-docs", str(page), "--title", "Sums"]) == 0
    text = page.read_text()
    assert "| majority | 200 |" in text
    assert "Nothing yet" not in text
    assert text.endswith("End.\n")
    data = folders[1] / "sums"
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (folders[1] / link).is_file(), link
    page_of(data)
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    assert not any("text" in json.loads(line) for line in before["rows.jsonl"].decode().splitlines())
    # From the published rows alone, the same page comes again, and so do all numbers of the run.
    assert main(["bench", "report", str(data), "--write-docs", str(page), "--title", "Sums"]) == 0
    assert (page.read_text(), {path.name: path.read_bytes() for path in data.iterdir()}) == (text, before)
    numbers = json.loads((run / "results.json").read_text())
    assert json.loads(before["results.json"])["table"] == numbers["table"]


def test_published_programs_keep_their_texts(tmp_path: Path) -> None:
    page = tmp_path / "code.md"
    page.write_text(DOCUMENT)
    run = code_run(tmp_path / "a", 1)
    (run / "runs.jsonl").write_text(json.dumps({"key": CODE_RUN["key"]}) + "\n" + json.dumps({"key": "other"}) + "\n")
    assert main(["bench", "report", str(run), "--write-docs", str(page), "--output", str(tmp_path / "r")]) == 0
    assert "| plain | 50.0 % |" in page.read_text()
    assert (tmp_path / "r" / "report.html").is_file()
    assert (tmp_path / "code" / "rows.jsonl").read_text() == (run / "rows.jsonl").read_text()
    assert (tmp_path / "code" / "runs.jsonl").read_text() == json.dumps({"key": CODE_RUN["key"]}) + "\n"


def test_pages_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page = code_run(tmp_path / "a", 1), tmp_path / "code.md"
    assert main(["bench", "report", str(run)]) == 2
    assert main(["bench", "report", str(run), str(run), "--write-docs", str(page)]) == 2
    assert main(["bench", "report", str(run), "--write-docs", str(page)]) == 1
    page.write_text("# Nothing to fill\n")
    assert main(["bench", "report", str(run), "--write-docs", str(page)]) == 1
    assert "there is no block 'report'" in capsys.readouterr().err
    assert not (tmp_path / "code").exists()
    rows = (run / "rows.jsonl").read_text().splitlines(keepends=True)
    (run / "rows.jsonl").write_text(rows[0])  # of one strategy only
    page.write_text(DOCUMENT)
    assert main(["bench", "report", str(run), "--write-docs", str(page)]) == 1
    assert "nothing has been measured whole" in capsys.readouterr().err
    assert page.read_text() == DOCUMENT
    assert main(["bench", "report", str(run), "--output", str(tmp_path / "r")]) == 0
    assert "measured whole" in (tmp_path / "r" / "report.md").read_text()


PUBLISHED = [
    page
    for page in sorted((Path(__file__).parents[3] / "docs").rglob("*.md"))
    if f"<!-- {publishing.BLOCK}:begin -->" in page.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("page", PUBLISHED, ids=lambda page: page.stem)
def test_the_projects_pages_follow_from_their_raw_rows(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert publishing.rendered(page, text) == text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no finished run"),
        ({"results.json": "{"}, "not the files"),
        ({"results.json": '{"run": {}}'}, "no finished run"),
        ({"results.json": '{"run": {}}', "rows.jsonl": ""}, "lack 'digests'"),
        ({"results.json": '{"run": {"kind": "taste"}}', "rows.jsonl": ""}, "taste"),
        ({"results.json": "[]", "rows.jsonl": ""}, "not the files"),
    ],
)
def test_folders_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], words: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["bench", "report", str(tmp_path), "--output", str(tmp_path / "r")]) == 1
    assert words in capsys.readouterr().err
