"""POST /v1/chat/completions."""

import uuid
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from decoding_server.api.endpoint import documented, read_request, service_of, tokenize
from decoding_server.chat_writer import ChatWriter
from decoding_server.errors import InvalidField
from decoding_server.observability import observer_of
from decoding_server.protocol.chat import ChatCompletion, ChatCompletionRequest
from decoding_server.running import Prompt
from decoding_server.service import Scoring, Service, token_limit_param
from decoding_server.streaming import EventStream, unless_disconnected
from decoding_server.structure import structure_of
from decoding_server.tools.choice import ToolPlan, plan_tools
from decoding_server.tools.messages import messages_for_template
from strategies.text import Tokenizer

router = APIRouter()

TEMPLATE_VARIABLES = frozenset({"messages", "add_generation_prompt", "template", "tools", "documents"})
"""What a request may not set through `chat_template_kwargs`."""


@router.post("/v1/chat/completions", response_model=ChatCompletion, openapi_extra=documented(ChatCompletionRequest))
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation."""
    service = service_of(request)
    chat, warnings = await read_request(request, ChatCompletionRequest)
    model = service.model_name(chat.model)
    _check(chat, service)
    tools = plan_tools(chat.tools, chat.tool_choice, chat.parallel_tool_calls, service.tool_format)
    prompt = await chat_prompt(service, chat, tools)
    prompts = await service.prepare(chat, [prompt], prompt_field="messages")
    running = service.submit(
        chat,
        prompts,
        Scoring((chat.top_logprobs or 0) if chat.logprobs else None, chat.prompt_logprobs),
        prompt_field="messages",
        observer=observer_of(request),
        structure=await structure_of(service, chat, tools),
        visible_special_tokens=service.tool_markers if tools.parser_format is not None else frozenset(),
        parsed="tools" if tools.parser_format is not None else None,
    )
    writer = ChatWriter(service, chat, running, model=model, warnings=warnings, tools=tools)
    if chat.stream:
        return EventStream(writer.chunks(), running.cancel, service.config.sse_keep_alive)
    try:
        answers = await unless_disconnected(request.receive, running.answers())
    finally:
        running.cancel()
    return Response(status_code=499) if answers is None else JSONResponse(writer.response(answers))


def _check(chat: ChatCompletionRequest, service: Service) -> None:
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidField("'top_logprobs' is only allowed when logprobs is true.", "top_logprobs")
    if (chat.top_logprobs or 0) > service.config.max_logprobs:
        raise InvalidField(f"'top_logprobs' must be at most {service.config.max_logprobs}.", "top_logprobs")
    if chat.token_limit == 0:
        name = token_limit_param(chat)
        raise InvalidField(f"'{name}' must be at least 1.", name)
    if chat.chat_template is not None and not service.config.trust_request_chat_template:
        message = "'chat_template' is not allowed by this server (--trust-request-chat-template)."
        raise InvalidField(message, "chat_template", "unsupported_parameter")
    for name in chat.chat_template_kwargs or ():
        if name in TEMPLATE_VARIABLES:
            message = f"'chat_template_kwargs' must not hold {name!r}, which the server sets."
            raise InvalidField(message, f"chat_template_kwargs.{name}")


async def chat_prompt(service: Service, chat: ChatCompletionRequest, tools: ToolPlan) -> Prompt:
    """The rendered conversation. No special tokens are added unless asked for: the template writes its own."""
    tokenizer = service.runtime.tokenizer
    messages = messages_for_template([message.for_template() for message in chat.messages])
    variables: dict[str, Any] = {**(chat.chat_template_kwargs or {}), "template": chat.chat_template}
    if tools.template_tools is not None:
        variables["tools"] = tools.template_tools
    if chat.continue_final_message:
        text = _unfinished(tokenizer, messages, variables)
    else:
        begin = chat.add_generation_prompt is not False
        text = tokenizer.render_chat(messages, add_generation_prompt=begin, **variables)
    tokens = await tokenize(tokenizer, text, add_special_tokens=bool(chat.add_special_tokens))
    tokens = service.truncated(chat, tokens)
    if not tokens:
        raise InvalidField("The chat template makes an empty prompt of these messages.", "messages")
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return Prompt(tokens, text, asked[-1] if asked else "")


def _unfinished(tokenizer: Tokenizer, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    """The conversation up to the end of its last message, without what the template writes after it."""
    marker = f"\u2063{uuid.uuid4().hex}\u2063"
    last = {**messages[-1], "content": messages[-1]["content"] + marker}
    text = tokenizer.render_chat([*messages[:-1], last], add_generation_prompt=False, **variables)
    end = text.rfind(marker)
    if end < 0:
        raise InvalidField("The chat template drops the end of the last message.", "continue_final_message")
    return text[:end]
