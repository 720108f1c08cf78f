"""LangChain's `ChatOpenAI` and `OpenAI`: invoke, stream, batch, n, usage metadata, errors."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from running_server import Server

PARIS = "What is the capital of France?"
COUNTING = "One, two, three, four, five, six,"


@pytest.fixture(scope="module")
def settings(server: Server) -> dict[str, Any]:
    return {"base_url": server.base_url, "api_key": server.api_key, "model": server.model, "max_retries": 0}


@pytest.fixture(scope="module")
def chat_model(client_package: Callable[[str], Any], settings: dict[str, Any]) -> Callable[..., Any]:
    package = client_package("langchain_openai")
    return lambda **options: package.ChatOpenAI(**settings | {"temperature": 0, "max_tokens": 40} | options)


@pytest.fixture(scope="module")
def text_model(client_package: Callable[[str], Any], settings: dict[str, Any]) -> Callable[..., Any]:
    package = client_package("langchain_openai")
    return lambda **options: package.OpenAI(**settings | {"temperature": 0, "max_tokens": 6} | options)


def test_chat_invoke_has_text_usage_and_metadata(chat_model: Callable[..., Any], server: Server) -> None:
    message = chat_model().invoke(PARIS)
    assert "Paris" in message.content
    usage = message.usage_metadata
    assert usage["input_tokens"] > 10
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    metadata = message.response_metadata
    assert metadata["finish_reason"] == "stop"
    assert metadata["model_name"] == server.model
    assert metadata["system_fingerprint"]
    assert metadata["id"].startswith("chatcmpl-")


def test_chat_stream_adds_up_to_the_invoked_message(chat_model: Callable[..., Any]) -> None:
    model = chat_model(stream_usage=True)
    whole = model.invoke(PARIS)
    chunks = list(model.stream(PARIS))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert len(chunks) > 3
    assert total.content == whole.content
    assert total.response_metadata["finish_reason"] == "stop"
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert total.usage_metadata["input_tokens"] == whole.usage_metadata["input_tokens"]


def test_chat_logprobs_are_in_the_metadata(chat_model: Callable[..., Any]) -> None:
    message = chat_model(logprobs=True, top_logprobs=2).invoke(PARIS)
    entries = message.response_metadata["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == message.content
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_chat_with_a_conversation_stop_and_seed(chat_model: Callable[..., Any]) -> None:
    conversation = [("system", "Answer briefly."), ("user", "Hi"), ("assistant", "Hello."), ("user", PARIS)]
    stopped = chat_model().invoke(conversation, stop=["France", "Paris"])
    assert "Paris" not in stopped.content
    assert stopped.response_metadata["finish_reason"] == "stop"
    sampled = [chat_model(temperature=1.0, seed=3).invoke(PARIS).content for _ in range(2)]
    assert sampled[0] == sampled[1]


def test_chat_generates_n_answers(chat_model: Callable[..., Any], client_package: Callable[[str], Any]) -> None:
    message = client_package("langchain_core.messages").HumanMessage
    result = chat_model(n=3, temperature=1.2, seed=4).generate([[message(PARIS)], [message("Name a fruit.")]])
    assert [len(answers) for answers in result.generations] == [3, 3]
    assert len({answer.text for answer in result.generations[0]}) > 1
    assert result.llm_output["token_usage"]["completion_tokens"] > 6


def test_chat_batch_keeps_the_order(chat_model: Callable[..., Any]) -> None:
    questions = [PARIS, "Name a fruit.", "What is two plus two?"]
    alone = [chat_model(max_tokens=12).invoke(question).content for question in questions]
    together = chat_model(max_tokens=12).batch(questions)
    assert [message.content for message in together] == alone


async def test_chat_asynchronously(chat_model: Callable[..., Any]) -> None:
    model = chat_model()
    whole = await model.ainvoke(PARIS)
    assert "".join([chunk.content async for chunk in model.astream(PARIS)]) == whole.content


def test_text_invoke_and_stream(text_model: Callable[..., Any]) -> None:
    text = text_model().invoke(COUNTING)
    assert text.startswith(" seven")
    assert "".join(text_model().stream(COUNTING)) == text


def test_text_batch_with_n_keeps_prompts_and_choices_in_order(text_model: Callable[..., Any]) -> None:
    prompts = [COUNTING, "Monday Tuesday Wednesday", "The three primary colours are"]
    alone = [text_model().invoke(prompt) for prompt in prompts]
    assert text_model().batch(prompts) == alone
    result = text_model(n=2, best_of=2).generate(prompts)
    assert [[answer.text for answer in answers] for answers in result.generations] == [[text] * 2 for text in alone]
    usage = result.llm_output["token_usage"]
    assert usage["completion_tokens"] == 3 * 2 * 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_text_of_many_prompts_is_split_into_requests_of_twenty(text_model: Callable[..., Any]) -> None:
    prompts = [f"{number} plus one equals" for number in range(25)]
    result = text_model(max_tokens=1).generate(prompts)
    assert len(result.generations) == 25
    assert result.llm_output["token_usage"]["completion_tokens"] == 25


def test_text_logprobs_are_in_the_generation_info(text_model: Callable[..., Any]) -> None:
    ((answer,),) = text_model(logprobs=1).generate([COUNTING]).generations
    logprobs = answer.generation_info["logprobs"]
    assert "".join(logprobs["tokens"]) == answer.text


def test_failures_are_openai_exceptions(chat_model: Callable[..., Any], text_model: Callable[..., Any]) -> None:
    with pytest.raises(openai.NotFoundError):
        chat_model(model="gpt-unknown").invoke(PARIS)
    with pytest.raises(openai.AuthenticationError):
        text_model(api_key="wrong").invoke(COUNTING)
    with pytest.raises(openai.BadRequestError):
        list(chat_model(temperature=7).stream(PARIS))
