"""The benchmark of sampling: every table is filled, and the docs get it between their markers."""

import re
from pathlib import Path

import pytest

from decoding_server.bench import sampling_cost


def test_every_table_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_cost, "PASSAGES", sampling_cost.PASSAGES[:1])
    monkeypatch.setattr(sampling_cost, "GRAMMAR_TOKENS", 60)
    monkeypatch.setattr(sampling_cost, "STEP_ROWS", 2)
    monkeypatch.setattr(sampling_cost, "CONTEXT", 16)
    table = sampling_cost.report(1, shapes=((50_000, 3), (49_152, 2)))
    for shape in ("50,000 x 3", "49,152 x 2"):
        assert len(re.findall(rf"^\| {shape} \| (?:[^|]+ \| ){{6}}[\d.]+ \|$", table, re.MULTILINE)) == 10
    steps = r"^\| (?:none|Bregman).* \| [\d.]+ \| [\d.]+ \([\d.]+\) \| [\d.]+ % \|$"
    assert len(re.findall(steps, table, re.MULTILINE)) == 5
    assert len(re.findall(r", level (?:line|statement|both) \| 59 \|", table)) == 6


def test_the_docs_get_the_table_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{sampling_cost.BEGIN}\nold\n{sampling_cost.END}\nafter\n")
    sampling_cost.write_docs("new\n", page)
    assert page.read_text() == f"before\n{sampling_cost.BEGIN}\nnew\n{sampling_cost.END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="sampling-cost:begin"):
        sampling_cost.write_docs("new\n", page)
