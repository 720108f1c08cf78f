"""/v1/embeddings through the openai client: vectors equal those of plain transformers, and everything else about it."""

import asyncio
import base64
import json
import random
import socket
import time
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
import torch
import transformers
from runtime_server import serve_runtime
from scripted_server import make_runtime

from decoding_server.api.embeddings import unit_length
from models.scripted import ByteTokenizer
from models.torch_runtime.engine import Engine
from models.torch_runtime.runtime import TorchRuntime
from models.torch_runtime.weights import load_model
from strategies.runtime import Generation, ModelInfo, StopConditions

TOKENIZER = ByteTokenizer()
CONTEXT = 200
SHAPE = {
    "vocab_size": TOKENIZER.vocab_size,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.4,  # large enough that attention patterns matter
    "intermediate_size": 48,
}
ARCHITECTURES = {
    "fused": transformers.LlamaConfig(**SHAPE, num_key_value_heads=2),
    "transformers": transformers.GPTNeoXConfig(**SHAPE, rotary_pct=0.25),
}
RELATIVE = 1e-3
POOLINGS = ("mean", "last")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    """(folder, plain transformers model) of a tiny random model, by the path that our engine runs it on."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[request.param]).eval()
    for name, parameter in model.named_parameters():  # a norm that scales by one could be left out unnoticed
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "bias" not in name else 0.0, std=0.2)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder, model


def runtime_of(folder, *, num_slots=4096, max_num_batched_tokens=256):
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    model = load_model(folder, config, dtype=torch.float32, device=torch.device("cpu"))
    shape = model.shape
    info = ModelInfo(
        name="tiny",
        source=str(folder),
        architecture=shape.architecture,
        max_model_len=CONTEXT,
        vocab_size=TOKENIZER.vocab_size,
        eos_token_ids=TOKENIZER.eos_token_ids,
        dtype="float32",
        device="cpu",
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        matmul_parameters=shape.matmul_parameters,
        fingerprint="tiny",
    )
    engine = Engine(model, info, num_slots=num_slots, max_num_seqs=64, max_num_batched_tokens=max_num_batched_tokens)
    return TorchRuntime(engine, info, TOKENIZER)


@torch.inference_mode()
def expected(plain, tokens, pooling):
    """The states of the last layer after the final norm, by transformers alone."""
    states = plain(input_ids=torch.tensor([list(tokens)]), output_hidden_states=True).hidden_states[-1][0].double()
    return (states.mean(0) if pooling == "mean" else states[-1]).numpy()


def assert_close(vector, wanted):
    assert np.linalg.norm(np.array(vector) - wanted) <= RELATIVE * np.linalg.norm(wanted)


def texts(seed, count):
    """Random words, in at most 90 bytes; some texts share a long beginning."""
    rng = random.Random(seed)
    words = ["river", "stone", "caf\u00e9", "orchard", "\N{GRINNING FACE}", "signal"]
    shared = " ".join(rng.choices(words, k=10))
    made = []
    for number in range(count):
        text = " ".join(rng.choices(words, k=rng.choice((1, 4, 12))))
        made.append((f"{shared} {text}" if number % 3 == 0 else text).encode()[:90].decode(errors="ignore"))
    return made


@pytest.fixture(scope="module")
def real(checkpoint):
    """(server around the tiny model with chunked prefill, plain model)."""
    folder, plain = checkpoint
    with serve_runtime(runtime_of(folder, max_num_batched_tokens=24)) as live:
        yield live, plain


@pytest.fixture(scope="module")
def server():
    with serve_runtime(make_runtime()) as live:
        yield live


@pytest.fixture(scope="module")
def client(server):
    with server.client() as openai_client:
        yield openai_client


def embed(client, given, **extra):
    return client.embeddings.create(model="tiny", input=given, extra_body=extra)


def refusal(server, fields, status=400):
    response = server.post("/v1/embeddings", {"input": "x"} | fields)
    assert response.status_code == status, response.text
    return response.json()["error"]


# The numbers


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_equals_plain_transformers_also_from_a_warm_cache(real, pooling):
    server, plain = real
    batch = texts(1, 16)
    with server.client() as client:
        for _ in range(2):  # the second time everything is cached
            reply = embed(client, batch, pooling=pooling, normalize=False)
            assert [entry.index for entry in reply.data] == list(range(16))
            for text, entry in zip(batch, reply.data, strict=True):
                assert_close(entry.embedding, expected(plain, text.encode(), pooling))
    cached = reply.usage.model_extra["decoding"]["cached_tokens"]
    assert cached == (0 if pooling == "mean" else reply.usage.prompt_tokens - 16)  # of the last, all but its last token


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_cache_that_completions_have_filled(real, pooling):
    server, plain = real
    prompt = f"filled by a completion for {pooling}, "
    with server.client() as client:
        client.completions.create(model="tiny", prompt=prompt, max_tokens=8, seed=1)
        given = prompt + "and then more"
        assert_close(
            embed(client, given, pooling=pooling, normalize=False).data[0].embedding,
            expected(plain, given.encode(), pooling),
        )


@pytest.mark.parametrize("pooling", POOLINGS)
async def test_beside_generation_and_preempted(checkpoint, pooling):
    """Generating sequences grow until the pool is full, which takes the slots of half-computed prompts."""
    folder, plain = checkpoint
    runtime = runtime_of(folder, num_slots=CONTEXT, max_num_batched_tokens=12)
    try:
        stopping = StopConditions(max_tokens=40, ignore_eos=True)
        generating = [Generation(prompt=list(b"grow%d" % n), stopping=stopping, seed=n) for n in range(4)]
        rng = random.Random(4)
        prompts = [rng.randbytes(length) for length in (150, 180, *rng.choices(range(1, 190), k=14))]
        nothing = StopConditions(max_tokens=0)
        pooled = [Generation(prompt=list(prompt), stopping=nothing, pooling=pooling) for prompt in prompts]
        streams = runtime.submit([*generating, *pooled])

        async def all_of(stream):
            return [delta async for delta in stream]

        deltas = await asyncio.gather(*map(all_of, streams))
        assert runtime.status().preemptions > 0
        for prompt, (delta,) in zip(prompts, deltas[4:], strict=True):
            assert delta.finish_reason == "length"
            assert_close(delta.embedding, expected(plain, prompt, pooling))
        assert all(sum(len(delta.tokens) for delta in one) == 40 for one in deltas[:4])
    finally:
        runtime.close()


def test_many_requests_at_once(real):
    server, plain = real
    given = texts(3, 24)

    async def run():
        async with server.async_client() as client:
            return await asyncio.gather(
                *(embed(client, text, pooling=POOLINGS[n % 2], normalize=False) for n, text in enumerate(given))
            )

    for number, (text, reply) in enumerate(zip(given, asyncio.run(run()), strict=True)):
        assert_close(reply.data[0].embedding, expected(plain, text.encode(), POOLINGS[number % 2]))


def test_vectors_have_unit_length_unless_asked_otherwise(real):
    server, plain = real
    with server.client() as client:
        unit = np.array(embed(client, "a text").data[0].embedding)
        raw = np.array(embed(client, "a text", normalize=False).data[0].embedding)
    assert abs(np.linalg.norm(unit) - 1) < 1e-6
    assert abs(np.linalg.norm(raw) - 1) > 0.1
    wanted = expected(plain, b"a text", "mean")
    assert_close(unit, wanted / np.linalg.norm(wanted))


def test_one_token_and_a_full_context(real):
    server, plain = real
    full = [number % 250 for number in range(CONTEXT)]
    with server.client() as client:
        for pooling in POOLINGS:
            one, whole = embed(client, [[7], full], pooling=pooling, normalize=False).data
            assert_close(one.embedding, expected(plain, [7], pooling))
            assert_close(whole.embedding, expected(plain, full, pooling))


def test_unit_length_of_nothing():
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [3e38, 3e38]], np.float32)
    unit = unit_length(vectors)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [1, 0], [0.5**0.5, 0.5**0.5]], rtol=1e-6)


# The wire


def test_reply(real):
    server, _ = real
    reply = server.post("/v1/embeddings", {"input": ["abc", "de"], "user": "ann"}).json()
    assert (reply["object"], reply["model"], reply["pooling"], reply["normalize"]) == ("list", "tiny", "mean", True)
    assert [(entry["object"], entry["index"], len(entry["embedding"])) for entry in reply["data"]] == [
        ("embedding", 0, 32),
        ("embedding", 1, 32),
    ]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["total_tokens"]) == (5, 5)
    assert reply["usage"]["decoding"]["output_tokens"] == 0
    assert reply["usage"]["decoding"]["target_tokens"] == 5
    assert "warnings" not in reply
    assert server.post("/v1/embeddings", {"input": "abc", "pooling": "last"}).json()["pooling"] == "last"


def test_base64_is_little_endian_float32(real):
    server, _ = real
    as_numbers, as_text = (
        server.post("/v1/embeddings", {"input": "abc", "encoding_format": form}).json()["data"][0]["embedding"]
        for form in ("float", "base64")
    )
    assert np.frombuffer(base64.b64decode(as_text), "<f4").tolist() == as_numbers


def test_text_and_its_tokens_are_the_same(real):
    server, _ = real
    with server.client() as client:
        forms = ["abc", ["abc"], list(b"abc"), [list(b"abc")]]
        vectors = [embed(client, form).data[0].embedding for form in forms]
        floats = client.embeddings.create(model="tiny", input="abc", encoding_format="float").data[0].embedding
    for vector in vectors[1:]:
        np.testing.assert_allclose(vector, vectors[0], atol=1e-5)
    np.testing.assert_allclose(floats, vectors[0], atol=1e-5)
    with server.client() as client:
        assert [entry.index for entry in embed(client, ["abc", "x"]).data] == [0, 1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[1], []]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": [5, 262]}, "input"),
        ({"input": [[-1]]}, "input"),
        ({"input": ["a", "b" * 513]}, "input"),
        ({"input": ["a"] * 1025}, "input"),
        ({"dimensions": 16}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"pooling": "cls"}, "pooling"),
        ({"normalize": 1}, "normalize"),
        ({"decoding": {"sampler": "xtc"}}, "decoding"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_what_cannot_be_honoured_is_named(server, fields, param):
    assert refusal(server, fields)["param"] == param


def test_an_input_that_is_too_long_says_which_and_how_long(server):
    error = refusal(server, {"input": ["a", "b" * 513]})
    assert error["code"] == "context_length_exceeded"
    assert "element 1 has 513 tokens; the context length is 512" in error["message"]
    assert server.post("/v1/embeddings", {"input": ["b" * 512]}).status_code == 200


def test_nulls_mean_defaults(server):
    nulls = dict.fromkeys(("model", "encoding_format", "pooling", "normalize", "dimensions", "user", "priority"))
    reply = server.post("/v1/embeddings", {"input": "x"} | nulls)
    assert (reply.status_code, reply.json()["pooling"]) == (200, "mean")


def test_unknown_fields_and_models(server, client):
    reply = server.post("/v1/embeddings", {"input": "x", "colour": 1}).json()
    assert reply["warnings"] == ["unknown field 'colour' was ignored"]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="x")


def test_a_full_queue_is_a_429():
    with serve_runtime(make_runtime(max_waiting=2)) as server:
        assert refusal(server, {"input": ["a", "b", "c"]}, status=429)["code"] == "queue_full"


def test_a_client_that_leaves_frees_its_work(server):
    """One long generation keeps the only place, so that the embeddings are still waiting when their client goes."""
    with serve_runtime(make_runtime(max_num_seqs=1)) as server:
        status = server.runtime.status
        address = urlsplit(server.url)
        connections = [socket.create_connection((address.hostname, address.port)) for _ in range(2)]
        bodies = (("/v1/completions", {"prompt": "~|", "max_tokens": 400}), ("/v1/embeddings", {"input": ["a", "b"]}))
        for connection, (path, body), waiting in zip(connections, bodies, (0, 2), strict=True):
            content = json.dumps(body)
            connection.sendall(
                f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n{content}".encode()
            )
            wait_until(lambda count=waiting: (status().running, status().waiting) == (1, count), 10)
        connections[1].close()
        wait_until(lambda: (status().running, status().waiting) == (1, 0), 1)
        connections[0].close()
        wait_until(lambda: status().running == 0, 1)


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
