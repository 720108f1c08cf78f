"""Overload in small: the real server around a scripted model, and the verdicts."""

import asyncio

import httpx
import pytest
from live_server import live_server

from decoding_server.bench.overload import DECODINGS, Outcome, Result, bodies, fault_of, overload
from decoding_server.bench.soak import left_over

SEATS, WAITING = 4, 12


@pytest.fixture(scope="module")
def result():
    flags = {"max_num_seqs": SEATS, "max_waiting": WAITING}
    with live_server(flags, max_model_len=1024, num_slots=8192) as server:

        async def run():
            result = await overload(server.url, 500, 4.0, 0, SEATS + WAITING, SEATS)
            return result, await left_over(server.url)

        yield asyncio.run(asyncio.wait_for(run(), 250))


def test_five_hundred_requests_at_four_times_the_capacity(result):
    """No timing is judged here, but by the benchmark: a shared machine has pauses of any length."""
    outcomes, rest = result
    answered, overloaded, _latency, calm = outcomes.checks()
    for check in (answered, overloaded, calm, rest):
        assert check.passed, (check.name, check.detail)
    assert len(outcomes.under) == 500
    assert {one.status for one in outcomes.under} == {200, 429}


def test_every_strategy_takes_part():
    made = bodies(len(DECODINGS) * 3, 0)
    assert {str(body.get("decoding")) for body in made} == {str(decoding) for decoding in DECODINGS}
    assert sum(body.get("stream", False) for body in made) == len(DECODINGS)
    assert made == bodies(len(DECODINGS) * 3, 0)


def reply(status, text, **headers):
    return httpx.Response(status, text=text, headers=headers)


FULL = '{"error": {"code": "queue_full"}}'
WHOLE = 'data: {"choices":[{"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("given", "streamed", "words"),
    [
        (reply(429, FULL, **{"retry-after": "1"}), False, None),
        (reply(429, FULL), False, "retry-after"),
        (reply(429, '{"error": {}}', **{"retry-after": "1"}), False, "retry-after"),
        (reply(500, "{}"), False, "status 500"),
        (reply(200, WHOLE), True, None),
        (reply(200, WHOLE.replace("data: [DONE]\n\n", "")), True, "not whole"),
        (reply(200, 'data: {"error":{}}\n\n' + WHOLE), True, "not whole"),
        (reply(200, '{"choices": [{"finish_reason": "stop"}]}'), False, None),
        (reply(200, '{"choices": [{"finish_reason": null}]}'), False, "not whole"),
        (reply(200, '{"choices": []}'), False, "not whole"),
    ],
)
def test_verdicts_on_replies(given, streamed, words):
    fault = fault_of(given, streamed=streamed)
    assert fault is None if words is None else words in fault


def verdicts(under, after=200):
    calm = [Outcome(i, 200, 1.0) for i in range(3)]
    result = Result(2.0, calm, under, [Outcome(0, after, 1.0)], 4.0, 10)
    return [check.passed for check in result.checks()]


def test_verdicts_on_a_run():
    """Ten sequences at two a second take 5 s, so 15 s is the limit."""
    good = [Outcome(0, 200, 14.9), Outcome(1, 429, 0.1)]
    assert verdicts(good) == [True, True, True, True]
    assert verdicts([*good, Outcome(2, None, 300.0, "no answer")]) == [False, True, True, True]
    assert verdicts(good[:1]) == [True, False, True, True]
    assert verdicts([Outcome(0, 200, 15.1), good[1]]) == [True, True, False, True]
    assert verdicts(good, after=429) == [True, True, True, False]
    assert verdicts([good[1]]) == [True, False, False, True]
