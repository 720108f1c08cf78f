"""Workload files of programs whose flags have defaults of their own."""

import argparse
from pathlib import Path

import pytest

from decoding_server.bench import workload_file


def program() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="program")
    add = parser.add_argument
    add("--output", type=Path, required=True)
    add("--rounds", type=int, default=3)
    add("--budgets", nargs="+", type=int, default=[1])
    add("--only", action="append")
    add("--strategies", default="")
    add("--theory", action="store_true")
    return parser


def given(folder: Path, text: str, *more: str) -> argparse.Namespace:
    path = folder / "workload.yaml"
    path.write_text(text)
    return workload_file.parsed(program(), ["--workload", str(path), *more])


def test_the_file_comes_before_the_command_line(tmp_path: Path) -> None:
    text = "rounds: 5\nbudgets: [6, 14]\nonly: [a, b]\nstrategies: x,y\ntheory: true\n"
    found = given(tmp_path, text, "--output", "here")
    assert vars(found) == {
        "output": Path("here"),
        "rounds": 5,
        "budgets": [6, 14],
        "only": ["a", "b"],
        "strategies": "x,y",
        "theory": True,
        "workload": tmp_path / "workload.yaml",
    }
    found = given(tmp_path, text, "--output=here", "--rounds=7", "--only", "c", "--budgets", "2", "3", "4")
    assert (found.rounds, found.only, found.budgets) == (7, ["c"], [2, 3, 4])
    assert given(tmp_path, "output: there\n").output == Path("there")


def test_without_a_file(tmp_path: Path) -> None:
    found = workload_file.parsed(program(), ["--output", "x"])
    assert (found.rounds, found.workload) == (3, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rounds: many\n", "--rounds: invalid int value"),
        ("round: 5\n", "round: there is no flag --round"),
        ("rounds: 5\nrounds: 6\n", "stands twice"),
        ("budgets: {a: 1}\n", "budgets: must be a text or a number"),
        ("workload: other.yaml\n", "a workload can't name another"),
        ("[1]\n", "must be a mapping"),
    ],
)
def test_what_is_wrong_ends_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        given(tmp_path, text, "--output", "x")
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        workload_file.parsed(program(), ["--output", "x", "--workload", str(tmp_path / "missing.yaml")])
    assert "No such file" in capsys.readouterr().err
