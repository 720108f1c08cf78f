"""The request fields beyond OpenAI's own: each changes what it says, on both endpoints where it makes sense."""

import math

import pytest
from scripted_server import LETTERS, TOKENIZER

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RANDOM = "?|"


def complete(server, **fields):
    response = server.post(COMPLETIONS, {"prompt": RANDOM, "max_tokens": 12, "seed": 5, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def text_of(server, **fields):
    return complete(server, **fields)["choices"][0]["text"]


def refused(server, path=COMPLETIONS, **fields):
    body = {"prompt": RANDOM} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "hi"}]}
    response = server.post(path, {**body, **fields})
    assert response.status_code == 400, response.text
    return response.json()["error"]["param"]


def test_allowed_token_ids(server):
    assert set(text_of(server, allowed_token_ids=[ord("x"), ord("y")])) == {"x", "y"}


def test_bad_words(server):
    letters = [chr(letter) for letter in LETTERS]
    assert set(text_of(server, bad_words=letters[:24], max_tokens=30)) <= {"y", "z"}
    two = text_of(server, bad_words=["ab"], allowed_token_ids=[97, 98], max_tokens=40)
    assert "ab" not in two


def test_no_repeat_ngram_size(server):
    text = text_of(server, no_repeat_ngram_size=1, max_tokens=20)
    assert len(set(text)) == 20


@pytest.mark.parametrize(
    "fields",
    [
        {"typical_p": 0.5},
        {"top_n_sigma": 1.0},
        {"epsilon_cutoff": 0.01},
        {"eta_cutoff": 0.01},
        {"xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.2},
        {"dry_multiplier": 0.8, "dry_base": 1.5, "dry_allowed_length": 3, "dry_sequence_breakers": ["q"]},
        {"no_repeat_ngram_size": 3},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_field_becomes_its_transform(server, fields):
    """The reply names it, with the parameters given; off values leave nothing."""
    decoding = complete(server, **fields)["decoding"]
    (found,) = decoding["sampler"] + decoding["penalty"]
    assert found["type"] in decoding["pipeline"]
    given = set(fields.values()) if not any(isinstance(value, list) for value in fields.values()) else {0.8, 1.5, 3}
    assert given - {2 if "mirostat" in fields else None} <= {v for v in found.values() if not isinstance(v, list)}


@pytest.mark.parametrize(
    "fields",
    [
        {"typical_p": 1.0},
        {"top_n_sigma": -1},
        {"epsilon_cutoff": 0},
        {"eta_cutoff": 0.0},
        {"xtc_probability": 0},
        {"mirostat": 0},
        {"dry_multiplier": 0},
        {"no_repeat_ngram_size": 0},
        {"top_k": -1},
        {"top_k": 0},
        {"top_p": 1.0},
        {"min_p": 0},
        {"repetition_penalty": 1.0},
        {"presence_penalty": 0, "frequency_penalty": 0},
        {"logit_bias": {}},
        {"min_tokens": 0},
        {"bad_words": []},
    ],
    ids=str,
)
def test_neutral_values_are_no_stage(server, fields):
    assert complete(server, **fields)["decoding"]["pipeline"] == []


def test_include_stop_str_in_output(server):
    script = {"prompt": "abcSTOPd|", "stop": "STOP", "max_tokens": 20}
    assert text_of(server, **script) == "abc"
    assert text_of(server, **script, include_stop_str_in_output=True) == "abcSTOP"
    by_token = {"prompt": "abcd|", "stop_token_ids": [ord("c")], "max_tokens": 20}
    assert text_of(server, **by_token) == "ab"
    assert text_of(server, **by_token, include_stop_str_in_output=True) == "abc"


def test_skip_special_tokens(server):
    """The end of a turn is a token without text, unless asked for."""
    script = {"prompt": [97, 257, 98, ord("|")], "max_tokens": 8}
    assert text_of(server, **script) == "ab"
    assert text_of(server, **script, skip_special_tokens=False) == "a<|system|>b"


def test_token_ids(server):
    response = complete(server, prompt="ab|", return_token_ids=True, n=2)
    for choice in response["choices"]:
        assert choice["prompt_token_ids"] == [97, 98, ord("|")]
        assert choice["token_ids"] == [97, 98, 256]
    chat = server.post(CHAT, {"messages": [{"role": "user", "content": "ab"}], "return_token_ids": True}).json()
    assert chat["choices"][0]["token_ids"] == [97, 98, 256]
    assert TOKENIZER.decode(chat["prompt_token_ids"], skip_special_tokens=False).startswith("<|user|>ab")


def test_tokens_as_ids(server):
    response = complete(server, prompt="a|", logprobs=2, return_tokens_as_token_ids=True)
    logprobs = response["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["token_id:97", "token_id:256"]
    assert set(logprobs["top_logprobs"][0]) > {"token_id:97"}
    body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "return_tokens_as_token_ids": True}
    content = server.post(CHAT, body).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["token_id:97"]
    assert content[0]["bytes"] == [97]


def test_prompt_logprobs(server):
    """A candidate's rank counts from 1; the prompt's own token is always among them."""
    entries = complete(server, prompt="ab|a", prompt_logprobs=1)["choices"][0]["prompt_logprobs"]
    assert entries[0] is None
    assert len(entries) == 4
    own = entries[3][str(ord("a"))]
    assert (own["rank"], own["decoded_token"], round(own["logprob"], 6)) == (1, "a", 0.0)
    second = entries[1]
    assert second[str(ord("b"))]["rank"] >= 1
    chat = {"messages": [{"role": "user", "content": "ab"}], "prompt_logprobs": 0}
    found = server.post(CHAT, chat).json()["prompt_logprobs"]
    assert found[0] is None
    assert all(len(entry) == 1 for entry in found[1:])
    assert refused(server, prompt_logprobs=1, stream=True) == "prompt_logprobs"
    assert refused(server, prompt_logprobs=21) == "prompt_logprobs"


def test_prompt_logprobs_without_an_answer(server):
    response = complete(server, prompt="ab|", prompt_logprobs=0, max_tokens=0)
    assert response["choices"][0]["text"] == ""
    assert response["usage"]["completion_tokens"] == 0


def test_logprobs_mode(server):
    """Raw is the model's own; processed is what was drawn from."""
    asked = {"logprobs": 0, "top_k": 1, "max_tokens": 1}
    raw, processed = (complete(server, **asked, logprobs_mode=mode) for mode in ("raw", "processed"))
    assert raw["choices"][0]["text"] == processed["choices"][0]["text"]
    (value,) = raw["choices"][0]["logprobs"]["token_logprobs"]
    assert value == pytest.approx(-math.log(26), abs=1e-4)
    (value,) = processed["choices"][0]["logprobs"]["token_logprobs"]
    # All 26 letters tie, and ties with the k-th stay.
    assert value == pytest.approx(-math.log(26), abs=1e-4)
    biased = {**asked, "top_k": 0, "allowed_token_ids": [97, 98]}
    (value,) = complete(server, **biased, logprobs_mode="processed")["choices"][0]["logprobs"]["token_logprobs"]
    assert value == pytest.approx(-math.log(2), abs=1e-5)
    (value,) = complete(server, **biased, logprobs_mode="raw")["choices"][0]["logprobs"]["token_logprobs"]
    assert value == pytest.approx(-math.log(26), abs=1e-4)


def test_best_of_returns_the_likeliest(server):
    """Among four random answers of the same seed, the ones with the highest mean log-probability."""
    asked = {"temperature": 1.0, "max_tokens": 3, "prompt": "?|", "logit_bias": {"97": 1.5}, "logprobs": 0}
    four = complete(server, **asked, n=4, logprobs_mode="processed")["choices"]
    means = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) / 3 for choice in four}
    best = complete(server, **asked, n=2, best_of=4, logprobs_mode="processed")
    expected = sorted(means, key=means.__getitem__, reverse=True)[:2]
    assert [choice["text"] for choice in best["choices"]] == expected
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == 6
    assert best["usage"]["decoding"]["output_tokens"] == 12


def test_truncate_prompt_tokens(server):
    response = complete(server, prompt="abcdef", truncate_prompt_tokens=2, echo=True)
    assert response["usage"]["prompt_tokens"] == 2
    assert response["choices"][0]["text"].startswith("ef")
    right = complete(server, prompt="abcdef", truncate_prompt_tokens=2, truncation_side="right", echo=True)
    assert right["choices"][0]["text"].startswith("ab")
    long = complete(server, prompt="a" * 600, truncate_prompt_tokens=-1, max_tokens=10)
    assert long["usage"]["prompt_tokens"] == 502
    assert refused(server, truncate_prompt_tokens=0) == "truncate_prompt_tokens"
    assert refused(server, truncate_prompt_tokens=600) == "truncate_prompt_tokens"


def test_request_id(server):
    assert complete(server, request_id="my-id.7")["id"] == "cmpl-my-id.7"
    body = {"messages": [{"role": "user", "content": "a"}], "request_id": "x"}
    assert server.post(CHAT, body).json()["id"] == "chatcmpl-x"
    assert refused(server, request_id="no spaces") == "request_id"


def test_cache_salt_keeps_prefixes_apart(server):
    def cached(salt):
        asked = {} if salt is None else {"cache_salt": salt}
        body = complete(server, prompt="a prefix that only this test has|", **asked)
        return body["usage"]["prompt_tokens_details"]["cached_tokens"]

    found = [cached(salt) for salt in ("one", "one", "two", None, "two", None)]
    assert found[3] < 5  # other tests' unsalted prompts may begin alike
    assert [*found[:3], *found[4:]] == [0, 32, 0, 32, 32]


def test_time_limit(server):
    response = complete(server, prompt="~|", max_tokens=400, t_max_predict_ms=300)
    assert response["choices"][0]["stop_reason"] == "budget:seconds"
    assert 0.3 <= response["usage"]["decoding"]["seconds"] < 10


def test_suffix_needs_a_model_that_knows_it(server):
    assert refused(server, suffix="x") == "suffix"
    assert complete(server, suffix="")


def test_chat_template_fields(serve):
    trusting = serve({"trust_request_chat_template": True})

    def prompt(server, **fields):
        body = {"messages": [{"role": "user", "content": "ab"}], "return_token_ids": True, "max_tokens": 1, **fields}
        response = server.post(CHAT, body)
        assert response.status_code == 200, response.text
        return TOKENIZER.decode(response.json()["prompt_token_ids"], skip_special_tokens=False)

    assert prompt(trusting, chat_template="T:") == "T:<|user|>ab<|end|><|assistant|>"
    assert (
        prompt(trusting, chat_template_kwargs={"thinking": False}) == "[thinking=False]<|user|>ab<|end|><|assistant|>"
    )
    assert prompt(trusting, add_generation_prompt=False) == "<|user|>ab<|end|>"
    unfinished = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "so"}]
    assert prompt(trusting, messages=unfinished, continue_final_message=True) == "<|user|>ab<|end|><|assistant|>so"


def test_chat_template_refusals(server):
    assert refused(server, CHAT, chat_template="T:") == "chat_template"
    assert refused(server, CHAT, chat_template_kwargs={"messages": []}) == "chat_template_kwargs.messages"
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert refused(server, CHAT, **both) == "continue_final_message"
