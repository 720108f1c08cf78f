"""Rows 17, 26 and 27: usage when it is asked for, settings that stay with their request, budgets that hold."""

import itertools
from typing import Any

import pytest
from peer_server import CHAT, ENDPOINTS, PeerServer, Reply, error_of, read_reply, request_body

both = pytest.mark.parametrize("path", ENDPOINTS)
COUNTS = {"prompt_tokens", "completion_tokens", "total_tokens"}


@both
@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"include_usage": None}, {"continuous_usage_stats": True}]
)
def test_row_17_no_usage_unless_asked(peer: PeerServer, path: str, options: dict[str, Any] | None) -> None:
    """row 17: vllm-project/vllm pull request 36379, sgl-project/sglang#954"""
    for chunk in peer.ask(path, "hello", stream=True, stream_options=options).chunks:
        assert chunk.get("usage") is None
        assert len(chunk["choices"]) == 1


@both
@pytest.mark.parametrize("n", [1, 3])
def test_row_17_usage_is_one_last_chunk_without_choices(peer: PeerServer, path: str, n: int) -> None:
    """row 17: sgl-project/sglang#954, and the same numbers as without a stream."""
    reply = peer.ask(path, "hello", stream=True, n=n, stream_options={"include_usage": True})
    *body, last = reply.chunks
    assert last["choices"] == []
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in body)
    whole = peer.ask(path, "hello", n=n).usage
    assert whole is not None
    assert {name: last["usage"][name] for name in COUNTS} == {name: whole[name] for name in COUNTS}
    assert whole["completion_tokens"] == 6 * n
    assert whole["total_tokens"] == whole["prompt_tokens"] + whole["completion_tokens"]
    assert last["usage"]["decoding"]["output_tokens"] == 6 * n


@both
@pytest.mark.parametrize("n", [1, 3])
def test_row_17_continuous_usage_counts_up(peer: PeerServer, path: str, n: int) -> None:
    """row 17: sgl-project/sglang#954 with continuous_usage_stats, as guidellm asks."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    *body, last = peer.ask(path, "hello", stream=True, n=n, stream_options=options).chunks
    counts = [chunk["usage"]["completion_tokens"] for chunk in body]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert counts[-1] == last["usage"]["completion_tokens"] == 6 * n
    assert {chunk["usage"]["prompt_tokens"] for chunk in body} == {last["usage"]["prompt_tokens"]}


@both
@pytest.mark.parametrize("stream", [None, False])
def test_row_17_stream_options_need_a_stream(peer: PeerServer, path: str, stream: bool | None) -> None:
    """row 17: vllm-project/vllm pull request 36379"""
    body = request_body(path, "hello", stream=stream, stream_options={"include_usage": True})
    assert error_of(peer.post(path, body), 400)["param"] == "stream_options"
    for options, param in (
        ({"include_usage": "yes"}, "stream_options.include_usage"),
        ({"include_usages": True}, "stream_options.include_usages"),
        ([], "stream_options"),
    ):
        body = request_body(path, "hello", stream=True, stream_options=options)
        assert error_of(peer.post(path, body), 400)["param"] == param


SAMPLERS: list[list[dict[str, Any]]] = [
    [{"type": "top_k", "k": 3}],
    [{"type": "top_k", "k": 7}],
    [{"type": "min_p", "p": 0.25}],
    [],
]
PENALTIES: list[list[dict[str, Any]]] = [[{"type": "repetition_penalty", "penalty": 1.5}], []]


def _own(number: int) -> dict[str, Any]:
    """What request `number` asks for; no two of them are alike."""
    sampler, penalty = SAMPLERS[number % 4], PENALTIES[number // 4 % 2]
    return {
        "temperature": 0.5 + number / 1000,
        "seed": 1000 + number,
        "max_tokens": 1 + number % 7,
        "n": 1 + number % 3,
        "stream": number % 2 == 1,
        "stream_options": {"include_usage": True} if number % 2 else None,
        "decoding": {"sampler": sampler, "penalty": penalty, "budget": {"output_tokens": 50 + number}},
    }


def test_row_26_every_reply_reports_its_own_settings(peer: PeerServer) -> None:
    """row 26: algorithmicsuperintelligence/optillm#304: pairs of requests with different parameters at once, 200 times;
    settings, texts and costs of each are its own."""
    alone = {}
    for number in range(0, 400, 57):
        path = ENDPOINTS[number % 2]
        reply = read_reply(peer.post(path, request_body(path, "%", **_own(number))).text, _own(number)["stream"])
        alone[number] = reply.texts
    for start in range(0, 400, 100):  # 50 pairs at a time
        numbers = range(start, start + 100)
        bodies = [(ENDPOINTS[i % 2], request_body(ENDPOINTS[i % 2], "%", **_own(i))) for i in numbers]
        for number, reply in zip(numbers, peer.at_once(bodies), strict=True):
            _is_own(number, reply)
            assert reply.texts == alone.get(number, reply.texts)


def _is_own(number: int, reply: Reply) -> None:
    asked, resolved, usage = _own(number), reply.decoding, reply.usage
    assert resolved is not None
    assert usage is not None
    assert (resolved["seed"], resolved["temperature"]) == (asked["seed"], asked["temperature"])
    for slot in ("sampler", "penalty"):
        assert [dict(one) for one in resolved[slot]] == asked["decoding"][slot]
    assert resolved["budget"] == {"output_tokens": 50 + number}
    tokens = asked["max_tokens"] * asked["n"]
    assert (usage["completion_tokens"], usage["decoding"]["output_tokens"]) == (tokens, tokens)
    assert usage["decoding"]["budget_exhausted"] is None
    assert usage["prompt_tokens"] == (4 if ENDPOINTS[number % 2] == CHAT else 2)


BUDGETS = (1, 2, 4, 8, 16)
PROMPT = "?ab|"
FLOPS_PER_TOKEN = 2.0 + 4.0 * 4
"""Of the scripted model (one parameter, hidden size 1) at the fourth token: enough for a budget in its own unit."""
salts = itertools.count()


def _spend(peer: PeerServer, unit: str, budget: float, **fields: Any) -> tuple[Reply, dict[str, Any]]:
    """A reply under a budget, and its spend; nothing comes from the prefix cache, which would be free."""
    options = {"max_tokens": 100, "seed": 3, "cache_salt": f"budget {next(salts)}", **fields}
    reply = peer.complete(PROMPT, decoding={"budget": {unit: budget}}, **options)
    assert reply.usage is not None
    assert reply.decoding is not None
    assert reply.decoding["budget"] == {unit: budget}
    return reply, reply.usage["decoding"]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("unit", ["forward_tokens", "output_tokens", "flops"])
def test_row_27_budgets_hold_and_more_buys_more(peer: PeerServer, unit: str, n: int) -> None:
    """row 27: Red-Hat-AI-Innovation-Team/its_hub#4, #149: spent is at most the budget, monotone in it, in its unit."""
    scale = FLOPS_PER_TOKEN if unit == "flops" else 1
    field = {"forward_tokens": "target_tokens"}.get(unit, unit)
    spent, returned = [], []
    for budget in BUDGETS:
        reply, spend = _spend(peer, unit, budget * scale, n=n)
        assert 0 <= spend[field] <= budget * scale
        assert spend["budget_exhausted"] == unit
        assert set(reply.finish_reasons) == {"length"}
        assert set(reply.stop_reasons) == {f"budget:{unit}"}
        assert reply.usage is not None
        assert reply.usage["completion_tokens"] == spend["output_tokens"] == sum(map(len, reply.texts))
        spent.append(spend[field])
        returned.append(spend["output_tokens"])
    assert spent == sorted(spent)
    assert returned == sorted(returned)
    assert returned[-1] > returned[0]
    if unit == "output_tokens":
        assert spent == list(BUDGETS)


@pytest.mark.parametrize("unit", ["forward_tokens", "output_tokens", "flops"])
def test_row_27_a_larger_budget_continues_the_same_answer(peer: PeerServer, unit: str) -> None:
    """row 27: its_hub#4: with one seed the answer of a smaller budget is the beginning of that of a larger one."""
    texts = [_spend(peer, unit, budget * 20)[0].text for budget in BUDGETS]
    for shorter, longer in itertools.pairwise(texts):
        assert longer.startswith(shorter)


@both
@pytest.mark.parametrize("stream", [False, True])
def test_row_27_seconds(peer: PeerServer, path: str, stream: bool) -> None:
    """row 27: its_hub#149 in seconds, which are checked between steps of 5 ms: one more step, and a slow machine."""
    options = {"include_usage": True} if stream else None
    lengths = []
    for seconds in (0.02, 0.2, 0.6):
        fields = {"decoding": {"budget": {"seconds": seconds}}, "stream_options": options, "seed": 1}
        reply = peer.ask(path, "~?", stream=stream, max_tokens=400, **fields)
        assert reply.usage is not None
        assert reply.usage["decoding"]["seconds"] <= seconds + 0.5
        assert reply.usage["decoding"]["budget_exhausted"] == "seconds"
        assert reply.end[1] == "length"
        assert reply.stop_reasons == ["budget:seconds"]
        lengths.append(len(reply.text))
    assert lengths[0] < lengths[2]
    reply = peer.ask(path, "~?", stream=stream, max_tokens=400, t_max_predict_ms=50)
    assert reply.stop_reasons == ["budget:seconds"]


def test_row_27_a_budget_that_suffices_is_not_exhausted(peer: PeerServer) -> None:
    """row 27: its_hub#4: an answer that ends by itself within its budget, with one token to spare or none."""
    for budget in (6, 7, 100):
        reply = peer.complete("hello|", max_tokens=100, decoding={"budget": {"output_tokens": budget}})
        assert reply.end == ("hello", "stop")
        assert reply.usage is not None
        assert reply.usage["decoding"]["budget_exhausted"] is None


@both
@pytest.mark.parametrize("unit", ["forward_tokens", "output_tokens", "flops", "seconds"])
def test_row_27_budgets_that_are_none(peer: PeerServer, path: str, unit: str) -> None:
    """row 27: its_hub#149: zero, negative and other non-budgets are refused, and named."""
    refused: list[Any] = [0, -1, "5", True, [], {}]
    for value in refused:
        body = request_body(path, "a", decoding={"budget": {unit: value}})
        assert error_of(peer.post(path, body), 400)["param"] == f"decoding.budget.{unit}"


def test_row_27_the_tightest_of_several_units_ends_it(peer: PeerServer) -> None:
    """row 27: its_hub#149 with all units at once."""
    budget = {"forward_tokens": 1000, "output_tokens": 5, "flops": 1e9, "seconds": 60}
    reply = peer.complete(PROMPT, max_tokens=50, n=2, decoding={"budget": budget})
    assert reply.usage is not None
    assert reply.usage["decoding"]["budget_exhausted"] == "output_tokens"
    assert reply.usage["completion_tokens"] == 5
    assert peer.complete(PROMPT, max_tokens=2, decoding={"budget": budget}).stop_reasons == [None]
