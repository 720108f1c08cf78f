"""What a row's key stands for: rows of other settings, data and models are never taken for a run's own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from runtime_server import serve_runtime
from scripted_answers import answering_runtime
from test_quality_bench import command, results_of, rows_of, run_here, written

from decoding_server.bench.code.tasks import code_dataset
from decoding_server.bench.dataset import fingerprint
from decoding_server.bench.endpoint import Unusable
from decoding_server.bench.identity import check_model, engine_of, made_by, model_of, shown
from decoding_server.bench.quality import study
from decoding_server.bench.quality.contenders import parsed
from decoding_server.bench.quality.measuring import Asking
from decoding_server.bench.quality.tasks import Source, load
from decoding_server.cli import main
from decoding_server.config import ServerConfig, load_config


def config_of(**values: Any) -> ServerConfig:
    return load_config(values, {}).config


# -- the engine's settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"dtype": "float32"},
        {"device": "cuda"},
        {"max_model_len": 64},
        {"draft_model": ["draft"]},
        {"value_head": "head"},
        {"reward_model": "reward"},
        {"runtime": "vllm"},
        {"chat_template": "{{ messages }}"},
        {"prefix_cache": False},
        {"verifier_url": "http://127.0.0.1:9/v"},
    ],
)
def test_settings_that_rows_depend_on(values: dict[str, Any]) -> None:
    assert engine_of(config_of(**values), remote=False).keys() == values.keys()
    # Where a server runs the model, they are its own affair.
    assert engine_of(config_of(**values), remote=True) == {}


def test_settings_that_rows_do_not_depend_on() -> None:
    given = config_of(port=1, api_key=["secret"], log_level="debug", dtype="auto", metrics="off")
    assert engine_of(given, remote=False) == {}
    # Programs are judged here, whoever runs the model.
    assert engine_of(config_of(sandbox_test_seconds=9), remote=True) == {"sandbox_test_seconds": 9.0}


def test_a_config_file_counts_by_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("model: some/model\ndtype: float32\n")
    found = config_of(config=str(path))
    assert model_of(found, None, None) == "some/model"
    assert engine_of(found, remote=False) == engine_of(config_of(dtype="float32"), remote=False)
    assert model_of(config_of(), None, None) == "embedded"
    assert model_of(found, "http://x:1/v1/", "a") == model_of(found, "http://x:1", "a") == "http://x:1 a"


def test_files_count_by_content(tmp_path: Path) -> None:
    def engine(name: str, text: str) -> dict[str, Any]:
        (tmp_path / name).write_text(text)
        return engine_of(config_of(chat_template=str(tmp_path / name)), remote=False)

    assert engine("a", "x") == engine("b", "x") != engine("a", "y")
    head = tmp_path / "head"
    head.mkdir()
    (head / "value_head.json").write_text("1")
    before = engine_of(config_of(value_head=str(head)), remote=False)
    (head / "value_head.json").write_text("2")
    assert engine_of(config_of(value_head=str(head)), remote=False) != before


def test_no_folder_and_no_address_is_published() -> None:
    engine = engine_of(
        config_of(draft_model=["/home/me/draft"], reward_model="/home/me/prm", verifier_url="http://me:pw@host/v"),
        remote=False,
    )
    assert shown(engine) == {"draft_model": ["draft"], "reward_model": "prm", "verifier_url": "given"}


def test_other_engine_settings_are_measured_anew(tmp_path: Path) -> None:
    given = command(tmp_path, "--strategy", "greedy", tasks=2)
    assert run_here(given, dtype="float32") == 0
    first = rows_of(tmp_path)
    assert results_of(tmp_path)["run"]["engine"] == {"dtype": "float32"}
    assert run_here(given, dtype="float32") == 0
    assert rows_of(tmp_path) == first
    assert run_here([*given, "--count", "1"], dtype="bfloat16", max_model_len=64) == 0
    assert len(rows_of(tmp_path)) == len(first) + 1
    assert results_of(tmp_path)["rows"] == 1
    assert results_of(tmp_path)["run"]["engine"] == {"dtype": "bfloat16", "max_model_len": 64}


# -- the model behind an address ---------------------------------------------------------------------------------------


def test_another_model_behind_an_address_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with serve_runtime(answering_runtime()) as server:
        given = command(tmp_path, "--strategy", "greedy", "--base-url", server.url, tasks=2)
        assert main([*given, "--count", "1"]) == 0
        (run,) = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
        (out / "runs.jsonl").write_text(json.dumps({**run, "model": "another"}) + "\n")
        assert main(given) == 1
        printed = capsys.readouterr().out
        assert f"error: --output {out}" in printed
        assert "answers of another" in printed
        assert len(rows_of(tmp_path)) == 1
        # Rows of other settings are no hindrance.
        assert main([*given, "--max-tokens", "20"]) == 0


def test_models_of_rows() -> None:
    rows = [{"key": "a|1|d1", "run": "1"}, {"key": "a|2|d2", "run": "2"}, {"key": "a|3|d1"}]
    runs = [{"key": "1", "model": "one"}, {"key": "2", "model": "two"}]
    check_model("one", ["d1"], rows, runs, Path("out"))
    check_model("two", ["d2", "d3"], rows, runs, Path("out"))
    with pytest.raises(Unusable, match=r"--output out: .* of one, not of two"):
        check_model("two", ["d1", "d2"], rows, runs, Path("out"))


def test_runs_of_rows() -> None:
    runs = [{"key": str(i), "commit": commit} for i, commit in enumerate("bacd")]
    assert made_by([{"run": "2"}, {"run": "0"}], runs) == {**runs[2], "commits": ["b", "c"]}
    # Rows that don't name their run: the last one stands for them.
    assert made_by([{}], runs) == {**runs[3], "commits": ["d"]}
    assert made_by([{"run": "1"}, {}], runs) == {**runs[3], "commits": ["a", "d"]}
    assert made_by([{"run": "1"}], []) is None


# -- data and graders --------------------------------------------------------------------------------------------------


def digest_of(path: Path) -> str:
    settings = study.Settings(path.parent / "out", Source(str(path)), "m", Asking("forward_tokens", 9, 0.7))
    return study.Study(settings, load(settings.source), [parsed("greedy")], lambda *_: None).digest(parsed("greedy"))


def test_hidden_tests_are_part_of_the_data(tmp_path: Path) -> None:
    record = {"task_id": "HumanEval/0", "prompt": "def f(a):\n", "entry_point": "f", "test": "def check(c):\n    pass"}
    changed = {**record, "test": "def check(c):\n    assert c(1) == 2"}
    one, other = (written(tmp_path / f"{i}.jsonl", [found]) for i, found in enumerate((record, changed)))
    assert digest_of(one) != digest_of(other)
    assert code_dataset([record]).sha256 == load(Source(str(one))).sha256 != code_dataset([changed]).sha256


def test_records_are_known_by_their_content() -> None:
    assert fingerprint([{"a": 1, "b": 2}]) == fingerprint([{"b": 2, "a": 1}]) != fingerprint([{"a": 1, "b": 3}])
    assert fingerprint([{"image": object()}]) == fingerprint([{"image": object()}])


def test_whether_math_verify_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = command(tmp_path, "--strategy", "greedy", tasks=1)
    for there, words in ((True, "graded as math with math-verify;"), (False, "graded as math without math-verify;")):
        monkeypatch.setattr(study, "verifies", lambda there=there: there)
        assert run_here(given) == 0
        assert results_of(tmp_path)["run"]["math_verify"] is there
        assert words in (tmp_path / "out" / "table.md").read_text()
    assert len(rows_of(tmp_path)) == 2
