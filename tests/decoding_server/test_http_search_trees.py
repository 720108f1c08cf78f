"""The tree searches over HTTP: ordinary answers, streamed or not, with their cost and trace, and refusals by name.

The scripted model writes two or three lines of two letters, then `Answer: ` and a digit, at random. It judges its own
solutions (self-evaluation) by their text.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from runtime_server import RuntimeServer, serve_runtime
from scripted_server import END, TOKENIZER
from torch import Tensor

from models.scripted import ScriptedModel, scripted_runtime

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SEARCHES: dict[str, dict[str, Any]] = {
    "litesearch": {"max_children": 4, "max_iterations": 6},
    "rebase": {"samples": 6, "value": "self-eval", "reward_transform": "rank"},
    "step-beam": {"beams": 6, "samples": 2},
    "mcts": {"expansions": 8},
    "tot-dfs": {"max_nodes": 20},
    "beam": {"width": 4},
}
NAMES = pytest.mark.parametrize("name", SEARCHES)
PATHS = pytest.mark.parametrize("path", [CHAT, COMPLETIONS])


def distribution(context: Sequence[int]) -> Tensor:
    text = TOKENIZER.decode(list(context), skip_special_tokens=False)
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    if text.endswith("Reply:"):
        logits[ord("A")], logits[ord("B")] = 4 * zlib.crc32(text.encode()) / 2**32, 1.0
        return logits
    answer = text.rsplit("<|assistant|>" if "<|assistant|>" in text else "|", 1)[-1]
    *lines, line = answer.split("\n")
    script = "Answer: "
    if lines and lines[-1].startswith(script):
        logits[END] = 30.0
    elif line.startswith("A") and line == script[: len(line)] and len(line) < len(script):
        logits[ord(script[len(line)])] = 30.0
    elif line == script:
        logits[[ord("7"), ord("3"), ord("5")]] = torch.tensor([1.0, 0.5, 0.0])
    elif line.startswith(script) or len(line) == 2:
        logits[ord("\n")] = 30.0
    else:
        logits[list(b"abc")] = torch.tensor([0.5, 0.2, 0.0])
        if not line and len(lines) >= 2:
            logits[ord("A")] = 30.0 if len(lines) >= 3 else 0.5
    return logits


@pytest.fixture(scope="module")
def server() -> Iterator[RuntimeServer]:
    with serve_runtime(scripted_runtime(distribution, TOKENIZER, max_model_len=1024, num_slots=8192)) as live:
        yield live


def search_of(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": name, **SEARCHES[name], **parameters}


def body_of(search: dict[str, Any], path: str, **fields: Any) -> dict[str, Any]:
    base = {"prompt": "q|"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "q"}]}
    return {"model": "scripted", "max_tokens": 60, "seed": 1, "decoding": {"search": search}} | base | fields


def ask(server: RuntimeServer, search: dict[str, Any], path: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    response = server.post(path, body_of(search, path, **fields))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer["choices"]]


@PATHS
@NAMES
def test_each_answers_like_an_ordinary_request(server: RuntimeServer, path: str, name: str) -> None:
    answer = ask(server, search_of(name), path)
    (text,) = texts(answer)
    assert text.splitlines()[-1].startswith("Answer: ")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["decoding"]["search"] | search_of(name) == answer["decoding"]["search"]
    assert "trace" not in answer
    usage = answer["usage"]
    assert usage["completion_tokens"] in (len(text), len(text) + 1)  # with an end of sequence, where one was drawn
    spend = usage["decoding"]
    assert spend["output_tokens"] > usage["completion_tokens"]
    assert spend["search"]["nodes"] >= 1
    assert (spend["scorer_calls"] > 0) is (name != "beam")


@NAMES
def test_what_the_reply_says_asks_for_the_same_again(server: RuntimeServer, name: str) -> None:
    first = ask(server, search_of(name), seed=9)
    again = ask(server, first["decoding"]["search"], seed=9)
    assert texts(again) == texts(first)
    assert again["decoding"] == first["decoding"]


@NAMES
def test_the_spend_is_what_the_model_counted(server: RuntimeServer, name: str) -> None:
    model = server.runtime.engine.model
    assert isinstance(model, ScriptedModel)
    before = model.forward_tokens
    answer = ask(server, search_of(name), prompt=f"a question for {name}|")
    assert answer["usage"]["decoding"]["target_tokens"] == model.forward_tokens - before


@PATHS
@NAMES
def test_streaming_says_the_same(server: RuntimeServer, path: str, name: str) -> None:
    fields = {"n": 2, "logprobs": True if path == CHAT else 1}
    search = search_of(name, trace="full")
    whole = ask(server, search, path, **fields)
    response = server.post(path, body_of(search, path, stream=True, stream_options={"include_usage": True}, **fields))
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    found, entries = ["", ""], [0, 0]
    for chunk in chunks:
        for choice in chunk["choices"]:
            found[choice["index"]] += choice["text"] if path == COMPLETIONS else choice["delta"].get("content") or ""
            logprobs = choice.get("logprobs") or {}
            entries[choice["index"]] += len(logprobs.get("content" if path == CHAT else "tokens") or ())
    assert found == texts(whole)
    expected = [choice["logprobs"]["content" if path == CHAT else "tokens"] for choice in whole["choices"]]
    assert entries == [len(one) for one in expected]
    assert all(entries)
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    records = [record for chunk in chunks for record in chunk.get("trace") or ()]
    tree = whole["trace"][0]["tree"]
    assert [record["text"] for record in records if record["event"] == "node"] == [node["text"] for node in tree]
    assert records[-1]["event"] == "summary"


@NAMES
def test_n_gives_different_answers(server: RuntimeServer, name: str) -> None:
    answer = ask(server, search_of(name), n=2)
    first, second = texts(answer)
    assert first != second
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


@NAMES
def test_logprobs_are_those_of_the_returned_path(server: RuntimeServer, name: str) -> None:
    answer = ask(server, search_of(name), logprobs=1)
    (choice,) = answer["choices"]
    tokens = choice["logprobs"]["tokens"]
    shown = "".join(tokens).removesuffix("<|end|>")
    assert shown == choice["text"]
    assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"])
    replayed = server.post(
        COMPLETIONS,
        {"model": "scripted", "prompt": f"q|{choice['text']}", "max_tokens": 0, "echo": True, "logprobs": 1},
    ).json()
    expected = replayed["choices"][0]["logprobs"]["token_logprobs"][2:]
    assert choice["logprobs"]["token_logprobs"][: len(expected)] == pytest.approx(expected, abs=1e-4)


@NAMES
def test_stop_and_max_tokens_hold(server: RuntimeServer, name: str) -> None:
    answer = ask(server, search_of(name), stop=["swer"])
    assert texts(answer)[0].endswith("An")
    assert answer["choices"][0]["stop_reason"] == "swer"
    answer = ask(server, search_of(name), max_tokens=5)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


@NAMES
@pytest.mark.parametrize(("unit", "limit"), [("output_tokens", 60), ("forward_tokens", 150), ("flops", 1e4)])
def test_a_budget_ends_it_with_an_answer(server: RuntimeServer, name: str, unit: str, limit: float) -> None:
    decoding = {"search": search_of(name), "budget": {unit: limit}}
    answer = ask(server, {}, decoding=decoding, prompt=f"{name} under {unit}|")
    spend = answer["usage"]["decoding"]
    assert spend[{"forward_tokens": "target_tokens"}.get(unit, unit)] <= limit
    assert texts(answer)[0]


@NAMES
def test_two_prompts_are_two_searches(server: RuntimeServer, name: str) -> None:
    answer = ask(server, search_of(name, trace="summary"), prompt=["q|", "other|"])
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert len(answer["trace"]) == 2
    assert all(report["stopped_by"] for report in answer["trace"])


def test_a_trace_tells_values_visits_and_what_was_pruned(server: RuntimeServer) -> None:
    (report,) = ask(server, search_of("mcts", trace="full"))["trace"]
    grown = [node for node in report["tree"] if "visits" in node]  # the rest are completions of open steps
    step = {node["id"]: node["text"] for node in report["tree"]}
    assert len(grown) > len(report["tree"]) / 2
    # A step that says its parent's over again is worth nothing and isn't scored.
    assert all("q" in node and ("value" in node or node["text"] == step[node["parent"]]) for node in grown)
    (report,) = ask(server, search_of("step-beam", trace="full"))["trace"]
    assert any(node.get("pruned") for node in report["tree"])
    (report,) = ask(server, search_of("litesearch", trace="full"))["trace"]
    assert any(node.get("budget") for node in report["tree"])
    assert (report["value"], report["calibrated"]) == ("self-eval", False)
    (report,) = ask(server, {"type": "rebase", "trace": "summary"})["trace"]
    assert report["sampled"] is True  # no trained reward is loaded


def test_steps_may_end_at_blank_lines_or_after_so_many_tokens(server: RuntimeServer) -> None:
    (report,) = ask(server, search_of("step-beam", trace="full", step="chunk", step_tokens=4))["trace"]
    assert {node["tokens"] for node in report["tree"] if not node["finished"]} == {4}
    (report,) = ask(server, search_of("step-beam", trace="full", step="blank_line"))["trace"]
    assert {node["depth"] for node in report["tree"]} == {1}  # the model writes none: a step is a whole solution


def test_a_pattern_of_ones_own_ends_solutions(server: RuntimeServer) -> None:
    answer = {"rules": ["pattern"], "pattern": "^(b.)$"}
    for choice in ask(server, search_of("step-beam", answer=answer), n=2)["choices"]:
        assert choice["text"].splitlines()[-1][0] in "bA"
        assert choice["finish_reason"] == "stop"
    to_the_end = ask(server, search_of("step-beam", answer=answer, solution_end="sequence"))
    assert "Answer: " in texts(to_the_end)[0]


@pytest.mark.parametrize(
    ("search", "fields", "param"),
    [
        (search_of("litesearch", progress_weight=0.1), {}, "decoding.search.progress_weight"),
        (search_of("litesearch", rule="paper", max_finished=3), {}, "decoding.search.max_finished"),
        (search_of("litesearch", final="first"), {}, "decoding.search.value_threshold"),
        (search_of("litesearch", expected_accuracy=1.0), {}, "decoding.search.expected_accuracy"),
        (search_of("litesearch", value="head"), {}, "decoding.search.value"),
        (search_of("litesearch", step="word"), {}, "decoding.search.step"),
        (search_of("litesearch", answer={"rules": ["pattern"]}), {}, "decoding.search.answer.pattern"),
        (search_of("rebase", value="prm"), {}, "decoding.search.value"),
        (search_of("rebase", balance_temperature=0), {}, "decoding.search.balance_temperature"),
        (search_of("rebase", T_b=0.1), {}, "decoding.search.T_b"),
        (search_of("rebase", samples=7), {"n": 8}, "n"),
        (search_of("step-beam", beams=5), {}, "decoding.search.beams"),
        (search_of("step-beam"), {"n": 4}, "n"),
        (search_of("mcts", selection="best"), {}, "decoding.search.selection"),
        (search_of("tot-dfs", prune_below=2), {}, "decoding.search.prune_below"),
        (search_of("beam", width=33), {}, "decoding.search.width"),
        (search_of("beam"), {"n": 5}, "n"),
        (search_of("beam", scores="raw"), {"logit_bias": {"97": 1}}, "decoding.search.scores"),
        (search_of("beam"), {"logprobs": 1, "temperature": 0.5}, "logprobs"),
        (search_of("beam", value="self-eval"), {}, "decoding.search.value"),
        (search_of("mcts"), {"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    server: RuntimeServer, search: dict[str, Any], fields: dict[str, Any], param: str
) -> None:
    response = server.post(COMPLETIONS, body_of(search, COMPLETIONS, **fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_a_draft_for_the_beam_is_refused(server: RuntimeServer) -> None:
    decoding = {"search": "beam", "speculation": "ngram"}
    response = server.post(COMPLETIONS, body_of({}, COMPLETIONS, decoding=decoding))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "decoding.speculation"


@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "beam"])
def test_drafts_speed_up_the_steps_of_the_others(server: RuntimeServer, name: str) -> None:
    decoding = {"search": search_of(name), "speculation": {"type": "ngram", "length": 3}}
    answer = ask(server, {}, decoding=decoding)
    assert texts(answer)[0].splitlines()[-1].startswith("Answer: ")
    assert answer["usage"]["decoding"]["rounds"] > 0


def test_the_strategies_are_listed(server: RuntimeServer) -> None:
    import httpx

    listed = {one["id"]: one for one in httpx.get(server.url + "/v1/strategies").json()["data"]}
    for name in SEARCHES:
        assert listed[name]["slot"] == "search"
        assert listed[name]["supports"]["structured_output"] is False
        assert listed[name]["supports"]["speculation"] is (name != "beam")
