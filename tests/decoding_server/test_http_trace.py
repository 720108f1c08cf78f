"""`decoding.trace`: what a reply tells of every token and of every draft tree, and that it changes nothing else."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from live_server import LiveServer
from runtime_server import serve_runtime
from scripted_server import END, LETTERS, TOKENIZER
from torch import Tensor

from models.scripted import scripted_runtime

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = [{"role": "user", "content": "q"}]


def lettered(seed: int) -> Any:
    """Random logits of the letters, the same for equal last tokens."""

    def distribution(context: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(seed + 31 * context[-1])
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        logits[list(LETTERS)] = torch.randn(26, generator=generator) * 1.5
        return logits

    return distribution


def looping(context: Sequence[int]) -> Tensor:
    """`x = 1` line by line, over and over; after a line end a `y` is nearly as likely as the `x`."""
    text = TOKENIZER.decode(list(context), skip_special_tokens=False).rpartition("|")[2]
    line = "x = 1\n"
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    logits[ord(line[len(text) % len(line)])] = 30.0
    if len(text) % len(line) == 0:
        logits[ord("y")] = 28.0
    return logits


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    runtime = scripted_runtime(lettered(1), TOKENIZER, drafts={"draft": lettered(2)})
    with serve_runtime(runtime) as live:
        yield LiveServer(live.url, runtime)


def ask(server: LiveServer, path: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    base = {COMPLETIONS: {"prompt": "p|"}, CHAT: {"messages": MESSAGES}, RESPONSES: {"input": "q"}}[path]
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    response = server.post(path, {limit: 12, "seed": 3, **base, **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def of(kind: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["event"] == kind]


def test_every_token_tells_its_candidates(server: LiveServer) -> None:
    """Exact values: they are those of the processed log-probabilities, and of a top-k of 3."""
    sampler = {"type": "top_k", "k": 3}
    fields = {"logprobs": 3, "logprobs_mode": "processed"}
    reply = ask(server, **fields, decoding={"sampler": sampler, "trace": "full"})
    (trace,) = reply["trace"]
    tokens = of("token", trace["records"])
    assert trace["index"] == 0
    assert "".join(token["text"] for token in tokens) == reply["choices"][0]["text"]
    values = reply["choices"][0]["logprobs"]["token_logprobs"]
    for token, value in zip(tokens, values, strict=True):
        assert token["final"] == pytest.approx(torch.tensor(value).exp().item(), abs=2e-6)
        assert token["kept"] == 3
        left = [one for one in token["candidates"] if one["final"] > 0]
        assert len(left) == 3
        assert sum(one["final"] for one in left) == pytest.approx(1, abs=5e-6)
        assert token["kept_mass"] == pytest.approx(sum(one["raw"] for one in left), abs=5e-6)
        assert any(one["final"] == 0 < one["raw"] for one in token["candidates"])
        drawn = next(one for one in token["candidates"] if one["id"] == token["id"])
        assert (drawn["raw"], drawn["final"]) == (token["raw"], token["final"])


@pytest.mark.parametrize("speculation", [None, {"type": "rsd-s", "width": 2, "length": 2}, "ngram"])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, RESPONSES])
def test_it_changes_nothing_else(server: LiveServer, path: str, speculation: Any) -> None:
    decoding = {"speculation": speculation} if speculation else {}
    plain, told = (ask(server, path, decoding={**decoding, **more}) for more in ({}, {"trace": "full"}))
    assert "trace" not in plain
    assert "trace" not in plain["decoding"]
    assert told["decoding"]["trace"] == "full"
    assert told["trace"]

    def answer(reply: dict[str, Any]) -> Any:
        return reply.get("choices") or [item["content"] for item in reply["output"]]

    assert answer(plain) == answer(told)
    spent = [reply["usage"]["decoding"] for reply in (plain, told)]
    assert spent[0]["output_tokens"] == spent[1]["output_tokens"]
    assert spent[0]["drafted_tokens"] == spent[1]["drafted_tokens"]


@pytest.mark.parametrize(
    "speculation",
    [
        {"type": "rsd-s", "width": 3, "length": 3},
        {"type": "rsd-c", "branching": [2, 2]},
        {"type": "multi-draft", "branching": [3, 1]},
        {"type": "chain", "length": 3},
        {"type": "spectr", "width": 2, "length": 2},
        {"type": "rsd-s", "width": 3, "length": 3, "coupled": True},
    ],
    ids=lambda one: one["type"],
)
def test_rounds_are_the_drafted_trees(server: LiveServer, speculation: dict[str, Any]) -> None:
    """The accepted nodes are a path, its tokens and the one more are the answer, and the counts are the usage's."""
    reply = ask(server, decoding={"speculation": speculation, "trace": "full"}, max_tokens=40, ignore_eos=True)
    records = reply["trace"][0]["records"]
    rounds, spend = of("round", records), reply["usage"]["decoding"]
    assert len(rounds) == spend["rounds"] > 0
    assert sum(len(one["nodes"]) - 1 for one in rounds) == spend["drafted_tokens"]
    accepted = [[node for node in one["nodes"] if node.get("accepted")] for one in rounds]
    assert [len(nodes) for nodes in accepted] == [one["accepted"] for one in rounds]
    assert any(accepted)
    assert any(node.get("accepted") is False for one in rounds for node in one["nodes"])
    for one in rounds:
        at = 0
        for number, node in enumerate(one["nodes"]):
            if node.get("accepted"):
                assert node["parent"] == at
                at = number
        for node in one["nodes"][1:]:
            assert 0 < node["draft"] <= 1
            assert 0 <= node["target"] <= 1
    # The first token comes without a round; from then on rounds are the answer, but where
    # no room is left for one; its end may cut the last one.
    text = "".join(token["text"] for token in of("token", records))
    told = text[0] + "".join(
        "".join(node["text"] for node in nodes) + (one["next"] or {"text": ""})["text"]
        for one, nodes in zip(rounds, accepted, strict=True)
    )
    assert text == reply["choices"][0]["text"]
    assert len(told) >= len(text) - 2
    assert told[: len(text)] == text[: len(told)]


def test_drafts_of_a_look_up_have_no_distribution() -> None:
    runtime = scripted_runtime(looping, TOKENIZER)
    with serve_runtime(runtime) as live:
        fields = {"prompt": "p|", "temperature": 0, "max_tokens": 30}
        reply = live.post(COMPLETIONS, {**fields, "decoding": {"speculation": "ngram", "trace": "full"}}).json()
    nodes = [node for one in of("round", reply["trace"][0]["records"]) for node in one["nodes"][1:]]
    assert nodes
    assert {node["draft"] for node in nodes} == {None}


def test_the_grammar_penalty_tells_what_repeats() -> None:
    runtime = scripted_runtime(looping, TOKENIZER)
    penalty = {"type": "grammar", "language": "python", "tokens": False}
    with serve_runtime(runtime) as live:
        decoding = {"penalty": penalty, "trace": "full"}
        fields = {"prompt": "p|", "temperature": 0, "max_tokens": 60}
        tokens = of("token", live.post(COMPLETIONS, {**fields, "decoding": decoding}).json()["trace"][0]["records"])
    told = [token["stages"][0] for token in tokens if "stages" in token]
    assert told, "nothing was penalised"
    assert all(stage["stage"] == "grammar" and stage["language"] == "python" for stage in told)
    assert not any("stages" in token for token in tokens[: 4 * len("x = 1\n")]), "four copies are allowed"
    first = told[0]
    assert first["changed"] == len(first["tokens"])
    assert {"id": ord("x"), "text": "x", "factor": 0.5} in first["tokens"]
    (repeat,) = first["repeats"]
    assert (repeat["level"], repeat["period"], repeat["copies"], repeat["text"]) == ("line", 1, 5, "x = 1\n")


def test_a_stream_tells_each_step_as_it_is_made(server: LiveServer) -> None:
    body = {"messages": MESSAGES, "max_tokens": 9, "seed": 3, "decoding": {"trace": "full"}}
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    whole = server.post(CHAT, body).json()
    lines = server.post(CHAT, {**body, **options}).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    records = [record for chunk in chunks for record in chunk.get("trace", [])]
    assert records == whole["trace"][0]["records"]
    spent = [chunk["usage"]["decoding"]["output_tokens"] for chunk in chunks if "trace" in chunk]
    assert spent == sorted(spent)
    assert spent[-1] == 9
    assert all("decoding" not in chunk["usage"] for chunk in chunks if "trace" not in chunk and chunk["choices"])


def test_choices_have_records_of_their_own(server: LiveServer) -> None:
    reply = ask(server, n=3, best_of=4, decoding={"trace": "full"})
    for choice, trace in zip(reply["choices"], reply["trace"], strict=True):
        assert "".join(token["text"] for token in of("token", trace["records"])) == choice["text"]


@pytest.mark.parametrize(
    ("decoding", "param"),
    [({"trace": "some"}, "decoding.trace"), ({"trace": "full", "search": "majority"}, "decoding.trace")],
)
def test_what_is_refused(server: LiveServer, decoding: dict[str, Any], param: str) -> None:
    response = server.post(COMPLETIONS, {"prompt": "p|", "decoding": decoding})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_search_says_which_nodes_are_its_answers(server: LiveServer) -> None:
    search = {"type": "majority", "samples": 4, "trace": "full"}
    reply = ask(server, n=2, decoding={"search": search})
    (trace,) = reply["trace"]
    texts = {node["id"]: node["text"] for node in trace["tree"]}
    assert [texts[number] for number in trace["answers"]] == [choice["text"] for choice in reply["choices"]]


def test_end_of_sequence_is_told_too() -> None:
    def ends(context: Sequence[int]) -> Tensor:
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        logits[END] = 30.0
        return logits

    with serve_runtime(scripted_runtime(ends, TOKENIZER)) as live:
        reply = live.post(COMPLETIONS, {"prompt": "p|", "decoding": {"trace": "full"}}).json()
    (token,) = reply["trace"][0]["records"]
    assert token["id"] == END
    assert token["kept_mass"] == pytest.approx(1)
