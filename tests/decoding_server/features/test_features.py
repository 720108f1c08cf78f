"""Where the documentation's tables come from: probes of our own code, the peers' file, schemas, and marked blocks."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field
from scripted_server import make_runtime

from decoding_server.app import create_app
from decoding_server.config import load_config
from decoding_server.features.__main__ import ROOT, main
from decoding_server.features.comparison import load
from decoding_server.features.fields import declared, range_of, type_of
from decoding_server.features.markers import MarkerError, block, names, replaced
from decoding_server.features.operations import errors, metrics
from decoding_server.features.parameters import table, tables
from decoding_server.features.routes import routes
from decoding_server.features.strategy_matrix import matrix
from decoding_server.features.strategy_notes import documented, read_notes
from decoding_server.features.support import honoured, served, unknown_field

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def test_the_routes_are_those_of_the_application():
    runtime = make_runtime()
    try:
        document = create_app(runtime, load_config({}, {}).config).openapi()
    finally:
        runtime.close()
    served_routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert {route.name for route in routes()} == served_routes


def test_generating_routes_come_first_and_know_their_body():
    first = routes()[0]
    assert (first.name, first.body.__name__) == ("POST /v1/chat/completions", "ChatCompletionRequest")
    assert {route.path for route in routes() if route.method == "GET" and route.body is not None} == set()


@pytest.mark.parametrize(
    ("path", "fields", "mark"),
    [
        (COMPLETIONS, {"temperature": 0.5}, "●"),
        (COMPLETIONS, {"temperature": 0.5, "no_such_field": 1}, "◐"),
        (COMPLETIONS, {"no_such_field": 1}, "–"),
        (COMPLETIONS, {"user": "ann"}, "○"),
        (COMPLETIONS, {"store": True}, "✗"),
        (COMPLETIONS, {"stream": True, "stream_options": {"include_usage": True}}, "●"),
        (COMPLETIONS, {"decoding": {"no_such_slot": 1}}, "✗"),
        (COMPLETIONS, {"decoding": "no_such_strategy"}, "✗"),
        (COMPLETIONS, {"decoding": {"sampler": "mirostat"}}, "●"),
        (CHAT, {"reasoning_effort": "low"}, "✗"),
        (CHAT, {"echo": True}, "✗"),
        ("/v1/nothing", {"temperature": 0.5}, "–"),
    ],
)
def test_a_mark_is_what_becomes_of_the_field(path, fields, mark):
    assert honoured(path, fields) == mark


def test_marks_of_routes():
    assert served(["GET /health"]) == "●"
    assert served(["GET /health", "POST /invocations"]) == "◐"
    assert served(["POST /invocations"]) == "–"


def test_unknown_fields_are_told_and_in_strict_mode_refused():
    assert (unknown_field(CHAT, "warning"), unknown_field(CHAT, "refusal")) == ("●", "●")


PEERS = """
read = 2026-01-02
peers = [{ name = "one", version = "1" }, { name = "two", version = "2" }]
[[tables]]
title = "Fields"
endpoint = "/v1/completions"
[[tables.rows]]
name = "a | b"
body = { temperature = 0.5 }
peers = ["◐ some", ""]
readme = true
[[tables.rows]]
name = "limited"
body = { suffix = "x" }
limited = "some models"
peers = ["●", "–"]
[[tables.rows]]
name = "refused, so nothing to limit"
body = { store = true }
limited = "some models"
peers = ["●", "–"]
"""


def test_the_comparison_puts_computed_marks_beside_the_file(tmp_path):
    path = tmp_path / "peers.toml"
    path.write_text(PEERS)
    comparison = load(path)
    assert "| a \\| b | ● | ◐ |  |" in comparison.compact()
    assert "limited" not in comparison.compact()
    full = comparison.full()
    assert "| a \\| b | ● | ◐ some |  |" in full
    assert "| limited | ◐ some models | ● | – |" in full
    assert "| refused, so nothing to limit | ✗ | ● | – |" in full
    assert "Read on 2026-01-02" in full
    assert "one 1, two 2" in full
    path.write_text(PEERS.replace('["◐ some", ""]', '["◐ some"]'))
    with pytest.raises(ValueError, match="1 cells, not 2"):
        load(path)


def test_the_peers_file_holds_marks_only_of_the_legend():
    comparison = load(ROOT / "docs/peers.toml")
    cells = [cell for rows in comparison.tables.values() for row in rows for cell in row.peers]
    assert {cell[:1] for cell in cells} <= {"●", "◐", "○", "✗", "–", ""}
    assert len(comparison.peers) == 7


class Inner(BaseModel):
    size: int = 3


class Shared(BaseModel):
    scale: Annotated[float, Field(gt=0, le=2)] | None = None


class Body(Shared):
    inner: Inner | None = None
    mode: Literal["a", "b"] = "a"
    ids: list[Annotated[int, Field(ge=0)]] = []
    name: Annotated[str, Field(min_length=1, max_length=9)] | None = None
    text: Annotated[str | None, Field(alias="json")] = None


def test_types_and_ranges_of_schemas():
    fields = Body.model_json_schema()["properties"]
    assert {name: type_of(schema) for name, schema in fields.items()} == {
        "scale": "number",
        "inner": "[Inner](#inner)",
        "mode": "`a`, `b`",
        "ids": "list of integer",
        "name": "string",
        "json": "string",
    }
    ranges = {name: limits for name, schema in fields.items() if (limits := range_of(schema))}
    assert ranges == {"scale": "> 0, ≤ 2", "ids": "each ≥ 0", "name": "not empty, at most 9 characters"}
    assert range_of({"minimum": -(2**63), "maximum": 2**64 - 1}) == "≥ -2^63, ≤ 2^64 - 1"


def test_fields_belong_to_the_class_that_declares_them():
    assert declared(Body) == {Body: ["inner", "mode", "ids", "name", "json"], Shared: ["scale"]}


def test_blocks_are_replaced_and_nothing_else():
    document = f"before\n{block('one', 'old')}\nbetween\n{block('two', 'old')}\nafter\n"
    changed = replaced(document, {"one": lambda: "new", "two": lambda: "old"})
    assert changed == document.replace("old", "new", 1)
    assert names(changed) == ["one", "two"]
    with pytest.raises(MarkerError, match="no block 'two'"):
        replaced(document, {"one": lambda: "new"})
    with pytest.raises(MarkerError, match="begin as"):
        names("<!-- one:begin -->\nnever ended\n")


def test_blocks_of_other_programs_stay_where_they_may_be():
    document = f"{block('one', 'old')}\n{block('measured', 'theirs')}\n"
    assert replaced(document, {"one": lambda: "new"}, foreign=True) == document.replace("old", "new")


class Outer(BaseModel):
    """A strategy with what schemas can hold."""

    inner: Inner = Field(default=Inner(), description="unused")
    shares: Annotated[tuple[float, ...], Field(description="Shares.")] = (0.5, 1.0)
    on: bool = True
    least: Annotated[float | None, Field(ge=0, description="Least.")] = None
    kind: Literal["a", "b"] = "b"
    needed: Annotated[int, Field(gt=0, description="No default.")]


def test_parameters_of_a_strategy_are_those_of_its_schema():
    assert table(Outer).splitlines()[2:] == [
        "| `inner.size` | integer | `3` |  |  |",
        "| `shares` | list of number | `0.5`, `1` |  | Shares. |",
        "| `on` | boolean | `true` |  |  |",
        "| `least` | number | – | ≥ 0 | Least. |",
        "| `kind` | `a`, `b` | `b` |  |  |",
        "| `needed` | integer | required | > 0 | No default. |",
    ]


def test_shared_parameters_are_in_a_table_of_their_own():
    rebase = tables()["parameters-rebase"]()
    assert "| `samples` | integer | `16` |" in rebase
    assert "| `final` |" in rebase  # of the base that only some share
    for name, parameter in (("steps", "step_tokens"), ("values", "value"), ("searches", "trace")):
        assert f"| `{parameter}` |" not in rebase
        assert f"| `{parameter}` |" in tables()[f"parameters-{name}"]()
    assert tables()["parameters-code-greedy"]() == "No parameters of its own."


def test_every_parameter_says_what_it_means():
    empty = [(name, row) for name, make in tables().items() for row in make().splitlines()[2:] if row.endswith("|  |")]
    assert empty == []


def test_the_matrix_has_every_strategy_once_and_is_short():
    made = matrix(read_notes(ROOT / "docs/strategies.toml"))
    rows = [line for line in made.splitlines() if line.startswith("| [")]
    assert len(rows) <= 16
    for name in documented():
        assert sum(f"[`{name}`]" in row for row in rows) == 1, name
    (greedy,) = [row for row in rows if "[`code-greedy`]" in row]
    assert [cell.strip() for cell in greedy.split("|")[2:9]] == ["`search`", "–", "◐", "●", "●", "–", "●"]
    (chain,) = [row for row in rows if "[`chain`]" in row]
    assert [cell.strip() for cell in chain.split("|")[2:10]] == ["`speculation`", "●", "●", "●", "●", "●", "●", "torch"]


def test_notes_and_strategies_have_to_agree(tmp_path):
    path = tmp_path / "strategies.toml"
    path.write_text('[nonsense]\npage = "a.md"\nuse = "never"\ncost = "all"\n')
    with pytest.raises(ValueError, match="nonsense"):
        read_notes(path)


def test_write_and_check(tmp_path, capsys):
    path = tmp_path / "document.md"
    path.write_text(block("errors", "old"))
    assert main(["--check", str(path)]) == 1
    assert main(["--write", str(path)]) == 0
    assert main(["--check", str(path)]) == 0
    assert path.read_text() == block("errors", errors())
    path.write_text(block("nonsense", ""))
    assert main(["--write", str(path)]) == 2
    assert "no block 'nonsense'" in capsys.readouterr().err


def test_the_tables_for_operators():
    assert "| 429 | `queue_full` | `rate_limit_error` | the queue is full | `retry-after` |" in errors()
    assert "| `decoding:request_failures_total` | counter | model_name, strategy, status |" in metrics()
    assert "| `decoding:num_requests_running` | gauge | model_name |" in metrics()
