"""Whatever the body, the answer is a 200 or a 4xx with the error body: never a 500, never a hang."""

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoding_server.protocol.chat import ChatCompletionRequest
from decoding_server.protocol.completions import CompletionRequest
from decoding_server.protocol.unsupported import NEUTRAL

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**31, 2**63, -(2**63), 2**64, 10**25, 0.5, -1.0, 1e300, 5e-324, "", "a|", "~", "auto", "text"])
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "a\udfffb", "\x00", "\u2028", "<|end|>", "\N{GRINNING FACE}"])
)
KEYS = ["role", "content", "type", "text", "budget", "1", "seconds"]
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
GOOD = {
    "prompt": st.sampled_from(["a|", ["a|", "b|"], [97, 124], [[97, 124], [98]]]),
    "messages": st.just([{"role": "user", "content": "hi"}]),
    "max_tokens": st.integers(1, 5),
    "temperature": st.floats(0, 2),
    "stream": st.booleans(),
    "logprobs": st.sampled_from([0, 3, True]),
    "echo": st.booleans(),
    "n": st.integers(1, 3),
    "seed": st.integers(-(2**63), 2**64 - 1),
    "logit_bias": st.dictionaries(st.integers(0, 261).map(str), st.floats(-100, 100), max_size=3),
    "stop": st.text(max_size=2),
}


@st.composite
def bodies(draw, kind):
    """A proper body in which some fields are missing, some are arbitrary."""
    needed = "prompt" if kind is CompletionRequest else "messages"
    names = [*kind.model_fields, *NEUTRAL[kind], "unknown"]
    body = {needed: draw(GOOD[needed]), "max_tokens": 2}
    for name in draw(st.lists(st.sampled_from(names), max_size=5, unique=True)):
        body[name] = draw(GOOD[name] | VALUES if name in GOOD else VALUES)
    return body


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/completions", CompletionRequest), ("/v1/chat/completions", ChatCompletionRequest)]
)
def test_no_body_breaks_the_server(server, path, kind):
    statuses = set()

    with httpx.Client(base_url=server.url, timeout=20) as http:

        @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(bodies(kind))
        def check(body):
            response = http.post(path, content=json.dumps(body).encode())
            statuses.add(response.status_code)
            assert response.status_code in (200, 400, 404), response.text
            if response.status_code != 200:
                error = response.json()["error"]
                assert error["type"] == "invalid_request_error"
                assert error["message"]
            elif body.get("stream"):
                assert response.text.endswith("data: [DONE]\n\n")
                assert '"error":' not in response.text

        check()
    assert statuses >= {200, 400}  # the examples reach both sides of the checks
