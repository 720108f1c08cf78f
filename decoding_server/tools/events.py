"""What parsing an answer yields: text for the user, and tool calls."""

from collections.abc import Iterable
from dataclasses import dataclass

from decoding_server.tools.protocol import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta


@dataclass(frozen=True, slots=True)
class ContentText:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; its arguments follow. Indices count from 0 in the order of the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of the arguments string of call `index`, as the model wrote it."""

    index: int
    text: str


Event = ContentText | CallStart | CallArguments


def whole_answer(events: Iterable[Event]) -> tuple[str, list[ToolCall]]:
    """The content and the calls that all events of one answer add up to."""
    content = ""
    calls: list[ToolCall] = []
    for event in events:
        match event:
            case ContentText():
                content += event.text
            case CallStart():
                call: FunctionCall = {"name": event.name, "arguments": ""}
                calls.append({"id": event.id, "type": "function", "function": call})
            case CallArguments():
                calls[event.index]["function"]["arguments"] += event.text
    return content, calls


def call_delta(event: CallStart | CallArguments) -> ToolCallDelta:
    """One entry of a chunk's `delta.tool_calls`: id, type and name come once, then pieces of the arguments."""
    if isinstance(event, CallStart):
        function: FunctionCallDelta = {"name": event.name, "arguments": ""}
        return {"index": event.index, "id": event.id, "type": "function", "function": function}
    return {"index": event.index, "function": {"arguments": event.text}}
