"""A request to /v1/responses as the chat request that it amounts to, and faults of the latter in the former's terms."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from decoding_server.errors import InvalidField
from decoding_server.protocol.chat import ChatCompletionRequest, ChatMessage
from decoding_server.protocol.response_items import InputItem
from decoding_server.protocol.responses import ResponsesRequest
from decoding_server.protocol.sampling import SamplingFields
from strategies.errors import InvalidRequest

SAME_FIELDS = (*SamplingFields.model_fields, "model", "stream", "priority", "cache_salt", "chat_template_kwargs")
"""Fields that mean the same in both requests. `decoding` too, but it is not set to null."""

NAMES = (
    (r"messages(\[.*)?", "input"),
    (r"max_(completion_)?tokens", "max_output_tokens"),
    (r"response_format\.json_schema\.(\w+)", r"text.format.\1"),
    (r"response_format(\..*)?", "text.format"),
    (r"tools\[(\d+)\]\.function\.(.*)", r"tools[\1].\2"),
)
"""Fields of a chat request, as patterns, and what they are here."""


def chat_request(request: ResponsesRequest, earlier: Sequence[InputItem]) -> ChatCompletionRequest:
    """The chat request whose answer is this request's. earlier: items of the conversation that goes on.

    Raises InvalidField for the output of a call that nobody made.
    """
    fields: dict[str, Any] = {name: getattr(request, name) for name in SAME_FIELDS}
    fields["logit_bias"] = {str(token): bias for token, bias in request.logit_bias.items()}  # as JSON spells it
    if request.decoding is not None:
        fields["decoding"] = request.decoding
    if request.text is not None and request.text.format is not None:
        fields["response_format"] = request.text.format.as_response_format()
    if request.tools is not None:
        fields["tools"] = [tool.as_chat_tool() for tool in request.tools]
    if request.tool_choice is not None:
        fields["tool_choice"] = request.tool_choice.as_chat_choice()
    check_calls(earlier, request.input)
    messages = messages_of([*earlier, *request.input])
    if request.instructions is not None:
        messages.insert(0, {"role": "system", "content": request.instructions})
    return ChatCompletionRequest(
        messages=[ChatMessage.model_validate(message) for message in messages],
        max_completion_tokens=request.max_output_tokens,
        parallel_tool_calls=request.parallel_tool_calls,
        logprobs=request.logprobs,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        **fields,
    )


def check_calls(earlier: Sequence[InputItem], items: Sequence[InputItem]) -> None:
    """Raises InvalidField for an output whose call is neither among the earlier items nor before it."""
    calls = {item.call_id for item in earlier if item.kind == "function_call"}
    for index, item in enumerate(items):
        if item.kind == "function_call":
            calls.add(item.call_id)
        elif item.kind == "function_call_output" and item.call_id not in calls:
            param = f"input[{index}].call_id"
            raise InvalidField(f"'{param}': no call {str(item.call_id)[:100]!r} precedes its output.", param)


def messages_of(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    """Chat messages. Calls belong to the assistant message directly before them, if there is one."""
    messages: list[dict[str, Any]] = []
    for item in items:
        if item.kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            call = {"id": item.call_id, "type": "function", "function": _function(item)}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif item.kind == "function_call_output":
            messages.append({"role": "tool", "content": item.output, "tool_call_id": item.call_id})
        else:
            messages.append({"role": item.role, "content": item.content})
    return messages


def _function(item: InputItem) -> dict[str, Any]:
    return {"name": item.name, "arguments": item.arguments}


@contextmanager
def own_field_names() -> Iterator[None]:
    """Faults that name fields of the chat request name those of the responses request instead."""
    try:
        yield
    except InvalidRequest as error:
        for pattern, name in NAMES:
            if error.param is not None and (match := re.fullmatch(pattern, error.param)):
                message = str(error).replace(f"'{error.param}'", f"'{match.expand(name)}'")
                error.args = (re.sub(r"\bmax_(completion_)?tokens\b", "max_output_tokens", message),)
                error.param = match.expand(name)
                break
        raise
