"""Rows on disk, and how cells are cut into waves."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from decoding_server.bench.rows import RowFile
from decoding_server.bench.sampling_study.texts import contexts, programs, spread
from decoding_server.bench.sampling_study.waves import cut
from strategies.sampling.grammar_repetition.languages import LANGUAGES


def test_rows_survive_a_crash_inside_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"key": "a", "text": "x\u2028\x85y"}, {"key": "b", "text": "é"}]
    RowFile(path).append(rows)
    with path.open("a") as sink:
        sink.write('{"key": "c", "te')
    again = RowFile(path)
    assert again.rows == rows
    assert again.has(["a", "b"])
    assert not again.has(["a", "c"])
    again.append([{"key": "b", "text": "second"}, {"key": "c", "text": "new"}])
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [*rows, {"key": "c", "text": "new"}]


@given(st.integers(0, 200), st.integers(1, 50))
def test_parts_are_few_and_even(count: int, size: int) -> None:
    parts = cut(range(count), size)
    assert [item for part in parts for item in part] == list(range(count))
    lengths = [len(part) for part in parts]
    assert len(parts) == -(-count // size)
    assert max(lengths, default=0) <= size
    assert max(lengths, default=0) - min(lengths, default=0) <= 1


@given(st.integers(0, 60), st.integers(1, 80))
def test_spread_keeps_order_and_starts_at_the_first(count: int, limit: int) -> None:
    found = spread(range(count), limit)
    assert len(found) == min(count, limit)
    assert found == sorted(set(found))
    assert found[:1] == list(range(count))[:1]


def test_prompts() -> None:
    found = contexts()
    assert len(found) == len({one.text for one in found}) == 200
    assert [one.kind for one in found[:4]] == ["prose", "code", "maths", "chat"]
    assert [sum(one.kind == kind for one in found) for kind in ("prose", "code", "maths", "chat")] == [50] * 4
    loops = programs()
    assert len(loops) == len({one.text for one in loops}) == 60
    assert {one.language for one in loops} == set(LANGUAGES) - {"tsx"}
