"""`decoding.speculation` over HTTP: what it answers, streams and counts, and what it refuses, by name.

The target and the draft "near" say the script of the prompt; "far" always proposes the wrong letter.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
import torch
from runtime_server import RuntimeServer, serve_runtime
from scripted_server import TOKENIZER, distribution
from torch import Tensor

from models.scripted import scripted_runtime


def far(context: Sequence[int]) -> Tensor:
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    logits[ord("#")] = 30.0
    return logits


@pytest.fixture(scope="module")
def server() -> Iterator[RuntimeServer]:
    runtime = scripted_runtime(distribution, TOKENIZER, drafts={"near": distribution, "far": far})
    with serve_runtime(runtime) as live:
        yield live


@pytest.fixture(scope="module")
def draftless() -> Iterator[RuntimeServer]:
    with serve_runtime(scripted_runtime(distribution, TOKENIZER)) as live:
        yield live


SCRIPT = "the quick brown fox"


def ask(server: RuntimeServer, speculation: Any, **body: Any) -> dict[str, Any]:
    asked = {"prompt": f"{SCRIPT}|", "max_tokens": 40, "decoding": {"speculation": speculation}} | body
    response = server.post("/v1/completions", {"model": "scripted", **asked})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


METHODS: list[Any] = [
    "rsd-c", "rsd-s", "chain", "multi-draft", "spectr", "ngram", "auto",
    {"type": "auto", "drafter": "ngram", "max_nodes": 5, "coupled": False}, {"type": "auto", "drafter": "near"},
    {"type": "rsd-c", "branching": [3, 1]}, {"type": "rsd-s", "width": 2, "length": 5, "coupled": True},
    {"type": "chain", "length": 1, "drafter": "far"}, {"type": "multi-draft", "branching": [1]},
    {"type": "spectr", "width": 1, "length": 1}, {"type": "ngram", "length": 3, "max_ngram": 2, "coupled": True},
]  # fmt: skip


@pytest.mark.parametrize("speculation", METHODS, ids=str)
def test_every_method_answers_and_says_what_it_did(server: RuntimeServer, speculation: Any) -> None:
    answer = ask(server, speculation)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (SCRIPT, "stop")
    resolved = answer["decoding"]["speculation"]
    wanted = {"type": speculation} if isinstance(speculation, str) else speculation
    assert wanted.items() <= resolved.items()
    again = ask(server, resolved)
    assert again["decoding"]["speculation"] == resolved
    usage = answer["usage"]
    assert usage["completion_tokens"] == len(SCRIPT) + 1


def test_usage_counts_predictions(server: RuntimeServer) -> None:
    usage = ask(server, {"type": "chain", "length": 4}, n=2)["usage"]
    spend, details = usage["decoding"], usage["completion_tokens_details"]
    # 20 tokens with the end: one from the prompt's pass, then rounds of 5, the last of which drafts 3 and the end
    assert spend["rounds"] == 8
    assert spend["drafted_tokens"] == spend["accepted_tokens"] == 2 * (3 * 4 + 4)
    assert spend["accepted_by_level"] == [8, 8, 8, 8]
    assert spend["output_tokens"] == usage["completion_tokens"] == 40
    assert details == {
        "accepted_prediction_tokens": spend["accepted_tokens"],
        "rejected_prediction_tokens": spend["drafted_tokens"] - spend["accepted_tokens"],
    }
    assert spend["draft_tokens"] > spend["drafted_tokens"]


def test_metrics_count_predictions(server: RuntimeServer) -> None:
    """Under vLLM's names, by strategy; an earlier test may have counted too."""

    def counts() -> dict[str, float]:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        found = [line.rpartition(" ") for line in lines if "spec_decode" in line and 'strategy="chain"' in line]
        return {name: float(value) for name, _, value in found if "_created" not in name}

    before = counts()
    spend = ask(server, {"type": "chain", "length": 4})["usage"]["decoding"]
    grown = {name: value - before.get(name, 0.0) for name, value in counts().items()}
    labels = 'model_name="scripted",strategy="chain"'
    assert grown[f"decoding:spec_decode_num_drafts_total{{{labels}}}"] == spend["rounds"]
    assert grown[f"decoding:spec_decode_num_draft_tokens_total{{{labels}}}"] == spend["drafted_tokens"]
    assert grown[f"decoding:spec_decode_num_accepted_tokens_total{{{labels}}}"] == spend["accepted_tokens"]
    for level, accepted in enumerate(spend["accepted_by_level"]):
        name = "decoding:spec_decode_num_accepted_tokens_per_pos_total"
        assert grown[f'{name}{{model_name="scripted",position="{level}",strategy="chain"}}'] == accepted > 0


def test_a_draft_that_a_structure_forbids_is_no_matter_to_warn_of(server: RuntimeServer, caplog: Any) -> None:
    """The prompt repeats itself with commas, so that is what gets drafted; the structure knows none."""
    asked = {"prompt": "abcabcabcabc|" + "abc," * 8, "structured_outputs": {"regex": "(abc){4}"}}
    with caplog.at_level("WARNING"):
        answer = ask(server, {"type": "ngram", "length": 6, "max_ngram": 2}, **asked)
    assert answer["choices"][0]["text"] == "abcabcabcabc"
    assert answer["usage"]["completion_tokens_details"]["rejected_prediction_tokens"] > 0
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


def test_refused_predictions_are_counted(server: RuntimeServer) -> None:
    asked = {"prompt": "another script|", "max_tokens": 6}
    usage = ask(server, {"type": "chain", "length": 2, "drafter": "far"}, **asked)["usage"]
    # one token from the prompt's pass; the last has no room for a draft, the one before for one token only
    assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 7}
    assert usage["completion_tokens"] == 6


def test_an_answer_without_speculation_has_no_such_details(server: RuntimeServer) -> None:
    assert "completion_tokens_details" not in ask(server, None)["usage"]


@pytest.mark.parametrize("stop", [None, "brown", ["k b", "ck"]])
@pytest.mark.parametrize("speculation", ["rsd-c", {"type": "chain", "length": 16}])
def test_a_stream_is_the_answer_in_pieces(server: RuntimeServer, speculation: Any, stop: Any) -> None:
    body = {"stop": stop, "logprobs": 1}
    whole = ask(server, speculation, **body)
    plain = ask(server, None, **body)
    assert whole["choices"] == plain["choices"]
    asked = {"model": "scripted", "prompt": f"{SCRIPT}|", "max_tokens": 40, "stream": True, **body}
    asked |= {"decoding": {"speculation": speculation}, "stream_options": {"include_usage": True}}
    lines = [line[6:] for line in server.post("/v1/completions", asked).text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
    assert tokens == whole["choices"][0]["logprobs"]["tokens"]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert "accepted_prediction_tokens" in chunks[-1]["usage"]["completion_tokens_details"]


def test_coupled_answers_are_those_without_speculation(server: RuntimeServer) -> None:
    body = {"prompt": "any words", "max_tokens": 12, "seed": 5, "temperature": 1.0, "n": 3}
    plain = [choice["text"] for choice in ask(server, None, **body)["choices"]]
    for speculation in ("chain", "rsd-c", "rsd-s", "ngram"):
        coupled = ask(server, {"type": speculation, "coupled": True}, **body)
        assert [choice["text"] for choice in coupled["choices"]] == plain
    assert len(set(plain)) == 3


def test_auto_couples_what_has_a_seed(server: RuntimeServer) -> None:
    """The reply says what was resolved, and asking for that again gives the same."""
    body = {"prompt": "any words", "max_tokens": 12, "temperature": 1.0, "n": 3}
    plain = [choice["text"] for choice in ask(server, None, seed=5, **body)["choices"]]
    seeded = ask(server, "auto", seed=5, **body)
    assert [choice["text"] for choice in seeded["choices"]] == plain
    assert seeded["decoding"]["speculation"]["coupled"] is True
    assert ask(server, "auto", **body)["decoding"]["speculation"]["coupled"] is False
    asked = {"type": "auto", "coupled": False}
    assert ask(server, asked, seed=5, **body)["decoding"]["speculation"]["coupled"] is False
    unseeded = ask(server, {"type": "auto", "coupled": True}, **body)
    plain = ask(server, None, seed=unseeded["decoding"]["seed"], **body)["choices"]
    assert [choice["text"] for choice in unseeded["choices"]] == [choice["text"] for choice in plain]


def test_auto_reports_what_it_picked(server: RuntimeServer) -> None:
    prompt = "abcdefgh" * 6 + "|"
    for _ in range(10):
        usage = ask(server, "auto", prompt=prompt, max_tokens=60)["usage"]["decoding"]
    picked = usage["picked"]
    assert sum(picked.values()) == usage["rounds"] + picked.get("off", 0)
    assert usage["rounds"] + usage["accepted_tokens"] + picked.get("off", 0) == usage["output_tokens"] - 1
    drafters = {name.split()[0] for name in picked}
    assert drafters <= {"off", "near", "far", "ngram"}
    if usage["rounds"]:
        assert usage["block_efficiency"] == pytest.approx(1 + usage["accepted_tokens"] / usage["rounds"], abs=1e-3)
    assert "picked" not in ask(server, "chain")["usage"]["decoding"]
    assert "block_efficiency" in ask(server, "chain")["usage"]["decoding"]
    assert "block_efficiency" not in ask(server, None)["usage"]["decoding"]


def test_auto_works_without_a_draft_model(draftless: RuntimeServer) -> None:
    usage = ask(draftless, "auto", prompt="abcabcabcabcabcabcabcabc|", max_tokens=24)["usage"]["decoding"]
    assert {name.split()[0] for name in usage["picked"]} <= {"off", "ngram"}
    assert sum(usage["picked"].values()) > 0


def test_the_chat_and_the_shorthand(server: RuntimeServer) -> None:
    asked = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "decoding": "rsd-s"}
    answer = server.post("/v1/chat/completions", asked).json()
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert answer["decoding"]["speculation"] == {
        "type": "rsd-s", "drafter": None, "coupled": False, "width": 3, "length": 3,
    }  # fmt: skip
    asked["decoding"] = {"strategy": "chain", "length": 2}
    assert server.post("/v1/chat/completions", asked).json()["decoding"]["speculation"]["length"] == 2


def test_a_budget_ends_a_speculating_answer(server: RuntimeServer) -> None:
    answer = ask(server, None, decoding={"speculation": "rsd-c", "budget": {"output_tokens": 7}})
    assert answer["choices"][0]["text"] == SCRIPT[:7]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["decoding"]["budget_exhausted"] == "output_tokens"


def test_logits_that_are_not_numbers_are_this_requests_fault_only(server: RuntimeServer) -> None:
    body = {"model": "scripted", "prompt": "!|", "max_tokens": 5, "decoding": {"speculation": "rsd-c"}}
    response = server.post("/v1/completions", body)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert ask(server, "rsd-c")["choices"][0]["text"] == SCRIPT


REFUSED: list[tuple[Any, str, str]] = [
    ({"type": "chain", "drafter": "nobody"}, "decoding.speculation.drafter", "near, far"),
    ({"type": "ngram", "drafter": "near"}, "decoding.speculation.drafter", "takes no drafter"),
    ({"type": "multi-draft", "coupled": True}, "decoding.speculation.coupled", "not possible"),
    ({"type": "spectr", "coupled": True}, "decoding.speculation.coupled", "not possible"),
    ({"type": "medusa"}, "decoding.speculation.type", "rsd-c"),
    ("medusa", "decoding.speculation.type", "rsd-c"),
    ({}, "decoding.speculation", "type"),
    ([], "decoding.speculation", "type"),
    (7, "decoding.speculation", "type"),
    ({"type": "chain", "length": 0}, "decoding.speculation.length", "greater than or equal to 1"),
    ({"type": "chain", "length": 33}, "decoding.speculation.length", "less than or equal to 32"),
    ({"type": "chain", "length": "3"}, "decoding.speculation.length", "integer"),
    ({"type": "chain", "length": 2.5}, "decoding.speculation.length", "integer"),
    ({"type": "chain", "width": 3}, "decoding.speculation.width", "not permitted"),
    ({"type": "chain", "length_": 3}, "decoding.speculation.length_", "not permitted"),
    ({"type": "rsd-c", "branching": []}, "decoding.speculation.branching", "at least 1"),
    ({"type": "rsd-c", "branching": [2, 0]}, "decoding.speculation.branching[1]", "greater than or equal to 1"),
    ({"type": "rsd-c", "branching": [33]}, "decoding.speculation.branching[0]", "less than or equal to 32"),
    ({"type": "rsd-c", "branching": 3}, "decoding.speculation.branching", "tuple"),
    ({"type": "rsd-c", "branching": [1] * 33}, "decoding.speculation.branching", "at most 32"),
    ({"type": "rsd-s", "width": 0}, "decoding.speculation.width", "greater than or equal to 1"),
    ({"type": "ngram", "max_ngram": 17}, "decoding.speculation.max_ngram", "less than or equal to 16"),
    ({"type": "ngram", "coupled": "yes"}, "decoding.speculation.coupled", "boolean"),
    ({"type": "chain", "coupled": None}, "decoding.speculation.coupled", "boolean"),
    ({"type": "auto", "drafter": "nobody"}, "decoding.speculation.drafter", "near, far, ngram"),
    ({"type": "auto", "max_nodes": 0}, "decoding.speculation.max_nodes", "greater than or equal to 1"),
    ({"type": "auto", "max_nodes": 65}, "decoding.speculation.max_nodes", "less than or equal to 64"),
    ({"type": "auto", "length": 3}, "decoding.speculation.length", "not permitted"),
]


def refusal(server: RuntimeServer, decoding: Any) -> dict[str, Any]:
    response = server.post(
        "/v1/completions", {"model": "scripted", "prompt": "a|", "max_tokens": 3, "decoding": decoding}
    )
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(("speculation", "param", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_honoured_is_refused_by_name(
    server: RuntimeServer, speculation: Any, param: str, reason: str
) -> None:
    error = refusal(server, {"speculation": speculation})
    assert error["param"] == param
    assert reason in error["message"]


@pytest.mark.parametrize(
    "speculation",
    [
        {"type": "rsd-c", "branching": [32, 32]},
        {"type": "rsd-c", "branching": [32] * 32},
        {"type": "rsd-s", "width": 32, "length": 32},
        {"type": "multi-draft", "branching": [8, 8, 8]},
        {"type": "spectr", "width": 32, "length": 9},
    ],
    ids=str,
)
def test_trees_of_too_many_nodes_are_refused(server: RuntimeServer, speculation: Any) -> None:
    assert "256" in refusal(server, {"speculation": speculation})["message"]


def test_an_empty_range_of_ngrams_is_refused(server: RuntimeServer) -> None:
    refusal(server, {"speculation": {"type": "ngram", "max_ngram": 2, "min_ngram": 3}})


def test_mirostat_cannot_follow_trees(server: RuntimeServer) -> None:
    error = refusal(server, {"speculation": "chain", "sampler": "mirostat"})
    assert error["param"] == "decoding.speculation"
    assert "mirostat" in error["message"]
    assert ask(server, None, decoding={"sampler": "mirostat"})["choices"][0]["text"] == SCRIPT


@pytest.mark.parametrize("method", ["rsd-c", "rsd-s", "chain", "multi-draft", "spectr"])
def test_a_server_without_a_draft_says_so(draftless: RuntimeServer, method: str) -> None:
    error = refusal(draftless, {"speculation": method})
    assert error["param"] == "decoding.speculation"
    assert "--draft-model" in error["message"]
    assert "ngram" in error["message"]


def test_ngram_needs_no_draft(draftless: RuntimeServer) -> None:
    prompt = "the cat sat|the cat "
    answer = ask(draftless, {"type": "ngram", "length": 4}, prompt=prompt[prompt.index("|") + 1 :] + "|")
    assert answer["usage"]["decoding"]["accepted_tokens"] > 0
    assert answer["usage"]["decoding"]["draft_tokens"] == 0


def test_the_strategies_are_listed_with_their_schemas(server: RuntimeServer) -> None:
    listed = httpx.get(f"{server.url}/v1/strategies", timeout=30).json()["data"]
    kinds = {one["id"]: one for one in listed if one["slot"] == "speculation"}
    assert {"rsd-c", "rsd-s", "chain", "multi-draft", "spectr", "ngram", "auto"} <= kinds.keys()
    assert kinds["auto"]["parameters"]["properties"].keys() == {"drafter", "coupled", "max_nodes"}
    assert kinds["rsd-s"]["parameters"]["properties"].keys() == {"drafter", "coupled", "width", "length"}
    assert all(kind["exact"] for kind in kinds.values())
    assert {name for name, kind in kinds.items() if not kind["supports"]["coupled"]} == {"multi-draft", "spectr"}
    assert {name for name, kind in kinds.items() if not kind["supports"]["draft_needed"]} == {"ngram", "auto"}


def test_metrics_name_the_method(server: RuntimeServer) -> None:
    ask(server, "rsd-c")
    assert 'strategy="rsd-c"' in httpx.get(f"{server.url}/metrics", timeout=30).text
