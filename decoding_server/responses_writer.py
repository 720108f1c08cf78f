"""Writes one response of /v1/responses, whole or as events."""

import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

from starlette.types import Send

from decoding_server.errors import failure_of
from decoding_server.logprobs import TokenSpelling, chat_entries
from decoding_server.protocol.response_items import ResponseEvent
from decoding_server.protocol.responses import ResponseObject, ResponsesRequest, ResponseUsage
from decoding_server.response_output import ResponseOutput
from decoding_server.running import RunningRequest
from decoding_server.service import Service
from decoding_server.streaming import EventStream, event
from decoding_server.tools.choice import ToolPlan
from decoding_server.tools.events import ContentText, Event
from strategies.runtime import Delta, FinishReason, SamplingParameters, TokenLogprob
from strategies.sampling.truncation import TopP

NOT_STORED = "the response was not stored: it is larger than the server's store"


class ResponsesWriter:
    """One response. The answer is taken delta by delta in any case, so that a stream's last event has what a plain
    reply would have had.

    save: stores the finished response, False if it is too large; None if it is not to be stored.
    """

    def __init__(
        self,
        service: Service,
        request: ResponsesRequest,
        running: RunningRequest,
        *,
        model: str,
        sampling: SamplingParameters,
        warnings: list[str],
        tools: ToolPlan,
        save: Callable[[ResponseObject], bool] | None,
    ) -> None:
        self.request = request
        self.running = running
        self.model = model
        self.top_p = next((one.p for one in sampling.transforms if isinstance(one, TopP)), 1.0)
        self.warnings = warnings
        self.save = save
        self.fingerprint = service.runtime.info.fingerprint
        self.spelling = TokenSpelling(service.runtime.tokenizer)
        self.id = f"resp_{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.output = ResponseOutput()
        form = tools.parser_format
        self._parser = None if form is None else form.create_parser(tools.tool_names, parallel=tools.parallel)
        self._finish_reason: FinishReason | None = None
        self._stop_reason: str | int | None = None
        self._records: list[dict[str, Any]] = []

    async def response(self) -> ResponseObject:
        """Reads the answer to its end. Raises what the answer raises."""
        async for delta in self._deltas():
            self._take(delta)
        self.output.finish(self._end())
        return self._finished()

    async def events(self) -> AsyncIterator[ResponseEvent]:
        """The stream, from response.created to response.completed, .incomplete or .failed. The response is stored
        before the last event, since that is when clients go on with it."""
        yield self.output.event("created", response=self._object("in_progress"))
        yield self.output.event("in_progress", response=self._object("in_progress"))
        try:
            async for delta in self._deltas():
                for one in self._take(delta):
                    yield one
            for one in self.output.finish(self._end()):
                yield one
            finished = self._finished()
        except Exception as error:
            for one in self.output.finish("incomplete") if self.output.items else []:
                yield one
            yield self.output.event("failed", response=self._failed(error))
            return
        yield self.output.event(finished["status"], response=finished)

    async def _deltas(self) -> AsyncIterator[Delta]:
        async for _, delta in self.running.deltas():
            yield delta

    def _take(self, delta: Delta) -> list[ResponseEvent]:
        self._records += delta.trace or ()
        events: list[Event] = [ContentText(delta.text)] if delta.text else []
        if self._parser is not None:
            events = self._parser.push(delta.text)
        if delta.finish_reason is not None:
            self._finish_reason, self._stop_reason = delta.finish_reason, delta.stop_reason
            if self._parser is not None:
                events += self._parser.finish()
                if delta.finish_reason == "stop" and self._parser.ends_in_calls:
                    self.running.observer.called_tools(0)
        entries: list[TokenLogprob] = (delta.logprobs or []) if self.request.logprobs else []
        if delta.stop_token:
            entries = entries[:-1]  # the end of the sequence is no text
        return self.output.push(events, chat_entries(self.spelling, entries, self.request.top_logprobs or 0))

    def _end(self) -> Literal["completed", "incomplete"]:
        """The status of the response, and of its last item."""
        return "completed" if self._finish_reason == "stop" else "incomplete"

    def _finished(self) -> ResponseObject:
        finished = self._object(self._end())
        finished["completed_at"] = int(time.time())
        finished["output"] = self.output.items
        finished["usage"] = self._usage()
        finished["stop_reason"] = self._stop_reason
        traces = self.running.traces([self._records])
        if traces is not None:
            finished["trace"] = traces
        if finished["status"] == "incomplete":
            finished["incomplete_details"] = {"reason": "max_output_tokens", "stop_reason": self._stop_reason}
        if self.save is not None and not self.save(finished):
            finished["store"] = False
            finished["warnings"] = [*self.warnings, NOT_STORED]
        return finished

    def _failed(self, error: Exception) -> ResponseObject:
        failed = self._object("failed")
        failed["output"] = self.output.items
        failed["usage"] = self._usage()
        failed["store"] = False
        failed["error"] = {"code": "server_error", "message": failure_of(error).message}
        return failed

    def _usage(self) -> ResponseUsage:
        usage = self.running.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
                "cache_write_tokens": 0,
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
            "decoding": usage["decoding"],
        }

    def _object(self, status: Literal["in_progress", "completed", "incomplete", "failed"]) -> ResponseObject:
        request, choice = self.request, self.request.tool_choice
        text_format = request.text.format if request.text is not None else None
        response: ResponseObject = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self.model,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": self.save is not None,
            "temperature": self.running.decoding["temperature"],
            "text": {"format": {"type": "text"} if text_format is None else _given(text_format), "verbosity": "medium"},
            "tool_choice": "auto" if choice is None else choice.on_the_wire(),
            "tools": [_given(tool) for tool in request.tools or []],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": "disabled",
            "background": False,
            "usage": None,
            "user": request.user,
            "metadata": request.metadata,
            "system_fingerprint": self.fingerprint,
            "stop_reason": None,
            "decoding": self.running.decoding,
        }
        if self.warnings:
            response["warnings"] = self.warnings
        return response


def _given(model: Any) -> dict[str, Any]:
    """A part of the request as the client wrote it."""
    written: dict[str, Any] = model.model_dump(by_alias=True, exclude_unset=True)
    return written


class ResponseEventStream(EventStream):
    """Events with their type on a line of its own and no [DONE] after the last, as OpenAI sends them here. The payloads
    end with an event that tells of a failure, if there was one."""

    async def _send_all(self, send: Send) -> None:
        async for payload in self.payloads:
            await self._send(send, f"event: {payload['type']}\n".encode() + event(payload))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
