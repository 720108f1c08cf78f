"""Records come from a hostile process: only what may come next counts."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from strategies.sandbox.outcome import Outcome
from strategies.sandbox.records import MAX_RESULTS, Records


def fed(units: int, *records: Any) -> Records:
    reader = Records(units)
    for number, record in enumerate(records):
        line = record if isinstance(record, bytes) else json.dumps(record).encode()
        reader.feed(line + b"\n", float(number))
    return reader


def start(i: Any) -> dict[str, Any]:
    return {"i": i, "ev": "start"}


def value(i: Any, number: int) -> dict[str, Any]:
    return {"i": i, "ev": "value", "v": ["int", str(number)]}


def test_the_first_end_of_a_started_unit_counts() -> None:
    reader = fed(2, value(0, 9), start(0), value(0, 1), value(0, 2), value(1, 3), start(1), value(1, 4), value(1, 5))
    assert [seen.value for seen in reader.observations] == [["int", "1"], ["int", "4"]]
    assert reader.complete
    assert [seen.seconds for seen in reader.observations] == [1.0, 1.0]


def test_what_is_no_record_is_ignored() -> None:
    noise = [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"i": 0.0, "ev": "value", "v": ["int", "1"]}',
        b'{"i": true, "ev": "value", "v": ["int", "1"]}',
        b'{"i": ' + b"9" * 5000 + b"}",
        b'{"i": 0, "ev": "value", "v": NaN}',
        b'{"i": 0, "ev": "value", "v": "int"}',
        b'{"i": 0, "ev": "unheard of"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ]
    reader = fed(1, start(0), *noise, value(0, 7))
    assert [seen.value for seen in reader.observations] == [["int", "7"]]


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", json.dumps(start(0)).encode(), b"{}"])))
def test_any_bytes(chunks: list[bytes]) -> None:
    reader = Records(3)
    for chunk in chunks:
        reader.feed(chunk, 0.0)
    reader.finish(1, None, 0.0)
    assert not reader.complete


def test_size_is_bounded() -> None:
    reader = Records(1)
    for _ in range(100):
        reader.feed(b"x" * 65536, 0.0)
    assert reader.too_large
    assert len(reader._pending) <= MAX_RESULTS


def test_a_syntax_error_stands_for_all_units() -> None:
    reader = fed(3, start(0), {"i": 0, "ev": "syntax", "message": "invalid", "line": 4})
    assert [seen.outcome for seen in reader.observations] == [Outcome.SYNTAX_ERROR] * 3
    assert reader.observations[2].line == 4


def test_texts_are_bounded_and_printable() -> None:
    record = {"i": 0, "ev": "exc", "type": "E" * 999, "message": "a\x1b[31m\ud800\nb" + "x" * 999, "line": -1}
    [seen] = fed(1, start(0), record).observations
    assert (len(seen.error), len(seen.message), seen.line) == (100, 200, None)
    assert seen.message.startswith("a\ufffd[31m\ufffd\nb")


def test_a_kill_that_was_not_ours() -> None:
    for cpu_exhausted, outcome in ((False, Outcome.OOM), (True, Outcome.TIMEOUT)):
        reader = fed(2, start(0))
        reader.finish(-9, None, 0.0, cpu_exhausted)
        assert [seen.outcome for seen in reader.observations] == [outcome]


def test_death_before_the_first_start_is_no_result() -> None:
    reader = Records(1)
    reader.finish(139, None, 0.0)
    assert reader.observations == []
