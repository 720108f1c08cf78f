"""LiteLLM, providers `hosted_vllm/` and `openai/`: completion, streaming with usage, text completion, error mapping."""

from collections.abc import Callable
from typing import Any

import pytest
from running_server import Server

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
COUNTING = "One, two, three, four, five, six,"

pytestmark = pytest.mark.parametrize("provider", ["hosted_vllm", "openai"])


@pytest.fixture(scope="module")
def litellm(client_package: Callable[[str], Any]) -> Any:
    package = client_package("litellm")
    package.telemetry = False
    package.suppress_debug_info = True
    return package


@pytest.fixture
def settings(server: Server, provider: str) -> dict[str, Any]:
    return {
        "model": f"{provider}/{server.model}",
        "api_base": server.base_url,
        "api_key": server.api_key,
        "temperature": 0,
        "num_retries": 0,
    }


def test_a_completion_has_text_and_usage(litellm: Any, settings: dict[str, Any]) -> None:
    reply = litellm.completion(messages=PARIS, max_tokens=40, **settings)
    assert "Paris" in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens > 0


def test_a_repeated_prompt_shows_its_cached_tokens(litellm: Any, settings: dict[str, Any]) -> None:
    for _ in range(2):
        reply = litellm.completion(messages=PARIS, max_tokens=2, **settings)
    assert 0 < reply.usage.prompt_tokens_details.cached_tokens < reply.usage.prompt_tokens


def test_a_stream_adds_up_and_ends_with_usage(litellm: Any, settings: dict[str, Any]) -> None:
    whole = litellm.completion(messages=PARIS, max_tokens=40, **settings)
    chunks = list(
        litellm.completion(
            messages=PARIS, max_tokens=40, stream=True, stream_options={"include_usage": True}, **settings
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [end for end in ends if end] == ["stop"]
    usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert len(usages) == 1
    assert usages[0].completion_tokens == whole.usage.completion_tokens
    assert usages[0].prompt_tokens == whole.usage.prompt_tokens


def test_a_stream_can_be_rebuilt(litellm: Any, settings: dict[str, Any]) -> None:
    chunks = list(litellm.completion(messages=PARIS, max_tokens=40, stream=True, **settings))
    rebuilt = litellm.stream_chunk_builder(chunks, messages=PARIS)
    assert "Paris" in rebuilt.choices[0].message.content


def test_sampling_options_reach_the_server(litellm: Any, settings: dict[str, Any]) -> None:
    options = settings | {"temperature": 1.1}
    replies = [
        litellm.completion(
            messages=PARIS, max_tokens=12, n=2, seed=9, top_p=0.9, presence_penalty=0.2, stop=["zzz"], **options
        )
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in reply.choices] for reply in replies]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 2


def test_extra_body_fields_reach_the_server(litellm: Any, settings: dict[str, Any]) -> None:
    reply = litellm.completion(
        messages=PARIS, max_tokens=40, extra_body={"decoding": {"budget": {"output_tokens": 3}}}, **settings
    )
    assert reply.usage.completion_tokens == 3
    assert reply.choices[0].finish_reason == "length"


async def test_asynchronous_completion_and_stream(litellm: Any, settings: dict[str, Any]) -> None:
    whole = await litellm.acompletion(messages=PARIS, max_tokens=40, **settings)
    stream = await litellm.acompletion(messages=PARIS, max_tokens=40, stream=True, **settings)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


def test_text_completion(litellm: Any, settings: dict[str, Any], provider: str) -> None:
    text_provider = {"openai": "text-completion-openai"}.get(provider, provider)
    model = settings["model"].replace(provider, text_provider)
    reply = litellm.text_completion(prompt=COUNTING, max_tokens=4, **settings | {"model": model})
    assert reply.choices[0].text.strip().startswith("seven")
    assert reply.usage.completion_tokens == 4


def test_failures_map_to_the_right_exceptions(litellm: Any, settings: dict[str, Any], provider: str) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=PARIS, **settings | {"model": f"{provider}/gpt-unknown"})
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=PARIS, **settings | {"api_key": "wrong"})
    with pytest.raises(litellm.BadRequestError) as refused:
        litellm.completion(messages=PARIS, **settings | {"temperature": 9})
    assert "temperature" in str(refused.value)
    with pytest.raises(litellm.BadRequestError):
        list(litellm.completion(messages=PARIS, stream=True, **settings | {"temperature": 9}))


def test_a_prompt_that_is_too_long_is_known_as_such(litellm: Any, settings: dict[str, Any]) -> None:
    """LiteLLM's context-window fallbacks hang on this class, which it tells by OpenAI's wording of the message."""
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "a " * 9000}], **settings)
