"""`decoding.search` over HTTP: an ordinary answer, what it cost, its trace, and what is refused, by name.

The scripted model draws letters at random for a prompt without a script, so its samples differ.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from runtime_server import RuntimeServer, serve_runtime
from scripted_server import END, TOKENIZER
from torch import Tensor

from models.scripted import ScriptedModel, scripted_runtime

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def distribution(context: Sequence[int]) -> Tensor:
    """`Answer: D` with a digit, 7 most often; asked to judge a solution, A with probability 0.8."""
    text = TOKENIZER.decode(list(context), skip_special_tokens=False)
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    if text.endswith("Reply:"):
        yes = "A" if "A) yes" in text else "B"
        logits[ord(yes)], logits[ord("B" if yes == "A" else "A")] = 1.386294, 0.0
        return logits
    answer = text.rsplit("<|assistant|>" if "<|assistant|>" in text else "|", 1)[-1]
    script = "Answer: "
    if len(answer) < len(script):
        logits[ord(script[len(answer)])] = 30.0
    elif len(answer) == len(script):
        logits[[ord("7"), ord("3"), ord("5")]] = torch.tensor([1.0, 0.0, 0.0])
    else:
        logits[END] = 30.0
    return logits


@pytest.fixture(scope="module")
def server() -> Iterator[RuntimeServer]:
    with serve_runtime(scripted_runtime(distribution, TOKENIZER)) as live:
        yield live


def ask(server: RuntimeServer, search: Any, path: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    base = {"prompt": "q|"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "q"}]}
    asked = {"model": "scripted", "max_tokens": 40, "seed": 1, "decoding": {"search": search}} | base | body
    response = server.post(path, asked)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer["choices"]]


def streamed(server: RuntimeServer, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = server.post(path, {"model": "scripted", "stream": True, **body})
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("search", ["majority", "best-of-n", "weighted-majority"])
def test_each_answers_like_an_ordinary_request(server: RuntimeServer, path: str, search: str) -> None:
    answer = ask(server, search, path)
    (text,) = texts(answer)
    assert text.startswith("Answer: ")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["decoding"]["search"]["type"] == search
    assert answer["decoding"]["search"]["samples"] == 8
    assert "trace" not in answer
    usage = answer["usage"]
    assert usage["completion_tokens"] == len(text) + 1
    assert usage["decoding"]["output_tokens"] > usage["completion_tokens"]
    assert usage["decoding"]["search"]["nodes"] == 8
    assert usage["decoding"]["scorer_calls"] == (0 if search == "majority" else 8)


@pytest.mark.parametrize("seed", range(6))
def test_majority_returns_what_most_samples_of_a_plain_request_say(server: RuntimeServer, seed: int) -> None:
    plain = server.post(
        COMPLETIONS, {"model": "scripted", "prompt": "q|", "max_tokens": 40, "seed": seed, "n": 9}
    ).json()
    samples = texts(plain)
    most = max(samples.count(text) for text in samples)
    (text,) = texts(ask(server, {"type": "majority", "samples": 9}, seed=seed))
    assert samples.count(text) == most


def test_n_gives_distinct_answers_best_first(server: RuntimeServer) -> None:
    found = texts(ask(server, {"type": "majority", "samples": 32}, n=3))
    assert len(set(found)) == 3
    assert found[0] == "Answer: 7"


def test_the_spend_is_what_the_model_counted(server: RuntimeServer) -> None:
    model = server.runtime.engine.model
    assert isinstance(model, ScriptedModel)
    before = model.forward_tokens
    answer = ask(server, {"type": "best-of-n", "samples": 5}, prompt="another question|")
    assert answer["usage"]["decoding"]["target_tokens"] == model.forward_tokens - before


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_streaming_says_the_same(server: RuntimeServer, path: str) -> None:
    search = {"type": "majority", "samples": 6, "trace": "full"}
    whole = ask(server, search, path, n=2, logprobs=path == CHAT or 0)
    base = {"prompt": "q|"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "q"}]}
    chunks = streamed(
        server,
        path,
        {
            **base,
            "max_tokens": 40,
            "seed": 1,
            "n": 2,
            "logprobs": path == CHAT or 0,
            "decoding": {"search": search},
            "stream_options": {"include_usage": True},
        },
    )
    found = ["", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            found[choice["index"]] += choice["text"] if path == COMPLETIONS else choice["delta"].get("content") or ""
    assert found == texts(whole)
    assert chunks[0]["decoding"]["search"]["type"] == "majority"
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    records = [record for chunk in chunks for record in chunk.get("trace") or ()]
    assert [record["event"] for record in records] == ["node"] * 6 + ["note"] * 6 + ["summary"]
    assert {record["text"] for record in records if record["event"] == "node"} == {
        node["text"] for node in whole["trace"][0]["tree"]
    }


def test_a_summary_is_counts_alone(server: RuntimeServer) -> None:
    (report,) = ask(server, {"type": "majority", "samples": 3, "trace": "summary"})["trace"]
    assert report == {"nodes": 3, "finished": 3, "depth": 1, "explored_tokens": 30, "extend": 3}


def test_two_prompts_are_two_searches(server: RuntimeServer) -> None:
    answer = ask(server, {"type": "majority", "samples": 3, "trace": "summary"}, prompt=["q|", "other|"], n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len(answer["trace"]) == 2
    assert answer["usage"]["decoding"]["search"]["nodes"] == 6


def test_the_openai_client_reads_it(server: RuntimeServer) -> None:
    with server.client() as client:
        stream = client.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "q"}],
            stream=True,
            seed=1,
            extra_body={"decoding": {"search": {"type": "majority", "trace": "full"}}},
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text.startswith("Answer: ")
        response = client.responses.create(
            model="scripted", input="q", extra_body={"decoding": {"search": {"type": "majority", "trace": "summary"}}}
        )
        assert response.output_text.startswith("Answer: ")
        assert response.model_extra is not None
        assert response.model_extra["trace"][0]["nodes"] == 8


def test_shorthand_and_model_name(server: RuntimeServer) -> None:
    base = {"prompt": "q|", "max_tokens": 20}
    answer = server.post(COMPLETIONS, {**base, "decoding": {"strategy": "majority", "samples": 3}}).json()
    assert answer["decoding"]["search"]["samples"] == 3
    assert server.post(COMPLETIONS, {**base, "decoding": "majority"}).json()["decoding"]["search"]["samples"] == 8


def test_structured_output_and_stop_hold_in_every_sample(server: RuntimeServer) -> None:
    answer = ask(server, "majority", structured_outputs={"regex": "Answer: [35]"})
    assert texts(answer)[0] in ("Answer: 3", "Answer: 5")
    answer = ask(server, "majority", stop=["swer"])
    assert texts(answer) == ["An"]
    assert answer["choices"][0]["stop_reason"] == "swer"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"best_of": 4}, "best_of"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 1, "logprobs_mode": "processed"}, "logprobs_mode"),
        ({"max_tokens": 0, "echo": True}, "max_tokens"),
        ({"decoding": {"search": {"type": "majority", "samples": 200}}}, "decoding.search.samples"),
        (
            {"decoding": {"search": {"type": "majority", "answer": {"rules": ["nose"]}}}},
            "decoding.search.answer.rules[0]",
        ),
        (
            {"decoding": {"search": {"type": "majority", "answer": {"rules": ["pattern"]}}}},
            "decoding.search.answer.pattern",
        ),
        ({"decoding": {"search": {"type": "majority", "trace": "loud"}}}, "decoding.search.trace"),
        ({"decoding": {"search": {"type": "best-of-n", "value": "head"}}}, "decoding.search.value"),
        ({"decoding": {"search": {"type": "best-of-n", "value": "nose"}}}, "decoding.search.value"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(server: RuntimeServer, fields: dict[str, Any], param: str) -> None:
    body = {"model": "scripted", "prompt": "q|", "max_tokens": 8, "decoding": {"search": "majority"}} | fields
    response = server.post(COMPLETIONS, body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("unit", ["output_tokens", "forward_tokens", "flops"])
def test_a_budget_ends_a_search_with_the_best_so_far(server: RuntimeServer, unit: str) -> None:
    limit = {"output_tokens": 50, "forward_tokens": 50, "flops": 2000.0}[unit]
    answer = ask(server, None, decoding={"search": {"type": "best-of-n"}, "budget": {unit: limit}})
    spent = answer["usage"]["decoding"]
    assert spent["budget_exhausted"] == unit
    name = {"output_tokens": "output_tokens", "forward_tokens": "target_tokens", "flops": "flops"}[unit]
    assert spent[name] <= limit
    assert texts(answer)[0]


def test_the_strategies_are_listed_with_their_schema(server: RuntimeServer) -> None:
    import httpx

    listed = {one["id"]: one for one in httpx.get(server.url + "/v1/strategies").json()["data"]}
    assert listed["majority"]["slot"] == "search"
    assert listed["majority"]["parameters"]["properties"]["samples"]["default"] == 8
    assert listed["majority"]["supports"]["structured_output"] is True


MANY: list[dict[str, Any]] = [
    {"type": "majority", "samples": 5},
    {"type": "best-of-n", "samples": 3},
    {"type": "weighted-majority", "samples": 4},
    {"type": "phi", "beams": 2, "rollouts": 2, "t_min": 1, "t_max": 2},
    {"type": "predictive", "rollouts": 3, "t_max": 2},
    {"type": "litesearch", "max_iterations": 3},
    {"type": "rebase", "samples": 3},
    {"type": "step-beam"},
    {"type": "mcts", "expansions": 3},
    {"type": "tot-dfs"},
]


def test_many_searches_and_plain_requests_at_once_keep_their_own_parameters(server: RuntimeServer) -> None:
    """Ten searches, each of another kind and seed, beside twenty plain requests: every reply tells of its own request
    and says what it would have said alone."""

    def body(number: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": "scripted", "prompt": f"q{number}|", "max_tokens": 30, "seed": 100 + number}
        if number < len(MANY):
            asked["decoding"] = {"search": MANY[number], "budget": {"output_tokens": 2000 + number}}
        return asked

    def asked(number: int) -> dict[str, Any]:
        response = server.post(COMPLETIONS, body(number))
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    numbers = range(len(MANY) + 20)
    alone = [asked(number) for number in numbers]
    with ThreadPoolExecutor(len(numbers)) as pool:
        together = list(pool.map(asked, numbers))
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        resolved = other["decoding"]
        assert resolved["seed"] == 100 + number
        if number < len(MANY):
            wanted = MANY[number]
            assert {name: resolved["search"][name] for name in wanted} == wanted
            assert resolved["budget"] == {"output_tokens": 2000 + number}
            assert other["usage"]["decoding"]["search"]["nodes"] > 0
        else:
            assert resolved["search"] is None
            assert "search" not in other["usage"]["decoding"]
        assert texts(other) == texts(one)
        assert other["usage"]["completion_tokens"] == one["usage"]["completion_tokens"]
    status = server.runtime.status()
    assert (status.running, status.waiting) == (0, 0)
