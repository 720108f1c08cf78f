"""Models, tokens, health, and the key that guards every route."""

import httpx
import openai
import pytest
from scripted_server import END, TOKENIZER

OPEN = {"/health", "/ping", "/version"}


def routes(server, key):
    document = httpx.get(server.url + "/openapi.json", headers={"authorization": f"Bearer {key}"}).json()
    found = [(method, path) for path, methods in document["paths"].items() for method in methods]
    assert len(found) >= 9
    return [*found, ("get", "/openapi.json"), ("get", "/docs"), ("get", "/no/such/route"), ("get", "/health/")]


def test_models(client, server):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.max_model_len) == ("scripted", "model", 512)
    assert client.models.retrieve("scripted") == model


def test_served_names(serve):
    named = serve({"served_model_name": ["org/first", "second"]})
    with named.client() as client:
        assert [model.id for model in client.models.list().data] == ["org/first", "second"]
        assert client.models.retrieve("org/first").id == "org/first"
        assert client.completions.create(model="second", prompt="a|").model == "second"
        with pytest.raises(openai.NotFoundError, match="org/first, second"):
            client.completions.create(model="scripted", prompt="a|")
    assert named.post("/v1/completions", {"prompt": "a|"}).json()["model"] == "org/first"


def test_tokenize_and_back(server):
    reply = server.post("/tokenize", {"prompt": "h\u00e9<|end|>", "return_token_strs": True}).json()
    assert reply == {
        "count": 4,
        "max_model_len": 512,
        "tokens": [104, 0xC3, 0xA9, END],
        "token_strs": ["h", "bytes:\\xc3", "bytes:\\xa9", "<|end|>"],
    }
    assert server.post("/detokenize", {"tokens": reply["tokens"]}).json() == {"prompt": "h\u00e9<|end|>"}


def test_tokenize_agrees_with_what_chat_counts(server):
    messages = [{"role": "user", "content": "hello"}]
    tokens = server.post("/tokenize", {"messages": messages}).json()["tokens"]
    assert TOKENIZER.decode(tokens, skip_special_tokens=False) == "<|user|>hello<|end|><|assistant|>"
    usage = server.post("/v1/chat/completions", {"messages": messages}).json()["usage"]
    assert usage["prompt_tokens"] == len(tokens)


def test_health_and_version(server):
    for path in ("/health", "/ping"):
        response = httpx.get(server.url + path)
        assert (response.status_code, response.json()["status"]) == (200, "ready")
    assert httpx.get(server.url + "/version").json()["version"]


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/v1/models", "/metrics", "/no/such/route"])
def test_head_is_get_without_a_body(server, path):
    """Load balancers and uptime monitors probe with HEAD."""
    got, head = (httpx.request(method, server.url + path) for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["x-request-id"]
    assert httpx.head(server.url + "/v1/completions").status_code == 405


def test_head_needs_the_key_that_get_needs(serve):
    keyed = serve({"api_key": ["k"]})
    assert httpx.head(keyed.url + "/health").status_code == 200
    assert httpx.head(keyed.url + "/v1/models").status_code == 401


def test_every_route_wants_the_key(serve):
    keyed = serve({"api_key": ["first-key", "second-key"]})
    for method, path in routes(keyed, "second-key"):
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer"},
            {"authorization": "first-key"},
        ):
            response = httpx.request(method, keyed.url + path, headers=headers)
            if path in OPEN:
                assert response.status_code == 200
            else:
                assert response.status_code == 401, (method, path)
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["x-request-id"]
        for key in ("first-key", "second-key"):
            response = httpx.request(method, keyed.url + path, headers={"authorization": f"Bearer {key}"})
            assert response.status_code != 401
    with keyed.client(api_key="first-key") as client:
        assert client.completions.create(model="scripted", prompt="a|").choices[0].text == "a"
    with keyed.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_the_openapi_document_describes_the_bodies(server):
    document = httpx.get(server.url + "/openapi.json").json()
    for name in ("CompletionRequest", "ChatCompletionRequest", "ChatMessage", "BudgetOptions"):
        assert document["components"]["schemas"][name]["properties"]
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"] == "#/components/schemas/CompletionRequest"
