"""Rows 13 and 14: speculation changes the speed of an answer and nothing else, alone and with everything beside it."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peer_model import BAR, draft, language_logits, make_runtime, play, splits
from peer_server import COMPLETIONS, ENDPOINTS, PeerServer, error_of, peer_server, request_body

METHODS: list[dict[str, Any]] = [
    {"type": "ngram"},
    {"type": "chain", "length": 3},
    {"type": "rsd-c", "branching": [2, 2]},
    {"type": "rsd-s", "width": 3, "length": 3},
    {"type": "multi-draft", "branching": [3, 1]},
    {"type": "spectr", "width": 2, "length": 2},
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method["type"])
streamed = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def drafting() -> Iterator[PeerServer]:
    """A server with a draft model that is often wrong."""
    with peer_server({}, make_runtime(drafts={"draft": draft})) as server:
        yield server
        server.wait_until_idle(5.0)


def with_method(method: dict[str, Any]) -> dict[str, Any]:
    return {"decoding": {"speculation": method}}


PAIRS: list[dict[str, Any]] = [
    {"frequency_penalty": 2},
    {"presence_penalty": 2, "repetition_penalty": 1.3},
    {"logit_bias": {"101": 5, "113": -100}},
    {"no_repeat_ngram_size": 2},
    {"dry_multiplier": 2},
    {"bad_words": ["e", "an"]},
    {"allowed_token_ids": [97, 98, 99, 100]},
    {"stop": ["a", "be", "xyz"]},
    {"min_tokens": 8, "stop": ["a"]},
    {"n": 3, "frequency_penalty": 1},
]
"""Fields that must count beside speculation; any of them has been dropped by some server."""


@every_method
@pytest.mark.parametrize("fields", PAIRS, ids=lambda fields: next(iter(fields)))
def test_row_13_nothing_is_dropped_beside_speculation(
    drafting: PeerServer, method: dict[str, Any], fields: dict[str, Any]
) -> None:
    """row 13: vllm-project/vllm#18902: greedy output equals that without speculation."""
    fields = {"temperature": 0, "max_tokens": 12, **fields}
    for path in ENDPOINTS if method["type"] == "rsd-s" else (COMPLETIONS,):
        plain = drafting.ask(path, "%on", **fields)
        reply = drafting.ask(path, "%on", **fields, **with_method(method))
        assert reply.texts == plain.texts
        assert (reply.finish_reasons, reply.stop_reasons) == (plain.finish_reasons, plain.stop_reasons)
        assert reply.usage is not None
        assert plain.usage is not None
        assert reply.usage["completion_tokens"] == plain.usage["completion_tokens"]
        assert reply.decoding is not None
        assert reply.decoding["speculation"]["type"] == method["type"]


@pytest.mark.parametrize("path", ENDPOINTS)
@streamed
def test_row_13_penalties_count_without_speculation_too(peer: PeerServer, path: str, stream: bool) -> None:
    """row 13: vllm-project/vllm#18902: of 26 equally likely letters each that was used is worth less."""
    reply = peer.ask(path, "?", temperature=0, frequency_penalty=2, max_tokens=52, stream=stream)
    assert reply.text == "abcdefghijklmnopqrstuvwxyz" * 2
    assert peer.ask(path, "?", temperature=0, max_tokens=5, stream=stream).text == "aaaaa"


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("value", [{"type": "rsd-s"}, {"type": "none such"}, {}, 5, {"type": "ngram", "lengths": 3}])
def test_row_13_speculation_that_cannot_be_honoured_is_refused(peer: PeerServer, path: str, value: Any) -> None:
    """row 13: vllm-project/vllm#18902: the other right answer, here for want of a draft model or for a wrong value."""
    for fields in ({}, {"frequency_penalty": 2, "temperature": 0}):
        body = request_body(path, "a", decoding={"speculation": value}, **fields)
        assert error_of(peer.post(path, body), 400)["param"].startswith("decoding.speculation")


SEARCHES = [
    {"type": "majority", "samples": 3},
    {"type": "phi", "beams": 2, "rollouts": 2, "t_min": 1, "t_max": 2},
    {"type": "step-beam", "beams": 2, "samples": 2},
    {"type": "litesearch", "max_iterations": 2},
]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("value", [{"type": "none such"}, {"type": "best_of_n"}, "none such", {}, 5])
def test_row_13_a_search_that_cannot_be_honoured_is_refused(peer: PeerServer, path: str, value: Any) -> None:
    """row 13: a slot that is not honoured is a 400 that names it."""
    body = request_body(path, "a", decoding={"search": value})
    assert error_of(peer.post(path, body), 400)["param"].startswith("decoding.search")


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search["type"])
def test_row_13_penalties_count_beside_a_search(peer: PeerServer, path: str, search: dict[str, Any]) -> None:
    """row 13: greedy branches under a penalty say what the plain request under it says."""
    fields = {"temperature": 0, "frequency_penalty": 2, "max_tokens": 30}
    if search["type"] == "phi":
        search = {**search, "step": {"temperature": 0}, "foresight": {"temperature": 0}}
    reply = peer.ask(path, "?", decoding={"search": search}, **fields)
    assert reply.text == peer.ask(path, "?", **fields).text == "abcdefghijklmnopqrstuvwxyzabcd"


@every_method
def test_row_14_greedy_output_is_kept(drafting: PeerServer, method: dict[str, Any]) -> None:
    """row 14: vllm-project/vllm#11466, #7627: fifty prompts, with and without."""
    prompts = [f"%{chr(97 + i % 26) * (1 + i // 26)}{i}|" for i in range(50)]
    fields = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    plain = drafting.complete(prompts, **fields)
    reply = drafting.complete(prompts, **fields, **with_method(method))
    assert reply.texts == plain.texts
    assert reply.usage is not None
    spend = reply.usage["decoding"]
    assert reply.usage["completion_tokens"] == spend["output_tokens"] == 50 * 12
    assert 0 <= spend["accepted_tokens"] <= spend["drafted_tokens"]
    assert spend["drafted_tokens"] > 0
    if method["type"] != "ngram":
        assert 0 < spend["accepted_tokens"] < spend["drafted_tokens"]  # both the acceptance and the repair are at work


ALLOWED = [ord("c"), ord("g"), ord("y")]
DRAWS = 3 * 128
CRITICAL_VALUE = 42.70
"""Of chi-square with 8 degrees of freedom at 1e-6."""


def _toy_law() -> dict[str, float]:
    """The probability of each text of two tokens out of three at temperature 2."""

    def next_token(last: int) -> torch.Tensor:
        return (language_logits(last)[ALLOWED].double() / 2).softmax(-1)

    return {
        chr(first) + chr(second): float(next_token(BAR)[i] * next_token(first)[j])
        for i, first in enumerate(ALLOWED)
        for j, second in enumerate(ALLOWED)
    }


@pytest.mark.parametrize("method", [None, *METHODS], ids=lambda method: method["type"] if method else "none")
def test_row_14_the_law_of_sampled_output_is_kept(drafting: PeerServer, method: dict[str, Any] | None) -> None:
    """row 14: vllm-project/vllm#11466: a toy of two tokens through the whole server (the engine's own tests draw more).
    Chi-square at a false-alarm rate of 1e-6; seeds are fixed."""
    law = _toy_law()
    assert min(law.values()) * DRAWS > 5
    counts: Counter[str] = Counter()
    fields = {"temperature": 2, "allowed_token_ids": ALLOWED, "max_tokens": 2, "n": 128}
    for seed in range(DRAWS // 128):
        counts.update(drafting.complete("%|", seed=seed, **fields, **(with_method(method) if method else {})).texts)
    assert counts.total() == DRAWS
    statistic = sum((counts[text] - p * DRAWS) ** 2 / (p * DRAWS) for text, p in law.items())
    assert statistic < CRITICAL_VALUE


@every_method
@streamed
def test_row_14_a_seed_repeats_with_speculation(drafting: PeerServer, method: dict[str, Any], stream: bool) -> None:
    """row 14 with 16: vllm-project/vllm#7627: the same draws again, in company, and choice by choice."""
    fields: dict[str, Any] = {"seed": 5, "n": 3, "max_tokens": 12, **with_method(method)}
    first = drafting.ask(COMPLETIONS, "%seed", **fields).texts
    assert len(set(first)) == 3
    assert drafting.ask(COMPLETIONS, "%seed", stream=stream, **fields).texts == first
    body = request_body(COMPLETIONS, "%seed", stream=stream, **fields)
    methods = [METHODS[i] for i in (0, 1, 3, 5)]
    others = [(COMPLETIONS, request_body(COMPLETIONS, "%other", max_tokens=12, **with_method(one))) for one in methods]
    assert drafting.at_once([*others, (COMPLETIONS, body)])[-1].texts == first


@every_method
@pytest.mark.parametrize(("text", "stops"), [("XDEFGH", ["DEFGH"]), ("XDEFGH", ["DE", "EFG"]), ("XDEFGH", ["Q"])])
def test_row_14_stops_inside_accepted_drafts(
    drafting: PeerServer, method: dict[str, Any], text: str, stops: list[str]
) -> None:
    """row 14 with 1: vllm-project/vllm#3574: several tokens a step, cut in every way, none beyond the end."""
    prompts = [f"{play(*way)}|" for way in splits(text.encode())[::4]]
    plain = drafting.complete(prompts, stop=stops, logprobs=0)
    for stream in (False, True):
        reply = drafting.complete(prompts, stop=stops, logprobs=0, stream=stream, **with_method(method))
        assert (reply.texts, reply.finish_reasons) == (plain.texts, plain.finish_reasons)
        assert reply.stop_reasons == plain.stop_reasons
        for parts, expected in zip(reply.logprobs, plain.logprobs, strict=True):
            assert [token for part in parts for token in part["tokens"]] == expected[0]["tokens"]


@every_method
def test_row_14_limits_and_ends_inside_accepted_drafts(drafting: PeerServer, method: dict[str, Any]) -> None:
    """row 14 with 6: vllm-project/vllm-ascend#15931: a limit is exact and an end is an end, whatever the draft had."""
    script = play(*"XDEFGH")
    for limit, end in itertools.product((1, 2, 3, 4, 6, 7), (None, [ord("F")])):
        reply = drafting.ask(COMPLETIONS, script, max_tokens=limit, stop_token_ids=end, **with_method(method))
        expected = "XDE" if end else "XDEFGH"
        assert reply.text == expected[:limit]
        assert reply.finish_reasons == ["stop" if limit > len(expected) else "length"]
        assert reply.usage is not None
        assert reply.usage["completion_tokens"] == min(limit, len(expected) + 1)


@every_method
def test_row_14_log_probabilities_are_kept(drafting: PeerServer, method: dict[str, Any]) -> None:
    """row 14 with 7 and 10: raw and processed values of a greedy answer, alternatives included."""
    for mode in ("raw", "processed"):
        fields = {"logprobs": 3, "logprobs_mode": mode, "temperature": 0, "frequency_penalty": 1.5}
        plain = drafting.complete("%values|", **fields).arrays
        arrays = drafting.complete("%values|", **fields, **with_method(method)).arrays
        assert arrays["tokens"] == plain["tokens"]
        assert arrays["token_logprobs"] == pytest.approx(plain["token_logprobs"], abs=1e-4)
        assert [set(top) for top in arrays["top_logprobs"]] == [set(top) for top in plain["top_logprobs"]]


@every_method
@pytest.mark.parametrize("unit", ["forward_tokens", "output_tokens"])
@pytest.mark.parametrize("n", [1, 3])
def test_row_14_budgets_hold_with_speculation(drafting: PeerServer, method: dict[str, Any], unit: str, n: int) -> None:
    """row 14 with 27: its_hub#4: drafts are paid for; spent is at most the budget and returned is monotone in it."""
    returned = []
    for budget in (1, 2, 5, 16):
        fields = {"seed": 2, "n": n, "max_tokens": 60, "cache_salt": f"{method['type']} {unit} {n} {budget}"}
        decoding = {"speculation": method, "budget": {unit: budget}}
        reply = drafting.complete("%budget|", decoding=decoding, **fields)
        assert reply.usage is not None
        spend = reply.usage["decoding"]
        assert spend["target_tokens" if unit == "forward_tokens" else "output_tokens"] <= budget
        assert spend["budget_exhausted"] == unit
        assert set(reply.finish_reasons) == {"length"}
        returned.append(reply.usage["completion_tokens"])
        assert reply.usage["completion_tokens"] == spend["output_tokens"]
    if unit == "output_tokens":
        assert returned == [1, 2, 5, 16]
