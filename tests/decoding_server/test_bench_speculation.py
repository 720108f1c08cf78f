"""The speculation benchmark: its shapes, its arithmetic, and a small grid on a scripted model, resumed."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_server import TOKENIZER

from decoding_server.bench.speculation import __main__ as bench
from decoding_server.bench.speculation import documents
from decoding_server.bench.speculation.copying import COPYING
from decoding_server.bench.speculation.datasets import datasets, read_jsonl, spread
from decoding_server.bench.speculation.grid import BUDGETS, COUPLED, METHODS, PLAIN, parsed, shape_text, shapes
from decoding_server.bench.speculation.measure import (
    Counts,
    draft_forwards,
    generations,
    memory_bound_speedup,
    run,
)
from decoding_server.bench.speculation.report import markdown, ratio_to_plain, summaries, write_plot
from decoding_server.bench.speculation.rows import Cell, Row, RowFile
from decoding_server.bench.speculation.theory import TheoryCheck
from models.scripted import scripted_runtime
from models.torch_runtime.speculation import Round
from strategies.speculative.verify import Verdict

LETTERS = list(b"abcdefgh")


@pytest.mark.parametrize("budget", [*BUDGETS, 1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("method", METHODS)
def test_every_shape_is_valid_and_within_its_budget(method: str, budget: int) -> None:
    found = shapes(method, budget, None, 9)
    assert found
    for body in found:
        speculation = parsed(body)
        assert speculation.name == method
        assert speculation.nodes(speculation.length) <= budget
        if budget in BUDGETS and method != "auto":
            assert speculation.nodes(speculation.length) == budget
    assert shapes(method, budget, None, 1) == found[:1]


@pytest.mark.parametrize("method", COUPLED)
def test_coupled_shapes_are_those_of_the_method(method: str) -> None:
    for budget in BUDGETS:
        bodies = shapes(method, budget, "draft", 9)
        assert all(parsed(body).coupled for body in bodies)
        bare = [{name: value for name, value in body.items() if name != "coupled"} for body in bodies]
        assert bare == shapes(method.split()[0], budget, "draft", 9)


def test_names_of_shapes() -> None:
    assert shape_text({"type": "rsd-c", "branching": [3, 1]}) == "3x1"
    assert shape_text({"type": "rsd-s", "width": 2, "length": 5}) == "2 wide, 5 deep"
    assert shape_text({"type": "chain", "length": 6}) == "6 long"
    assert shape_text({"type": "auto", "max_nodes": 6}) == ""


def test_datasets(tmp_path: Path) -> None:
    plain, packed = tmp_path / "questions.jsonl", tmp_path / "HumanEval.jsonl.gz"
    plain.write_text('{"question": "How many?"}\n\n{"question": "Why?", "answer": "x"}\n')
    packed.write_bytes(gzip.compress(b'{"prompt": "def f():\\n"}\n'))
    sets = datasets(packed, plain)
    assert list(sets) == ["humaneval", "gsm8k", "copying"]
    assert "def f():" in sets["humaneval"][0]
    assert [text.split("?")[0] for text in sets["gsm8k"]] == ["How many", "Why"]
    assert list(datasets(None, None)) == ["copying"]
    with pytest.raises(ValueError, match=r"questions\.jsonl, line 1: no text field 'prompt'"):
        read_jsonl(plain, "prompt")
    assert spread(list("abcdefgh"), 4) == list("aceg")
    assert spread(list("ab"), 4) == list("ab")
    assert len(set(COPYING)) == 12


def test_the_memory_bound_speedup_is_the_definition() -> None:
    """eta / (1 + L rho) for a method of L forwards a round; look-up costs nothing; auto what it picked."""
    counts = Counts(tokens=300, forwards=100, rounds=100)
    chain, lookup, auto = (parsed({"type": name}) for name in ("chain", "ngram", "auto"))
    forwards = draft_forwards(counts, chain)
    assert forwards == 400
    assert memory_bound_speedup(counts, forwards, 0.25) == pytest.approx(counts.block_efficiency / (1 + 4 * 0.25))
    assert draft_forwards(counts, lookup) == draft_forwards(counts, None) == 0
    counts.picked = {"off": 50, "ngram 1x1x1": 20, "a draft 3x1": 10, "early-exit 1": 20}
    assert draft_forwards(counts, auto) == 10 * 2 + 20


def row(method: str, rate: float, **changes: Any) -> Row:
    cell = {"dataset": "d", "temperature": 0.0, "concurrency": 1, "repeat": 0, "budget": 6} | changes
    cell["shape"] = changes.get("shape", json.dumps({"type": method, "length": 3}) if method != PLAIN else "null")
    values = {"tokens_per_second": rate, "block_efficiency": 2.0, "mbsu": 1.5, "acceptance_by_level": [0.5, 0.25]}
    return Row(Cell(method=method, **cell), values, 0.0)


def test_ratios_are_to_the_plain_cells_around() -> None:
    rows = [
        row("chain", 99.0),
        row(PLAIN, 10.0, budget=0),
        row("chain", 30.0, repeat=0),
        row(PLAIN, 77.0, budget=0, concurrency=4),
        row(PLAIN, 20.0, budget=0),
        row("ngram", 30.0),
    ]
    assert ratio_to_plain(rows, 0) == pytest.approx(9.9)  # none before: the one after
    assert ratio_to_plain(rows, 2) == pytest.approx(2.0)  # the mean of 10 and 20; not another block's
    assert ratio_to_plain(rows, 5) == pytest.approx(1.5)
    assert ratio_to_plain([row("chain", 1.0)], 0) is None


def test_the_best_shape_by_its_median() -> None:
    rows = []
    for repeat, (slow, fast) in enumerate([(11.0, 15.0), (90.0, 14.0), (12.0, 16.0)]):
        rows += [
            row(PLAIN, 10.0, budget=0, repeat=repeat),
            row("chain", slow, repeat=repeat, shape='{"type": "chain", "length": 6}'),
            row("chain", fast, repeat=repeat, shape='{"type": "chain", "length": 5}'),
        ]
    (one,) = summaries(rows).values()
    assert one["shape"] == '{"type": "chain", "length": 5}'
    assert one["ratio"] == pytest.approx(1.5)
    assert one["ratios"] == pytest.approx([1.4, 1.5, 1.6])


def test_what_coupling_costs_stands_beside_the_free_method(tmp_path: Path) -> None:
    rows = [row(PLAIN, 10.0, budget=0), row("chain", 15.0), row("chain coupled", 12.0), row("rsd-s coupled", 12.0)]
    setting = {"target": "a model", "drafter": "d", "ratio": 0.5, "prompts": 1, "max_tokens": 2, "repeats": 1,
               "machine": {"processor": "p", "cores": 2, "memory_gib": 1}, "commit": "c", "date": "x"}  # fmt: skip
    text = documents.summary(rows, setting, None, "every.md")
    assert "| d, T = 0, 1 at a time | chain, B = 6 | 0.50 / 0.50 | 2.00 / 2.00 |" in text
    assert "| prompts | at a time | plain, tokens/s | chain |" in text
    assert "rsd-s" not in text  # nothing to compare it with
    assert documents.slug("Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf") == "qwen2.5-coder-1.5b-instruct"


def distribution(context: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(context[-1] % 5)
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    logits[LETTERS] = torch.randn(len(LETTERS), generator=generator)
    return logits


def draft(context: Any) -> torch.Tensor:
    logits = distribution(context)
    logits[LETTERS[:3]] += 0.7
    return logits


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a small run; the model is scripted, the rest is real."""
    monkeypatch.setattr(
        bench.Benchmark, "load", lambda self: scripted_runtime(distribution, TOKENIZER, drafts={"draft": draft})
    )
    monkeypatch.setattr(bench, "resolve", lambda model: None)
    monkeypatch.chdir(tmp_path)
    return ["--budgets", "4", "--concurrency", "2", "--prompts", "2", "--max-tokens", "24", "--plain-every", "3",
            "--temperature", "1.0", "--output", str(tmp_path / "out")]  # fmt: skip


def test_a_small_grid_is_run_resumed_and_reported(grid: list[str], tmp_path: Path) -> None:
    page = tmp_path / "docs/strategies/speculation.md"
    page.parent.mkdir(parents=True)
    page.write_text("# Page\n\n<!-- speculation-scripted:begin -->\n<!-- speculation-scripted:end -->\n\nThe rest.\n")
    assert bench.main([*grid, "--theory", "--write-docs"]) == 0
    path = tmp_path / "out" / "rows.jsonl"
    rows = RowFile(path).rows
    methods = [one.cell.method for one in rows]
    assert methods[:9] == [
        PLAIN, "chain", "multi-draft", "spectr", PLAIN, "rsd-c", "rsd-s", "ngram", PLAIN,
    ]  # fmt: skip
    assert methods.count(PLAIN) == 4
    for one in rows:
        if one.cell.method.startswith("theory:"):
            assert one.values["tokens"]["rounds"] > 2
        else:
            assert one.values["tokens"] == 2 * 23
            assert one.values["block_efficiency"] >= 1.0
            assert (one.values["rounds"] > 0) == (one.cell.method not in (PLAIN, "auto")) or one.cell.method == "auto"
    docs = page.read_text()
    assert docs.startswith("# Page")
    assert docs.endswith("The rest.\n")
    assert "| copying, T = 1 | 2 |" in docs
    assert re.search(r"`auto`: \d\.\d\dx to \d\.\d\dx over 1 cells", docs)
    assert "Theory" in docs
    every = (page.parent / "measured/speculation-scripted.md").read_text()
    assert "| rsd-c |" in every
    assert "concurrency 2" in every
    # a cut-off run: the last line is half written, one cell is missing
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:40])
    bench.main(grid)
    resumed = RowFile(path).rows
    assert [one.cell.method for one in resumed[:5]] == [PLAIN, "chain", "multi-draft", PLAIN, "spectr"]
    assert {one.cell for one in resumed} == {one.cell for one in rows if not one.cell.method.startswith("theory:")}
    before = path.read_text()
    bench.main(grid)
    assert path.read_text() == before  # nothing was missing


@pytest.mark.parametrize("method", [name for name in METHODS if name != "auto"])
def test_theory_and_practice_agree(method: str) -> None:
    """Over some hundred rounds the means differ by less than 6 of their standard errors; the seeds decide the noise. A
    check that is told a wrong target is far off."""
    runtime = scripted_runtime(distribution, TOKENIZER, drafts={"draft": draft})
    check, wrong = TheoryCheck(method, every=1), TheoryCheck(method, every=1)

    def both(one: Round, logits: torch.Tensor, verdict: Verdict) -> None:
        check(one, logits, verdict)
        wrong(one, logits.roll(1, -1), verdict)

    runtime.engine.on_round = both
    try:
        body = shapes(method, 4, None, 1)[0]
        run(runtime, generations([[97, 98, 99 + i] for i in range(8)], 1.0, 100, parsed(body)), 4)
    finally:
        runtime.close()
    tokens, first = check.tokens.summary(), check.first_level.summary()
    assert tokens["rounds"] > 150
    for one in [tokens, *([first] if first["rounds"] else [])]:
        assert abs(one["expected"] - one["observed"]) < 6 * one["standard_error"]
    assert bool(first["rounds"]) == (method not in ("rsd-s", "ngram"))
    far = wrong.tokens.summary()
    assert abs(far["expected"] - far["observed"]) > 4 * far["standard_error"]


def test_the_load_stays_up_until_the_last_request_is_done() -> None:
    """Three requests, two at a time: beside the last one runs a fourth, which the counts leave out."""
    runtime = scripted_runtime(distribution, TOKENIZER, drafts={"draft": draft})
    asked = generations([[97, 98, 99 + i] for i in range(3)], 1.0, 100, None)
    try:
        counts = run(runtime, asked, 2)
        assert [one.meter.spend.output_tokens for one in asked] == [100, 100, 100]
        assert counts.tokens == 3 * 99
        assert 1.25 * counts.tokens < counts.throughput < 1.4 * counts.tokens  # the fourth begins with the third
        assert counts.tokens_per_second == pytest.approx(counts.throughput / counts.seconds)
        alone = run(runtime, generations([[97, 98, 99]], 1.0, 20, None), 8)
        assert alone.throughput == alone.tokens == 19  # never more at a time than there are requests
    finally:
        runtime.close()


def test_a_set_without_a_file_is_an_error(grid: list[str]) -> None:
    with pytest.raises(SystemExit, match="no file was given for humaneval"):
        bench.main([*grid, "--datasets", "humaneval"])


def test_the_plot(tmp_path: Path) -> None:
    rows = [row(PLAIN, 10.0, budget=0), row("chain", 15.0), row("ngram", 12.0), row("ngram", 13.0, budget=10)]
    pytest.importorskip("matplotlib")
    assert write_plot(rows, tmp_path / "new" / "plot.svg")
    assert "<svg" in (tmp_path / "new" / "plot.svg").read_text()
    assert not write_plot([], tmp_path / "none.svg")
    setting = {"target": "t", "drafter": "d", "ratio": 0.5, "prompts": 1, "max_tokens": 2, "repeats": 1,
               "machine": {"processor": "p", "cores": 2, "memory_gib": 1}, "commit": "c", "date": "x"}  # fmt: skip
    assert "![Speed over plain decoding by budget](plot.svg)" in markdown(rows, setting, "plot.svg")
