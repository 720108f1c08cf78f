"""What the fuzz tests share: a proper body of every kind, its route, and the contract of every answer."""

import re
from typing import Any

import httpx
import pytest
from peer_server import PeerServer, strict_json
from pydantic import BaseModel

from decoding_server.app import BODIES

TIMEOUT = 20.0
ODD_TEXT = [
    "",
    "\x00",
    "a\x00b",
    "\ud800",
    "x\udfffy",
    "\u2028\u2029\x85",
    "\ufeff",
    "\ufffd\uffff",
    "e\u0301\u200d\u202e",
    "\N{GRINNING FACE}" * 3,
    "<|end|>",
    "<|user|>|",
    "|",
    "#0",
    "%s%n{}${x}{{1/0}}",
    "../../etc/passwd",
    "A" * 3000,
]
NEEDED: dict[str, dict[str, Any]] = {
    "CompletionRequest": {"prompt": "?|", "max_tokens": 2},
    "ChatCompletionRequest": {"messages": [{"role": "user", "content": "?"}], "max_tokens": 2},
    "TokenizeRequest": {"prompt": "a"},
    "DetokenizeRequest": {"tokens": [97]},
    "ResponsesRequest": {"input": "?", "max_output_tokens": 2},
    "EmbeddingRequest": {"input": "a"},
}
kinds = pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)


def path_of(kind: type[BaseModel], server: PeerServer) -> str:
    """The route whose OpenAPI entry takes this body."""
    document = server.http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith(f"/{kind.__name__}"):
            return str(path)
    raise AssertionError(f"no route takes {kind.__name__}")


def check(response: httpx.Response, body: Any = None) -> int:
    """The contract of every answer; `param` is null or begins with a field of the body, or one that it lacks."""
    assert response.status_code in (200, 400, 404, 413), response.text[:500]
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("\n\n")
        return response.status_code
    answer = strict_json(response.content)
    if response.status_code == 200:
        assert answer.get("error") is None
        return 200
    assert list(answer) == ["error"]
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"]
    if error["param"] is not None and body is not None:
        known = {name.encode("ascii", "backslashreplace").decode() for name in body}
        field = error["param"]
        root = re.split(r"[.\[]", field)[0]
        missing = error["code"] == "missing_required_parameter" or root in ("prompt", "messages", "tokens", "input")
        assert field in known or root in known or missing, (error, sorted(known))
    return response.status_code
