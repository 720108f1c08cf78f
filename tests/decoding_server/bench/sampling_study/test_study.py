"""The whole study in small: the embedded model, few prompts, few tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from decoding_server.bench.sampling_study import __main__ as command
from decoding_server.bench.sampling_study import documents, humaneval
from decoding_server.bench.sampling_study.penalties import PENALTIES
from decoding_server.bench.sampling_study.study import PARTS, Settings, Study
from decoding_server.bench.sampling_study.texts import Task, tasks

PAGES = Path(__file__).parents[4] / "docs" / "strategies"
TASKS = [
    {
        "task_id": f"Own/{i}",
        "prompt": f'def {name}(values):\n    """Returns the {what} of a list of numbers."""\n',
        "entry_point": name,
        "test": f"def check(candidate):\n    assert candidate([3, 1, 2]) == {right}\n",
    }
    for i, (name, what, right) in enumerate([("largest", "largest", 3), ("smallest", "smallest", 1)])
]


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    path.write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    return path


def settings(output: Path, tasks_file: Path) -> Settings:
    return Settings(output, humaneval=tasks_file, limit=2, concurrency=2, max_tokens=12, harm_tokens=12)


def quiet(what: str, done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tasks_file: Path) -> Study:
    study = Study(settings(tmp_path_factory.mktemp("whole"), tasks_file), quiet)
    assert study.run()
    return study


def without_times(study: Study) -> dict[str, list[dict[str, Any]]]:
    return {
        part: [{name: value for name, value in row.items() if name != "seconds"} for row in study.rows[part].rows]
        for part in PARTS
    }


def test_every_cell_has_a_row(whole: Study) -> None:
    assert whole.missing() == 0
    sizes = {part: len(rows.rows) for part, rows in whole.rows.items()}
    assert sizes == {"bregman": 2, "repetition": 2 * 2 * len(PENALTIES), "harm": 2 * len(humaneval.MODES)}
    assert all(row["tokens"] <= 12 for part in ("repetition", "harm") for row in whole.rows[part].rows)
    assert [place["place"] for place in whole.rows["bregman"].rows[0]["places"]][:2] == [0, 4]


def test_a_run_cut_off_goes_on_to_the_same_rows(whole: Study, tmp_path: Path, tasks_file: Path) -> None:
    """Stopped between two waves, with the last wave's last row half written, then continued."""
    output = tmp_path / "cut"

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Study(settings(output, tasks_file), stop).run()
    path = output / "repetition.jsonl"
    for page in documents.PAGES:
        shutil.copy(PAGES / page, tmp_path / page)
    documents.write(tmp_path, Study(settings(output, tasks_file), quiet).results())
    assert " more rows are missing." in (tmp_path / "grammar-penalty.md").read_text()
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 8  # one wave of bregman, four of repetition, two rows each
    path.write_text("".join(lines)[:-20])
    study = Study(settings(output, tasks_file), quiet)
    assert study.missing() == whole_waves(whole) - 4
    assert study.run()
    assert without_times(study) == without_times(whole)
    assert len(study.runs.rows) == 2


def whole_waves(study: Study) -> int:
    return sum(map(len, study.waves.values()))


def test_nothing_is_measured_twice(whole: Study, tasks_file: Path) -> None:
    before = {part: rows.path.read_bytes() for part, rows in whole.rows.items()}
    again = Study(settings(whole.settings.output, tasks_file), quiet)
    assert again.run()
    assert {part: rows.path.read_bytes() for part, rows in again.rows.items()} == before
    assert len(again.runs.rows) == 1


def test_the_pages_show_the_numbers(whole: Study, tmp_path: Path) -> None:
    for page in documents.PAGES:
        shutil.copy(PAGES / page, tmp_path / page)
    results = whole.results()
    documents.write(tmp_path, results)
    bregman, grammar = ((tmp_path / page).read_text() for page in documents.PAGES)
    first = results["repetition"]["results"][0]
    assert f"| none | {first['tr_n']['mean']:.3f} [" in grammar
    assert "(2 programs, up to 12 new tokens)" in grammar
    assert "| smollm2-135m-instruct | none, other neighbours | 1.000 | " in grammar
    assert f"{results['bregman']['results'][0]['distributions']} distributions of smollm2-135m-instruct" in bregman
    assert results["harm"]["commits"][0] in grammar
    made = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert sorted(made) == ["bregman-example.svg", "bregman-kept.svg", "repetition.svg"]
    documents.write(tmp_path, {"bregman": results["bregman"]})
    assert {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()} == made
    assert [(tmp_path / page).read_text() for page in documents.PAGES] == [bregman, grammar]


def test_the_committed_pages_are_what_the_committed_numbers_make() -> None:
    assert documents.pages(PAGES) == {page: (PAGES / page).read_text(encoding="utf-8") for page in documents.PAGES}


def test_plots_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (PAGES / "plots").iterdir()}
    assert {"bregman-example.svg", "bregman-kept.svg", "repetition.svg"} <= sizes.keys()
    assert max(sizes.values()) < 150_000


def test_the_command_stops_when_time_is_up_and_goes_on(
    tmp_path: Path, tasks_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output", str(tmp_path), "--limit", "1", "--max-tokens", "4", "--only", "harm", "--harm-tokens", "4"]
    flags += ["--humaneval", str(tasks_file)]
    assert command.main([*flags, "--time-limit", "0"]) == 3
    assert "the same command goes on from here" in capsys.readouterr().out
    assert command.main(flags) == 0
    assert len((tmp_path / "harm.jsonl").read_text().splitlines()) == len(humaneval.MODES)


def test_without_its_file_harm_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--output", str(tmp_path), "--only", "harm"]) == 0
    assert "harm is left out: no --humaneval" in capsys.readouterr().out


def test_a_wrong_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"question": "?"}\n')
    assert command.main(["--output", str(tmp_path / "out"), "--humaneval", str(wrong)]) == 1
    assert "wrong.jsonl is not HumanEval's file" in capsys.readouterr().out


def test_a_solution_is_judged_by_its_tests(tasks_file: Path) -> None:
    first, second = tasks(tasks_file)
    assert judged(first, "    return max(values)\n") == "passed"
    assert judged(first, "    return min(values)\n") == "failed"
    assert judged(second, "    return min(values)\n") == "passed"


def judged(task: Task, completion: str) -> str:
    return humaneval.candidate.run(humaneval.program(task.prompt + completion, task), seconds=20)
