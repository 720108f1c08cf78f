"""The vectors of the specification that concern the sandbox: codec, judging, classification."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from strategies.sandbox.checks import check_call
from strategies.sandbox.inside.codec import encode
from strategies.sandbox.judge import judge
from strategies.sandbox.outcome import Outcome
from strategies.sandbox.records import Observation, Records

VECTORS = {
    vector["fn"]: vector
    for vector in json.loads(Path(__file__).with_name("sandbox_vectors.json").read_text(encoding="utf-8"))["vectors"]
}


def test_codec() -> None:
    vector = VECTORS["enc"]
    assert encode(ast.literal_eval(vector["input"]["python_repr"])) == vector["expected"]


def test_judge() -> None:
    vector = VECTORS["judge"]
    verdicts = [
        judge(check_call("f(0)", expected, "f"), [Observation(None, value)]).passed
        for value, expected in vector["input"]["cases"]
    ]
    assert verdicts == vector["expected"]


RUNS = list(zip(VECTORS["classify"]["input"]["runs"], VECTORS["classify"]["expected"], strict=True))


@pytest.mark.parametrize(("run", "expected"), RUNS)
def test_classify(run: dict[str, Any], expected: list[str]) -> None:
    records = Records(run["n_tests"])
    records.feed(b"".join(json.dumps(record).encode() + b"\n" for record in run["records"]), 0.0)
    records.finish(run["rc"], run["killed"], 1.0)
    classes: list[str] = [seen.outcome or "value" for seen in records.observations]
    classes += [Outcome.NOT_RUN] * (run["n_tests"] - len(classes))
    assert classes == expected
