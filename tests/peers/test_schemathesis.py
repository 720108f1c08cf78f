"""Schemathesis against our own OpenAPI document: what the document promises is what a client gets.

For every operation a bounded number of examples, proper and improper, from one fixed seed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from peer_server import PeerServer, peer_server, strict_json

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

EXAMPLES = 10
"""Of each operation and mode."""
TIMEOUT = 20.0


@pytest.fixture(scope="module")
def documented() -> Iterator[PeerServer]:
    with peer_server({}, max_model_len=256) as server:
        yield server
        server.wait_until_idle(5.0)
        assert server.ask("/v1/completions", "fine").text == "fine"


@pytest.fixture
def document(documented: PeerServer) -> Any:
    schema = schemathesis.openapi.from_url(f"{documented.url}/openapi.json")
    schema.config.update(base_url=documented.url, request_timeout=TIMEOUT)
    return schema


def one_envelope(response: Any) -> None:
    """Every failure is {"error": {message, type, param, code}} and JSON."""
    if response.status_code < 400:
        return
    assert response.headers["content-type"][0] == "application/json"
    body = strict_json(response.content)
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}


MODES = pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)


def every_operation(document: Any, mode: Any, check: Callable[[Any, Any], None]) -> set[str]:
    """Calls `check(case, response)` for examples of every operation; the operations that there are."""
    seen: set[str] = set()
    for result in document.get_all_operations():
        operation = result.ok()
        if mode is schemathesis.GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing that could be wrong

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            check(case, case.call(timeout=TIMEOUT))

        run()
        seen.add(operation.label)
    return seen


@MODES
def test_every_operation_answers_properly(document: Any, mode: Any) -> None:
    """In time, never with a 5xx, in the one envelope; what is declared has the declared form."""

    def check(case: Any, response: Any) -> None:
        one_envelope(response)
        case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])

    assert every_operation(document, mode, check) >= {"POST /v1/completions", "POST /v1/chat/completions"}


def test_what_the_document_forbids_is_refused(document: Any) -> None:
    """The server is as strict as its document."""

    def check(case: Any, response: Any) -> None:
        case.validate_response(response, checks=[negative_data_rejection])

    assert every_operation(document, schemathesis.GenerationMode.NEGATIVE, check)


@MODES
def test_every_answer_is_declared(document: Any, mode: Any) -> None:
    """Every status and every content type that occurs is in the document: the errors' and the stream's too."""

    def check(case: Any, response: Any) -> None:
        case.validate_response(response, checks=[status_code_conformance, content_type_conformance])

    assert every_operation(document, mode, check)


def test_what_never_happens_is_not_declared(documented: PeerServer) -> None:
    """422, the framework's own answer, is not ours; statuses that clients should expect are there."""
    paths = documented.http.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            declared = set(operation["responses"])
            assert "422" not in declared, (method, path)
            if method == "post":
                assert declared & {"default", "4XX", "400"}, (method, path)
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert set(paths[path]["post"]["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
