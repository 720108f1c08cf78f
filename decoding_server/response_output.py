"""The items of one response as they grow, and the events of each step.

A message: output_item.added, content_part.added, output_text.delta..., output_text.done, content_part.done,
output_item.done. A call: output_item.added, function_call_arguments.delta..., function_call_arguments.done,
output_item.done. One item is open at a time; the last one is closed when the answer's end, and with it the item's
status, is known.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from decoding_server.protocol.chat import TokenLogprobEntry
from decoding_server.protocol.response_items import (
    FunctionCallItem,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    ResponseEvent,
)
from decoding_server.tools.events import CallArguments, CallStart, ContentText, Event


class ResponseOutput:
    """`items` are the output so far, the last one open until `finish`. Numbers the events of the whole stream."""

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        self._message: OutputMessage | None = None  # the open item, if it is a message
        self._call: FunctionCallItem | None = None  # the open item, if it is a call
        self._texts: list[str] = []  # pieces of the open item's text or arguments
        self._logprobs: list[TokenLogprobEntry] = []
        self._events = 0

    def event(self, kind: str, **fields: Any) -> ResponseEvent:
        """The next event. Events must be sent in the order in which they were made."""
        self._events += 1
        numbered: ResponseEvent = {"type": f"response.{kind}", "sequence_number": self._events - 1}
        numbered.update(fields)  # type: ignore[typeddict-item]
        return numbered

    def push(self, events: Sequence[Event], logprobs: Sequence[TokenLogprobEntry] = ()) -> list[ResponseEvent]:
        """What a step of the answer adds. logprobs go with its first piece of text."""
        sent: list[ResponseEvent] = []
        if logprobs and not any(isinstance(event, ContentText) for event in events):
            events = [ContentText(""), *events]
        for event in events:
            match event:
                case ContentText():
                    if self._message is None:
                        sent += [*self._close("completed"), *self._open_message()]
                    sent.append(self._add_text(event.text, list(logprobs)))
                    logprobs = ()
                case CallStart():
                    sent += [*self._close("completed"), *self._open_call(event)]
                case CallArguments():
                    self._texts.append(event.text)
                    sent.append(self._item_event("function_call_arguments.delta", delta=event.text))
        return sent

    def finish(self, status: ItemStatus) -> list[ResponseEvent]:
        """Closes the last item; an answer without any gets an empty message."""
        sent = [] if self.items else self._open_message()
        return [*sent, *self._close(status)]

    def _open_message(self) -> list[ResponseEvent]:
        self._message = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        self.items.append(self._message)
        return [
            self.event("output_item.added", output_index=len(self.items) - 1, item={**self._message, "content": []}),
            self._item_event("content_part.added", content_index=0, part=_part("", [])),
        ]

    def _add_text(self, text: str, logprobs: list[TokenLogprobEntry]) -> ResponseEvent:
        self._texts.append(text)
        self._logprobs += logprobs
        return self._item_event("output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _open_call(self, start: CallStart) -> list[ResponseEvent]:
        self._call = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": start.id,
            "name": start.name,
            "arguments": "",
        }
        self.items.append(self._call)
        return [self.event("output_item.added", output_index=len(self.items) - 1, item={**self._call})]

    def _close(self, status: ItemStatus) -> list[ResponseEvent]:
        text = "".join(self._texts)
        sent: list[ResponseEvent] = []
        if self._message is not None:
            part = _part(text, self._logprobs)
            self._message["content"], self._message["status"] = [part], status
            sent = [
                self._item_event("output_text.done", content_index=0, text=text, logprobs=part["logprobs"]),
                self._item_event("content_part.done", content_index=0, part=part),
                self.event("output_item.done", output_index=len(self.items) - 1, item=self._message),
            ]
        elif self._call is not None:
            self._call["arguments"], self._call["status"] = text, status
            sent = [
                self._item_event("function_call_arguments.done", name=self._call["name"], arguments=text),
                self.event("output_item.done", output_index=len(self.items) - 1, item=self._call),
            ]
        self._message = self._call = None
        self._texts, self._logprobs = [], []
        return sent

    def _item_event(self, kind: str, **fields: Any) -> ResponseEvent:
        return self.event(kind, item_id=self.items[-1]["id"], output_index=len(self.items) - 1, **fields)


def _part(text: str, logprobs: list[TokenLogprobEntry]) -> OutputText:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
