"""Every strategy with everything else that a request may ask for, over HTTP: the failures users report are pairs.

The scripted model draws letters at random and ends with a probability of about 1 in 30, so lengths, seeds and draws
differ; each strategy must keep what every other feature promises.
"""

import asyncio
import json
import math

import pytest
import torch
from live_server import LiveServer
from scripted_server import END, LETTERS, TOKENIZER

from models.scripted import scripted_runtime
from strategies.registry import registered

COMPLETIONS = "/v1/completions"
PARAMETERS = {
    "top_k": {"k": 5},
    "top_p": {"p": 0.8},
    "min_p": {"p": 0.2},
    "typical_p": {"mass": 0.7},
    "top_n_sigma": {"n": 1.0},
    "epsilon_cutoff": {"epsilon": 0.02},
    "eta_cutoff": {"epsilon": 0.02},
    "xtc": {"threshold": 0.05, "probability": 0.8},
    "mirostat": {"tau": 3.0},
    "bregman": {"alpha": 1.5, "tau": 0.05},
    "contrastive": {"k": 3, "alpha": 0.4},
    "repetition_penalty": {"penalty": 1.3},
    "presence_frequency_penalty": {"presence": 0.5, "frequency": 0.3},
    "no_repeat_ngram": {"size": 2},
    "dry": {"multiplier": 1.0, "allowed_length": 1},
    "grammar": {"language": "python"},
    "rsd-c": {"branching": [2, 2]},
    "rsd-s": {"width": 2, "length": 2},
    "chain": {"length": 3},
    "multi-draft": {"branching": [2, 1]},
    "spectr": {"width": 2, "length": 2},
    "ngram": {"length": 4},
    "auto": {"max_nodes": 8},
}
DETERMINISTIC = {"contrastive"}
SLOTS = {name: kind.slot for name, kind in registered("transform").items() if kind.slot} | dict.fromkeys(
    registered("speculation"), "speculation"
)
STRATEGIES = [name for name in SLOTS if name in PARAMETERS]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"], "additionalProperties": False}


def lettered(seed):
    """Random logits of the letters, the same for equal last tokens."""

    def distribution(context):
        generator = torch.Generator().manual_seed(seed + 31 * context[-1] + (context[-2] if len(context) > 1 else 0))
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        logits[list(LETTERS)] = torch.randn(26, generator=generator) * 1.5
        logits[END] = 0.0
        return logits

    return distribution


@pytest.fixture(scope="module")
def lettered_server():
    from runtime_server import serve_runtime

    runtime = scripted_runtime(lettered(1), TOKENIZER, drafts={"draft": lettered(2)})
    with serve_runtime(runtime) as server:
        yield LiveServer(server.url, runtime)


def test_every_strategy_is_here():
    builtin = {name for name, kind in registered("transform").items() if kind.slot and "strategies." in kind.__module__}
    assert builtin | set(registered("speculation")) == set(PARAMETERS)


def body(name, **fields):
    asked = {"prompt": "def f():\n", "max_tokens": 24, "seed": 11, **fields}
    return {**asked, "decoding": {SLOTS[name]: {"type": name, **PARAMETERS[name]}}}


def complete(server, name, **fields):
    response = server.post(COMPLETIONS, body(name, **fields))
    assert response.status_code == 200, response.text
    return response.json()


def texts(reply):
    return [choice["text"] for choice in reply["choices"]]


@pytest.fixture(params=STRATEGIES)
def name(request):
    return request.param


def test_seed_n_and_stream(lettered_server, name):
    """Equal seeds give equal texts, streamed or not; choices differ; another seed differs."""
    first = complete(lettered_server, name, n=3, ignore_eos=True)
    assert texts(complete(lettered_server, name, n=3, ignore_eos=True)) == texts(first)
    reply = lettered_server.post(COMPLETIONS, body(name, n=3, ignore_eos=True, stream=True)).text
    streamed = ["", "", ""]
    for line in reply.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                streamed[choice["index"]] += choice["text"]
    assert streamed == texts(first)
    assert len(set(texts(first))) == (1 if name in DETERMINISTIC else 3)
    other = complete(lettered_server, name, n=3, ignore_eos=True, seed=12)
    assert (texts(other) == texts(first)) == (name in DETERMINISTIC)


def test_trace(lettered_server, name):
    """A trace tells of every token, of special ones too, which have no text in the answer, and changes none."""
    asked = body(name, ignore_eos=True, n=2)
    plain = lettered_server.post(COMPLETIONS, asked).json()
    asked["decoding"]["trace"] = "full"
    told = lettered_server.post(COMPLETIONS, asked).json()
    assert texts(told) == texts(plain)
    for choice, trace in zip(told["choices"], told["trace"], strict=True):
        tokens = [record["text"] for record in trace["records"] if record["event"] == "token"]
        assert "".join(text for text in tokens if text != "<|end|>") == choice["text"]


def test_greedy(lettered_server, name):
    """At temperature 0 the seed plays no part; speculation changes nothing at all."""
    fields = {"temperature": 0, "ignore_eos": True}
    found = texts(complete(lettered_server, name, **fields))
    assert texts(complete(lettered_server, name, **fields, seed=99)) == found
    if SLOTS[name] == "speculation":
        plain = lettered_server.post(COMPLETIONS, {**body(name, **fields), "decoding": None}).json()
        assert texts(plain) == found


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_logprobs_and_echo(lettered_server, name, mode):
    reply = complete(lettered_server, name, logprobs=2, echo=True, logprobs_mode=mode, max_tokens=8, ignore_eos=True)
    (choice,) = reply["choices"]
    arrays, prompt = choice["logprobs"], len("def f():\n")
    assert len(arrays["tokens"]) == prompt + 8
    assert choice["text"] == "".join(arrays["tokens"])
    values = arrays["token_logprobs"]
    assert values[0] is None
    assert all(math.isfinite(value) and -9999 < value <= 1e-6 for value in values[prompt:])
    for value, token, best in zip(
        values[prompt:], arrays["tokens"][prompt:], arrays["top_logprobs"][prompt:], strict=True
    ):
        assert best[token] == value


def test_structured_output(lettered_server, name):
    fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
    reply = complete(lettered_server, name, n=2, max_tokens=160, **fields)
    for text in texts(reply):
        assert json.loads(text)["a"] in (1, 22)


def test_min_tokens_and_logit_bias(lettered_server, name):
    """The end is likely now; it must not come before the minimum."""
    reply = complete(lettered_server, name, n=2, min_tokens=10, logit_bias={str(END): 20.0}, return_token_ids=True)
    for choice in reply["choices"]:
        ends = [i for i, token in enumerate(choice["token_ids"]) if token == END]
        assert not ends or ends[0] >= 10
        assert len(choice["token_ids"]) >= 10


def test_stop_strings_and_length(lettered_server, name):
    endless = {"ignore_eos": True, "logit_bias": {str(END): -100}}
    (choice,) = complete(lettered_server, name, **endless)["choices"]
    text = choice["text"]
    assert len(text) == 24
    cut = text[5:7]
    (stopped,) = complete(lettered_server, name, **endless, stop=[cut])["choices"]
    assert stopped["text"] == text[: text.index(cut)]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", cut)


@pytest.mark.parametrize("budget", [{"output_tokens": 7}, {"forward_tokens": 40}, {"flops": 1500}])
def test_budgets_hold(lettered_server, name, budget):
    asked = body(name, ignore_eos=True, n=2)
    asked["decoding"]["budget"] = budget
    reply = lettered_server.post(COMPLETIONS, asked).json()
    spent = reply["usage"]["decoding"]
    assert spent["output_tokens"] == reply["usage"]["completion_tokens"]
    (unit, limit) = next(iter(budget.items()))
    used = {
        "output_tokens": spent["output_tokens"],
        "forward_tokens": spent["target_tokens"] + spent["draft_tokens"],
        "flops": spent["flops"],
    }[unit]
    assert used <= limit
    assert spent["budget_exhausted"] == unit


async def test_all_at_once_equal_each_alone(lettered_server):
    """Batch mates with other strategies change nothing."""
    alone = {name: texts(complete(lettered_server, name)) for name in STRATEGIES}
    import httpx

    async with httpx.AsyncClient(timeout=60) as client:
        replies = await asyncio.gather(
            *(client.post(lettered_server.url + COMPLETIONS, json=body(name)) for name in STRATEGIES * 2)
        )
    for name, reply in zip(STRATEGIES * 2, replies, strict=True):
        assert texts(reply.json()) == alone[name], name
        assert reply.json()["decoding"]["pipeline"] is not None
    pool = lettered_server.runtime.engine.pool
    assert pool.num_free + lettered_server.runtime.engine.scheduler.cache.size == pool.num_slots


def test_nan_ends_that_request_alone(server, name):
    """The scripted `!` makes NaN; neighbours go on."""
    if SLOTS[name] == "speculation" and name not in {"ngram", "auto"}:
        pytest.skip("this server has nobody to draft")
    asked = {**body(name), "prompt": "!|"}
    assert server.post(COMPLETIONS, asked).status_code == 500
    assert server.post(COMPLETIONS, {**body(name), "prompt": "abc|"}).status_code == 200
