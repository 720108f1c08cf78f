"""Rows 6, 11, 12 and 24: token limits, the context's length, biases that work, fields that count."""

import json
from typing import Any

import httpx
import pytest
from peer_model import END, play
from peer_server import CHAT, COMPLETIONS, ENDPOINTS, PeerServer, error_of, events

CONTEXT = 512
"""Of the fixture's server."""

both = pytest.mark.parametrize("path", ENDPOINTS)
streamed = pytest.mark.parametrize("stream", [False, True])


@both
@streamed
def test_row_6_max_completion_tokens_counts(peer: PeerServer, path: str, stream: bool) -> None:
    """row 6: vllm-project/vllm-ascend#15931"""
    assert peer.ask(path, play(*"abcdef"), max_completion_tokens=3, stream=stream).end == ("abc", "length")


@both
@pytest.mark.parametrize("limit", [1, 2, 5, 6, 7])
def test_row_6_of_two_limits_the_newer_name_wins(peer: PeerServer, path: str, limit: int) -> None:
    """row 6: vllm-project/vllm-ascend#15931, with max_tokens beside it, n > 1, limits around the length."""
    for other in (1, 50):
        reply = peer.ask(path, play(*"abcdef"), max_completion_tokens=limit, max_tokens=other, n=2)
        assert reply.texts == ["abcdef"[:limit]] * 2
        assert reply.finish_reasons == (["length"] * 2 if limit <= 6 else ["stop"] * 2)
        assert reply.usage is not None
        assert reply.usage["completion_tokens"] == 2 * limit


@both
def test_row_6_limits_that_are_none(peer: PeerServer, path: str) -> None:
    """row 6: vllm-project/vllm-ascend#15931: null is absent; zero is refused under the name that was used."""
    assert peer.ask(path, play(*"abcdef"), max_completion_tokens=None, max_tokens=2).text == "ab"
    body = {"prompt": "a|", "messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 0}
    body.pop("messages" if path == COMPLETIONS else "prompt")
    assert error_of(peer.post(path, body), 400)["param"] == "max_completion_tokens"


def _too_long(response: httpx.Response) -> str | None:
    error = error_of(response, 400)
    assert error["code"] == "context_length_exceeded"
    return str(error["param"])


@streamed
@pytest.mark.parametrize("as_text", [False, True])
def test_row_11_prompts_around_the_limit(peer: PeerServer, stream: bool, as_text: bool) -> None:
    """row 11: vllm-project/vllm#765, #16445: L + 1 and L leave no room, L - 1 leaves one token; nothing hangs."""
    for length in (CONTEXT + 1, CONTEXT, 10 * CONTEXT):
        prompt: Any = "a" * length if as_text else [97] * length
        response = peer.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 1, "stream": stream}, timeout=5)
        assert _too_long(response) == "prompt"
        assert _too_long(peer.post(COMPLETIONS, {"prompt": prompt, "stream": stream}, timeout=5)) == "prompt"
    prompt = "a" * (CONTEXT - 1) if as_text else [97] * (CONTEXT - 1)
    reply = peer.complete(
        prompt, max_tokens=1, stream=stream, stream_options={"include_usage": True} if stream else None
    )
    assert reply.finish_reasons == ["length"]
    assert reply.usage is not None
    assert reply.usage["total_tokens"] == CONTEXT
    assert _too_long(peer.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 2, "stream": stream})) == "max_tokens"


@streamed
def test_row_11_conversations_around_the_limit(peer: PeerServer, stream: bool) -> None:
    """row 11: vllm-project/vllm#16445 on chat; without max_tokens the answer takes what is left."""
    frame = 3  # <|user|>, <|end|>, <|assistant|>
    for length, status in ((CONTEXT - frame - 1, 200), (CONTEXT - frame, 400), (CONTEXT - frame + 1, 400)):
        body = {"messages": [{"role": "user", "content": "?" * length}], "stream": stream}
        for fields in ({}, {"max_tokens": 1}, {"max_completion_tokens": 1}):
            response = peer.post(CHAT, body | fields, timeout=5)
            if status == 400:
                assert _too_long(response) == "messages"
            elif stream:
                assert sum(bool(c["choices"][0]["delta"].get("content")) for c in events(response.text)) == 1
            else:
                assert response.json()["usage"]["total_tokens"] == CONTEXT
                assert response.json()["choices"][0]["finish_reason"] == "length"


@both
def test_row_11_an_answer_ends_at_the_limit(peer: PeerServer, path: str) -> None:
    """row 11: vllm-project/vllm#765: an endless answer without a limit of its own, on the endpoint that sets none."""
    room = CONTEXT - (2 if path == COMPLETIONS else 4)
    reply = peer.ask(path, "?", max_tokens=None if path == CHAT else room)
    assert (len(reply.text), reply.finish_reasons) == (room, ["length"])
    for name in ("max_tokens", "max_completion_tokens"):
        body = {"prompt": "?|"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "?"}]}
        assert _too_long(peer.post(path, {**body, name: room + 1})) == name


def test_row_11_one_long_prompt_of_a_batch(peer: PeerServer) -> None:
    """row 11: vllm-project/vllm#765: all are refused before any runs."""
    before = peer.status.prompt_tokens
    assert _too_long(peer.post(COMPLETIONS, {"prompt": ["a|", "b" * 600, "c|"]})) == "prompt"
    assert peer.status.prompt_tokens == before


def test_row_11_scoring_needs_no_room(peer: PeerServer) -> None:
    """row 11: vllm-project/vllm#16445: max_tokens 0 with echo takes a prompt that fills the context."""
    body = {"max_tokens": 0, "echo": True, "logprobs": 0}
    assert len(peer.complete([97] * CONTEXT, **body).arrays["tokens"]) == CONTEXT
    assert _too_long(peer.post(COMPLETIONS, {"prompt": [97] * (CONTEXT + 1), **body})) == "prompt"


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1, 4 * CONTEXT])
@pytest.mark.parametrize("limit", [-1, 1, 7, CONTEXT - 1])
@pytest.mark.parametrize("side", ["left", "right", None])
def test_row_11_truncation(peer: PeerServer, length: int, limit: int, side: str | None) -> None:
    """row 11: vllm-project/vllm#765: a prompt that is cut on request fits."""
    prompt = [97 + i % 26 for i in range(length)]
    body = {"prompt": prompt, "truncate_prompt_tokens": limit, "truncation_side": side, "max_tokens": 1}
    response = peer.post(COMPLETIONS, body | {"return_token_ids": True})
    assert response.status_code == 200, response.text
    kept = min(length, CONTEXT - 1 if limit == -1 else limit)
    choice, usage = response.json()["choices"][0], response.json()["usage"]
    assert choice["prompt_token_ids"] == (prompt[:kept] if side == "right" else prompt[-kept:])
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (kept, 1)


def test_row_11_truncation_on_chat_and_its_own_limits(peer: PeerServer) -> None:
    """row 11: vllm-project/vllm#765; a longest prompt that leaves no room is refused too."""
    body = {"messages": [{"role": "user", "content": "x" * 600}], "max_tokens": 5}
    reply = peer.post(CHAT, {**body, "truncate_prompt_tokens": 100}).json()
    assert reply["usage"]["prompt_tokens"] == 100
    assert peer.post(CHAT, {**body, "truncate_prompt_tokens": -1}).json()["usage"]["prompt_tokens"] == CONTEXT - 5
    for limit in (0, -2, CONTEXT - 4, CONTEXT + 1):
        error = error_of(peer.post(CHAT, {**body, "truncate_prompt_tokens": limit}), 400)
        assert error["param"] == "truncate_prompt_tokens"


@both
@streamed
@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 2, "seed": 1}, {"top_k": 1}, {"n": 3}])
def test_row_12_logit_bias_decides(peer: PeerServer, path: str, stream: bool, fields: dict[str, Any]) -> None:
    """row 12: sgl-project/sglang#3059: +100 on one id is that id at every step; -100 is never."""
    reply = peer.ask(path, "%go", logit_bias={"113": 100}, max_tokens=8, stream=stream, **fields)
    assert set(reply.texts) == {"q" * 8}
    letters = {str(token): -100 for token in range(97, 123) if token not in (120, 121)}
    reply = peer.ask(path, "?", logit_bias=letters, max_tokens=30, stream=stream, **fields)
    assert set("".join(reply.texts)) <= {"x", "y"}


@both
def test_row_12_bias_for_and_against_the_end(peer: PeerServer, path: str) -> None:
    """row 12: sgl-project/sglang#3059; the end of sequence is a token like any other."""
    assert peer.ask(path, play(*"abc"), logit_bias={str(END): 100}, temperature=0).end == ("", "stop")
    reply = peer.ask(path, play(*"abc"), logit_bias={str(END): -100}, temperature=0, max_tokens=9)
    assert (reply.finish_reasons, reply.text[:3]) == (["length"], "abc")


@both
def test_row_12_a_bias_that_cannot_work_is_refused(peer: PeerServer, path: str) -> None:
    """row 12: sgl-project/sglang#3059"""
    body = {"prompt": "a|"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
    for bias in ({"100000": 1}, {"-1": 1}, {"a": 1}, {"97": 101}, {"97": None}, {"97": "1"}, [97], {"9" * 30: 1}):
        assert error_of(peer.post(path, {**body, "logit_bias": bias}), 400)["param"].startswith("logit_bias")


OLD_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


@both
@pytest.mark.parametrize("strict", [False, True])
def test_row_24_fields_that_would_not_be_honoured(serve_peer: Any, path: str, strict: bool) -> None:
    """row 24: vllm-project/vllm#53975, #17075: known ones are refused, unknown ones warned about, or refused."""
    server = serve_peer({"strict": strict})
    body = {"prompt": "a|"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
    for name in OLD_FIELDS:
        for stream in (False, True):
            error = error_of(server.post(path, {**body, name: {"type": "object"}, "stream": stream}), 400)
            assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    for name in ("tok_k", "tempersture", "max_new_tokens", "Temperature", ""):
        for stream in (False, True):
            response = server.post(path, {**body, name: 5, "stream": stream})
            if strict:
                assert error_of(response, 400)["param"] == name
                continue
            first = events(response.text)[0] if stream else response.json()
            assert first["warnings"] == [f"unknown field '{name}' was ignored"]


@both
def test_row_24_decoding_is_strict_always(peer: PeerServer, path: str) -> None:
    """row 24: vllm-project/vllm#17075 inside `decoding`, where nothing is ignored."""
    body = {"prompt": "a|"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
    for decoding, param in (
        ({"tok_k": 5}, "decoding.tok_k"),
        ({"budget": {"tokens": 5}}, "decoding.budget.tokens"),
        ({"sampler": {"type": "top_k", "k": 5, "kk": 5}}, "decoding.sampler.kk"),
        ({"sampler": {"type": "none such"}}, "decoding.sampler.type"),
        ({"penalty": [{"type": "repetition_penalty", "penalty": 0}]}, "decoding.penalty[0].penalty"),
        ("none such", "decoding"),
        ({"strategy": "none such"}, "decoding.strategy"),
    ):
        error = error_of(peer.post(path, {**body, "decoding": decoding}), 400)
        assert error["param"] == param, json.dumps(decoding)
