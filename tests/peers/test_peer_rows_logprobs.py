"""Rows 7 to 10: log-probabilities of prompt and answer, against values computed from the model's own logits."""

import itertools
import math
from typing import Any

import pytest
import torch
from peer_model import ASSISTANT, BAR, LETTERS, SECOND_E_ID, TOKENIZER, VOCAB_SIZE, E, language_logits, play
from peer_server import CHAT, COMPLETIONS, ENDPOINTS, PeerServer
from torch import Tensor

FLOOR = -9999.0
ITEMS = [(b"the cat ", b"sat"), (b"two and two ", b"are four"), (b"q", b"z"), (b"once upon ", b"a time")]
"""Context and continuation of four loglikelihood requests."""

streamed = pytest.mark.parametrize("stream", [False, True])


def raw(last: int) -> Tensor:
    """The model's own log-probabilities float32 [vocab] after a token."""
    return language_logits(last).log_softmax(-1)


def direct(tokens: list[int]) -> list[float]:
    """Log-probability of every token but the first."""
    return [float(raw(last)[token]) for last, token in itertools.pairwise(tokens)]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_row_7_loglikelihood_equals_a_direct_computation(peer: PeerServer, max_tokens: int) -> None:
    """row 7: ggml-org/llama.cpp#27174, #8942, as lm-evaluation-harness asks: id lists, echo, logprobs 1, greedy."""
    prompts = [list(context + continuation) for context, continuation in ITEMS]
    fields = {"temperature": 0, "logprobs": 1, "echo": True, "seed": 1234, "max_tokens": max_tokens}
    reply = peer.complete(prompts, **fields)
    for (context, continuation), prompt, text, parts in zip(ITEMS, prompts, reply.texts, reply.logprobs, strict=True):
        (arrays,) = parts
        length = len(prompt)
        assert text[:length] == (context + continuation).decode()
        assert len(arrays["tokens"]) == len(arrays["token_logprobs"]) == length + max_tokens
        assert (arrays["token_logprobs"][0], arrays["top_logprobs"][0]) == (None, None)
        assert arrays["token_logprobs"][1:length] == pytest.approx(direct(prompt), abs=1e-3)
        score = sum(arrays["token_logprobs"][len(context) : length])
        assert score == pytest.approx(sum(direct(prompt)[len(context) - 1 :]), abs=1e-3)
        assert arrays["text_offset"][:length] == list(range(length))


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_row_7_the_chosen_value_is_in_the_alternatives_as_the_same_float(peer: PeerServer, count: int) -> None:
    """row 7: ggml-org/llama.cpp#27174; harnesses call a token greedy if its value equals the largest alternative."""
    prompt = [*b"a world apart"]  # without the letter that two ids share
    arrays = peer.complete([prompt], temperature=0, logprobs=count, echo=True, max_tokens=4).arrays
    tokens = prompt + [TOKENIZER.encode(text)[0] for text in arrays["tokens"][len(prompt) :]]
    rows = zip(arrays["tokens"], arrays["token_logprobs"], arrays["top_logprobs"], strict=True)
    for position, (token, value, top) in enumerate(rows):
        if not position:
            continue
        assert top[token] == value
        best = raw(tokens[position - 1]).topk(count).values.tolist()
        assert max(top.values()) == pytest.approx(best[0], abs=1e-5)
        assert (value == max(top.values())) == (tokens[position] == int(raw(tokens[position - 1]).argmax()))
        assert len(top) <= count + 1
    assert all(value == max(top.values()) for value, top in zip(*_answer(arrays, len(prompt)), strict=True))


def _answer(arrays: dict[str, list[Any]], start: int) -> tuple[list[float], list[dict[str, float]]]:
    return arrays["token_logprobs"][start:], arrays["top_logprobs"][start:]


def test_row_7_of_two_ids_with_one_text_the_better_value_stays(peer: PeerServer) -> None:
    """row 7, with vllm-project/vllm#44319 and sgl-project/sglang#32290: keys are texts; ids can be asked for."""
    last = next(i for i in range(97, 123) if {E, SECOND_E_ID} <= set(raw(i).topk(18).indices.tolist()))
    values = raw(last)
    fields = {"temperature": 0, "logprobs": 18, "max_tokens": 1}
    (top,) = peer.complete([[last]], **fields).arrays["top_logprobs"]
    assert top["e"] == pytest.approx(float(values[[E, SECOND_E_ID]].max()), abs=1e-5)
    (top,) = peer.complete([[last]], return_tokens_as_token_ids=True, **fields).arrays["top_logprobs"]
    assert top["token_id:101"] == pytest.approx(float(values[E]), abs=1e-5)
    assert top[f"token_id:{SECOND_E_ID}"] == pytest.approx(float(values[SECOND_E_ID]), abs=1e-5)


def test_row_7_prompt_logprobs_say_the_same(peer: PeerServer) -> None:
    """row 7: vLLM's prompt_logprobs, on both endpoints, beside echo."""
    prompt = [*b"some words"]
    body = {"prompt": [prompt], "prompt_logprobs": 2, "max_tokens": 1, "logprobs": 1, "echo": True}
    (choice,) = peer.post(COMPLETIONS, body).json()["choices"]
    assert choice["prompt_logprobs"][0] is None
    for last, token, candidates in zip(prompt, prompt[1:], choice["prompt_logprobs"][1:], strict=False):
        assert candidates[str(token)]["logprob"] == pytest.approx(float(raw(last)[token]), abs=1e-4)
        assert candidates[str(token)]["rank"] == 1 + int((raw(last) > raw(last)[token]).sum())
        assert len(candidates) in (2, 3)
    values = [
        entry[str(token)]["logprob"] for token, entry in zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True)
    ]
    assert values == choice["logprobs"]["token_logprobs"][1 : len(prompt)]
    chat = peer.post(CHAT, {"messages": [{"role": "user", "content": "hi"}], "prompt_logprobs": 0}).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert [len(entry or ()) for entry in chat["prompt_logprobs"]] == [0, *[1] * (len(chat["prompt_logprobs"]) - 1)]


def test_row_7_scoring_is_the_same_from_the_cache_and_in_a_batch(peer: PeerServer) -> None:
    """row 7: ggml-org/llama.cpp#27174; a cached prefix must not swallow the values of its tokens."""
    prompt = [*b"a prompt that is scored again and again"]
    fields = {"logprobs": 3, "echo": True, "max_tokens": 0}
    first = peer.complete([prompt], **fields).arrays
    assert peer.complete([prompt], **fields).arrays == first
    batch = peer.complete([prompt[:20], prompt, prompt], **fields)
    assert batch.logprobs[1] == batch.logprobs[2] == [first]
    assert batch.logprobs[0][0]["token_logprobs"] == first["token_logprobs"][:20]


@streamed
def test_row_8_logprobs_zero_is_the_chosen_token_alone(peer: PeerServer, stream: bool) -> None:
    """row 8: vllm-project/vllm#3707"""
    arrays = peer.ask(COMPLETIONS, play("X", "DE"), logprobs=0, stream=stream).arrays
    assert arrays["tokens"] == ["X", "DE", "<|end|>"]
    assert arrays["token_logprobs"] == pytest.approx([0, 0, 0], abs=1e-4)
    assert arrays["top_logprobs"] == [{}, {}, {}]


@streamed
@pytest.mark.parametrize("fields", [{}, {"top_logprobs": 0}, {"top_logprobs": None}])
def test_row_8_chat_logprobs_without_alternatives(peer: PeerServer, stream: bool, fields: dict[str, Any]) -> None:
    """row 8: vllm-project/vllm#4795"""
    entries = peer.ask(CHAT, play("X", "DE"), logprobs=True, stream=stream, **fields).entries
    assert [entry["token"] for entry in entries] == ["X", "DE"]
    assert [entry["top_logprobs"] for entry in entries] == [[], []]
    assert [entry["logprob"] for entry in entries] == pytest.approx([0, 0], abs=1e-4)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_row_8_no_logprobs_unless_asked(peer: PeerServer, path: str) -> None:
    """row 8: vllm-project/vllm#3707; null and false are off, zero is not."""
    for off in (None, False) if path == CHAT else (None,):
        assert peer.ask(path, play("X"), logprobs=off).logprobs == [[]]


@pytest.mark.parametrize("fields", [{"logit_bias": {"104": 100, "105": 100}}, {"allowed_token_ids": [104, 105]}])
@pytest.mark.parametrize("mode", ["raw", "processed"])
@streamed
def test_row_9_impossible_tokens_are_valid_json(
    peer: PeerServer, fields: dict[str, Any], mode: str, stream: bool
) -> None:
    """row 9: vllm-project/vllm#16540 (the reply is parsed by a strict reader)"""
    options = {**fields, "logprobs_mode": mode, "max_tokens": 3, "stream": stream}
    entries = peer.ask(CHAT, "%hi", logprobs=True, top_logprobs=20, **options).entries
    assert {entry["token"] for entry in entries} <= {"h", "i"}
    for entry in entries:
        assert len(entry["top_logprobs"]) <= 20
        for candidate in [entry, *entry["top_logprobs"]]:
            assert FLOOR <= candidate["logprob"] <= 0
            assert candidate["bytes"] is not None
    if mode == "processed" and "allowed_token_ids" in fields:
        assert all(candidate["logprob"] == FLOOR for entry in entries for candidate in entry["top_logprobs"][2:])
        assert all(math.fsum(map(math.exp, _values(entry))) == pytest.approx(1, abs=1e-4) for entry in entries)
    arrays = peer.ask(COMPLETIONS, "%hi", logprobs=20, **options).arrays
    assert all(FLOOR <= value <= 0 for top in arrays["top_logprobs"] for value in top.values())


def _values(entry: dict[str, Any]) -> list[float]:
    return [candidate["logprob"] for candidate in entry["top_logprobs"]]


def test_row_9_an_impossible_prompt_token_has_the_floor(peer: PeerServer) -> None:
    """row 9: vllm-project/vllm#16540 in the prompt: the model can't write `|`."""
    prompt = [*b"ab", BAR]
    body = {"prompt": [prompt], "echo": True, "logprobs": 2, "max_tokens": 0, "prompt_logprobs": 1}
    (choice,) = peer.post(COMPLETIONS, body).json()["choices"]
    assert choice["logprobs"]["token_logprobs"][2] == choice["logprobs"]["top_logprobs"][2]["|"] == FLOOR
    assert choice["prompt_logprobs"][2][str(BAR)]["logprob"] == FLOOR


@streamed
def test_row_9_bytes_are_the_real_ones(peer: PeerServer, stream: bool) -> None:
    """row 9: vllm-project/vllm#16540; joined over the tokens they are the text, half characters included."""
    script = play("a", b"\xf0\x9f", b"\x98\x80", "b", b"\xe2\x99", b"\xa5")
    reply = peer.ask(CHAT, script, logprobs=True, top_logprobs=3, stream=stream)
    assert (
        bytes(byte for entry in reply.entries for byte in entry["bytes"]).decode() == reply.text == "a\U0001f600b\u2665"
    )
    assert reply.entries[1]["token"] == "bytes:\\xf0\\x9f"
    assert reply.entries[1]["top_logprobs"][0]["bytes"] == [0xF0, 0x9F]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.3},
        {"temperature": 2},
        {"repetition_penalty": 1.7},
        {"frequency_penalty": 2, "presence_penalty": 1},
        {"top_k": 3, "top_p": 0.5, "min_p": 0.2},
        {"logit_bias": {"122": 5}},
        {"n": 3},
    ],
)
def test_row_10_raw_values_are_stable(peer: PeerServer, fields: dict[str, Any]) -> None:
    """row 10: vllm-project/vllm#9453: raw, the default, is the model's own value whatever the sampler does."""
    forced = {"allowed_token_ids": [122], "max_tokens": 4, "logprobs": 3}
    for mode in ({}, {"logprobs_mode": "raw"}):
        reply = peer.complete("%ab|", **{"temperature": 1, **forced, **fields, **mode})
        for parts in reply.logprobs:
            values = parts[0]["token_logprobs"]
            assert values == pytest.approx([float(raw(BAR)[122]), *[float(raw(122)[122])] * 3], abs=1e-4)
            assert parts[0]["top_logprobs"][1]["z"] == values[1]


@pytest.mark.parametrize("temperature", [0.3, 1, 1.7])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_row_10_processed_values_are_those_drawn_from(peer: PeerServer, path: str, temperature: float) -> None:
    """row 10: vllm-project/vllm#9453: the switch, against the pipeline computed by hand."""
    bias = {str(token): 1 for token in LETTERS} | {str(E): -100, str(SECOND_E_ID): -100}
    fields: dict[str, Any] = {"temperature": temperature, "top_k": 4, "frequency_penalty": 1.5, "logit_bias": bias}
    scored: dict[str, Any] = {"logprobs": True, "top_logprobs": 5} if path == CHAT else {"logprobs": 5}
    reply = peer.ask(path, "%ab", seed=3, max_tokens=6, logprobs_mode="processed", **fields, **scored)
    values = [entry["logprob"] for entry in reply.entries] if path == CHAT else reply.arrays["token_logprobs"]
    counts = torch.zeros(VOCAB_SIZE)
    last = ASSISTANT if path == CHAT else BAR
    assert len(reply.text) == 6
    for character, value in zip(reply.text, values, strict=True):
        logits = language_logits(last) - 1.5 * counts
        for token, value_added in bias.items():
            logits[int(token)] += value_added
        logits /= temperature
        kept = torch.full_like(logits, float("-inf"))
        best = logits.topk(4).indices
        kept[best] = logits[best]
        last = ord(character)
        assert value == pytest.approx(float(kept.log_softmax(-1)[last]), abs=1e-3)
        counts[last] += 1


def test_row_10_an_unknown_mode_is_refused(peer: PeerServer) -> None:
    """row 10: vllm-project/vllm#9453; the switch has two positions."""
    response = peer.post(COMPLETIONS, {"prompt": "a", "logprobs": 1, "logprobs_mode": "raw_logits"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logprobs_mode"
