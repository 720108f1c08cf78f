"""phi-decoding and predictive decoding over HTTP, with whatever else a request may ask for.

The scripted model writes lines of about six random letters, all but the first begin with `a` or `b`, and ends after
about three of them.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import httpx
import pytest
import torch
from runtime_server import RuntimeServer, serve_runtime
from scripted_server import END, LETTERS, TOKENIZER
from torch import Tensor

from models.scripted import scripted_runtime

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PHI = {"type": "phi", "beams": 3, "rollouts": 3, "t_max": 3, "t_min": 3}
SEARCHES = {
    "phi": PHI,
    "phi-paper": {**PHI, "profile": "paper"},
    "phi-origin": {**PHI, "profile": "origin"},
    "phi-one-beam": {"type": "phi", "beams": 1, "rollouts": 6, "t_max": 3},
    "phi-chunks": {**PHI, "step": {"end": "chunk", "max_tokens": 7}},
    "predictive": {"type": "predictive", "rollouts": 4, "t_max": 3},
    "predictive-original": {"type": "predictive", "variant": "original", "rollouts": 4, "t_max": 3},
}
ALL = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())


@cache
def after(last: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(31 * last[-1] + last[0])
    logits = torch.full((TOKENIZER.vocab_size,), -200.0)
    logits[list(LETTERS)] = torch.randn(26, generator=generator) * 1.5
    logits[ord("\n")], logits[END] = 2.3, -3.0
    if last[-1] == ord("\n"):
        logits[:] = -200.0
        logits[[ord("a"), ord("b"), END]] = 0.0
    return logits


def distribution(context: Sequence[int]) -> Tensor:
    return after(tuple(context[-2:]))


@pytest.fixture(scope="module")
def server() -> Iterator[RuntimeServer]:
    with serve_runtime(scripted_runtime(distribution, TOKENIZER)) as live:
        yield live


def body(search: Any, path: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    base = {"prompt": "q|"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "q"}]}
    return {"model": "scripted", "max_tokens": 60, "seed": 1, "decoding": {"search": search}} | base | fields


def ask(server: RuntimeServer, search: Any, path: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    response = server.post(path, body(search, path, **fields))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer["choices"]]


def streamed(server: RuntimeServer, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    response = server.post(path, {"stream": True, **asked})
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def pieces(chunks: Sequence[dict[str, Any]], choice: int = 0) -> list[str]:
    """The texts of one choice's chunks."""
    found = [one for chunk in chunks for one in chunk["choices"] if one["index"] == choice]
    return [one["text"] if "text" in one else one["delta"].get("content") or "" for one in found]


@ALL
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_streamed_or_not_the_answer_is_the_same(server: RuntimeServer, search: dict[str, Any], path: str) -> None:
    for seed in range(2):
        whole = ask(server, search, path, seed=seed)
        chunks = streamed(server, path, body(search, path, seed=seed, stream_options={"include_usage": True}))
        assert ["".join(pieces(chunks))] == texts(whole)
        ends = [one["finish_reason"] for chunk in chunks for one in chunk["choices"] if one["finish_reason"]]
        assert ends == [whole["choices"][0]["finish_reason"]]
        last, usage = chunks[-1]["usage"], whole["usage"]
        assert last["completion_tokens"] == usage["completion_tokens"]
        assert last["decoding"]["search"] == usage["decoding"]["search"]
        assert last["decoding"]["output_tokens"] == usage["decoding"]["output_tokens"]


def test_one_beam_streams_step_by_step(server: RuntimeServer) -> None:
    chunks = streamed(server, COMPLETIONS, body(SEARCHES["phi-one-beam"]))
    assert len([piece for piece in pieces(chunks) if piece]) >= 3
    final = streamed(server, COMPLETIONS, body({**SEARCHES["phi-one-beam"], "stream_mode": "final"}))
    assert len([piece for piece in pieces(final) if piece]) == 1


@ALL
def test_usage_and_the_echo_of_parameters(server: RuntimeServer, search: dict[str, Any]) -> None:
    answer = ask(server, search, temperature=0.7)
    usage = answer["usage"]
    spent = usage["decoding"]
    length = len(answer["choices"][0]["text"])
    stopped = answer["choices"][0]["finish_reason"] == "stop"
    assert usage["completion_tokens"] == length + stopped
    assert spent["output_tokens"] > usage["completion_tokens"]
    assert 1 <= spent["search"]["steps"] <= 3
    if search["type"] == "phi":
        stages = sum(spent["search"][f"{stage}_tokens"] for stage in ("rollout", "foresight", "final"))
        assert stages == spent["output_tokens"] == spent["search"]["explored_tokens"]
    echoed = answer["decoding"]["search"]
    assert echoed.items() >= {name: value for name, value in search.items() if name != "step"}.items()
    assert answer["decoding"]["temperature"] == 0.7
    again = ask(server, echoed, temperature=0.7, seed=answer["decoding"]["seed"])
    assert texts(again) == texts(answer)


def test_the_full_trace_is_the_tree(server: RuntimeServer) -> None:
    answer = ask(server, {**PHI, "trace": "full"})
    (report,) = answer["trace"]
    nodes = {node["id"]: node for node in report["tree"]}
    assert len(nodes) == report["nodes"]
    candidates = [node for node in nodes.values() if node.get("stage") == "rollout"]
    for node in candidates:
        assert node.keys() >= {"s", "kind", "pruned", "step"}
        assert node["pruned"] or node.keys() >= {"F", "A", "cluster", "p", "chosen"}
    assert sum(node["pruned"] for node in candidates) == report["pruned"]
    (final,) = [node for node in nodes.values() if node.get("final")]
    text, node = "", final
    while node is not None:
        text, node = node["text"] + text, nodes.get(node["parent"])
    assert [text] == texts(answer)
    chunks = streamed(server, COMPLETIONS, body({**PHI, "trace": "full"}))
    told: dict[int, dict[str, Any]] = {}
    for record in (record for chunk in chunks for record in chunk.get("trace", [])):
        if record["event"] == "node":
            told[record["id"]] = {name: value for name, value in record.items() if name != "event"}
        elif record["event"] == "note":
            told[record["node"]] |= {name: value for name, value in record.items() if name not in ("event", "node")}
    assert told == nodes
    assert "trace" not in ask(server, PHI)


@ALL
def test_n_answers(server: RuntimeServer, search: dict[str, Any]) -> None:
    if search.get("beams") == 1:
        response = server.post(COMPLETIONS, body(search, n=2))
        assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
        return
    answer = ask(server, search, n=3)
    assert texts(answer)[0] == texts(ask(server, search))[0]
    assert len(set(texts(answer))) == 3
    chunks = streamed(server, COMPLETIONS, body(search, n=3))
    assert ["".join(pieces(chunks, choice)) for choice in range(3)] == texts(answer)


@ALL
def test_stop_strings_across_step_borders(server: RuntimeServer, search: dict[str, Any]) -> None:
    stop, stopped = "\na", 0
    for include in (False, True):
        fields = {"stop": [stop], "include_stop_str_in_output": include, "ignore_eos": True}
        for seed in range(1, 4):
            answer = ask(server, search, seed=seed, **fields)
            (choice,) = answer["choices"]
            assert stop not in choice["text"][: -len(stop) if include else None]
            if choice["finish_reason"] == "stop":
                stopped += 1
                assert choice["stop_reason"] == stop
                assert choice["text"].endswith(stop) == include
            chunks = streamed(server, COMPLETIONS, body(search, seed=seed, **fields))
            assert "".join(pieces(chunks)) == choice["text"]
    assert stopped


@ALL
def test_max_tokens_logprobs_and_token_ids(server: RuntimeServer, search: dict[str, Any]) -> None:
    for limit in (1, 9, 25):
        fields = {"max_tokens": limit, "logprobs": 2, "logit_bias": {str(END): -100}, "return_token_ids": True}
        (choice,) = ask(server, search, **fields)["choices"]
        assert (len(choice["text"]), choice["finish_reason"]) == (limit, "length")
        arrays = choice["logprobs"]
        assert "".join(arrays["tokens"]) == choice["text"]
        assert TOKENIZER.decode(choice["token_ids"]) == choice["text"]
        context = TOKENIZER.encode("q|")
        for token, value, top in zip(
            choice["token_ids"], arrays["token_logprobs"], arrays["top_logprobs"], strict=True
        ):
            raw = distribution(context).log_softmax(-1)
            assert value == pytest.approx(float(raw[token]), abs=1e-4)
            assert len(top) in (2, 3)
            context.append(token)
        chunks = streamed(server, COMPLETIONS, body(search, **fields))
        values = [
            value
            for chunk in chunks
            for one in chunk["choices"]
            if one.get("logprobs")
            for value in one["logprobs"]["token_logprobs"]
        ]
        assert values == arrays["token_logprobs"]


@ALL
def test_biases_bans_and_minimum_hold_in_every_stage(server: RuntimeServer, search: dict[str, Any]) -> None:
    """What is banned must not come in through foresight that becomes the answer."""
    reuse = {"final": {"reuse_foresight": True}} if search["type"] == "phi" else {}
    fields = {"logit_bias": {str(ord("e")): -100}, "bad_words": ["o"], "min_tokens": 30, "top_k": 12}
    for seed in range(3):
        answer = ask(server, {**search, **reuse}, seed=seed, return_token_ids=True, **fields)
        assert not set("eo") & set(texts(answer)[0])
        assert len(answer["choices"][0]["token_ids"]) >= 30


@ALL
@pytest.mark.parametrize("budget", [{"output_tokens": 150}, {"forward_tokens": 400}, {"flops": 20000}])
def test_budgets(server: RuntimeServer, search: dict[str, Any], budget: dict[str, Any]) -> None:
    asked = body(search)
    asked["decoding"]["budget"] = budget
    response = server.post(COMPLETIONS, asked)
    assert response.status_code == 200, response.text
    answer = response.json()
    spent = answer["usage"]["decoding"]
    used = {"output_tokens": spent["output_tokens"], "forward_tokens": spent["target_tokens"], "flops": spent["flops"]}
    ((unit, limit),) = budget.items()
    assert used[unit] <= limit
    assert texts(answer)[0]


def test_speculation_inside_a_search(server: RuntimeServer) -> None:
    """Drafts change what a search costs and, with other noise, its draws, not what it may say."""
    asked = body(PHI)
    asked["decoding"]["speculation"] = {"type": "ngram", "length": 3}
    first, second = (server.post(COMPLETIONS, asked).json() for _ in range(2))
    assert texts(first) == texts(second)
    assert first["usage"]["decoding"]["drafted_tokens"] > 0


async def test_all_at_once_equal_each_alone_and_leave_nothing(server: RuntimeServer) -> None:
    alone = {name: texts(ask(server, search)) for name, search in SEARCHES.items()}
    async with httpx.AsyncClient(timeout=60) as client:
        replies = await asyncio.gather(
            *(client.post(server.url + COMPLETIONS, json=body(search)) for search in SEARCHES.values()),
            *(client.post(server.url + COMPLETIONS, json=body(None)) for _ in range(4)),
        )
    for name, reply in zip(SEARCHES, replies, strict=False):
        assert texts(reply.json()) == alone[name], name
    engine = server.runtime.engine
    assert engine.pool.num_free + engine.scheduler.cache.size == engine.pool.num_slots


@pytest.mark.parametrize(
    ("search", "fields", "param"),
    [
        ({"beams": 9, "rollouts": 8}, {}, "decoding.search.rollouts"),
        ({"t_min": 3, "t_max": 2}, {}, "decoding.search.t_min"),
        ({"profile": "main"}, {}, "decoding.search.profile"),
        ({"tau": 0.5}, {}, "decoding.search.tau"),
        ({"step": {"end": "word"}}, {}, "decoding.search.step.end"),
        ({"step": 64}, {}, "decoding.search.step"),
        ({"foresight": {"temperature": 9}}, {}, "decoding.search.foresight.temperature"),
        ({"foresight": {"max_tokens": 0}, "final": {"reuse_foresight": True}}, {}, None),
        ({"K": 3}, {}, "decoding.search.K"),
        ({"beams": 2}, {"n": 3}, "n"),
        ({}, {"best_of": 3}, "best_of"),
        ({}, {"max_tokens": 0}, "max_tokens"),
        ({}, {"prompt_logprobs": 1}, "prompt_logprobs"),
        ({}, {"logprobs": 1, "logprobs_mode": "processed"}, "logprobs_mode"),
        ({}, {"response_format": {"type": "json_object"}}, "response_format"),
        ({}, {"mirostat": 2}, "decoding.search"),
    ],
)
def test_refusals_name_the_field(
    server: RuntimeServer, search: dict[str, Any], fields: dict[str, Any], param: str | None
) -> None:
    response = server.post(COMPLETIONS, body({"type": "phi", **search}, **fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == (param or "decoding.search.final.reuse_foresight")


def test_tools_are_refused(server: RuntimeServer) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    response = server.post(CHAT, body("phi", CHAT, tools=[tool]))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"


def test_short_forms(server: RuntimeServer) -> None:
    long = ask(server, {"type": "phi", "beams": 2, "rollouts": 2})
    asked = {**body(None), "decoding": {"strategy": "phi", "beams": 2, "rollouts": 2}}
    assert texts(server.post(COMPLETIONS, asked).json()) == texts(long)
    listed = {one["id"]: one for one in httpx.get(server.url + "/v1/strategies").json()["data"]}
    for name in ("phi", "predictive"):
        assert listed[name]["slot"] == "search"
        assert listed[name]["supports"]["structured_output"] is False
        assert listed[name]["summary"]
