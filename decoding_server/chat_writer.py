"""Writes one chat request's response, whole or in chunks: content, tool calls, log-probabilities, usage."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Literal

from decoding_server.logprobs import TokenSpelling, chat_entries, prompt_entries
from decoding_server.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatLogprobs,
)
from decoding_server.protocol.usage import Usage
from decoding_server.running import Answer, RunningRequest
from decoding_server.service import Service
from decoding_server.tools.choice import ToolPlan
from decoding_server.tools.events import ContentText, Event, call_delta, whole_answer
from decoding_server.tools.parser import ToolCallParser
from strategies.runtime import Delta, FinishReason, TokenLogprob


class ChatWriter:
    """One request's response. With tools, each choice's text goes through a parser that finds calls in it."""

    def __init__(
        self,
        service: Service,
        chat: ChatCompletionRequest,
        running: RunningRequest,
        *,
        model: str,
        warnings: list[str],
        tools: ToolPlan,
    ) -> None:
        self.chat = chat
        self.running = running
        self.model = model
        self.warnings = warnings
        self.tools = tools
        self.fingerprint = service.runtime.info.fingerprint
        self.spelling = TokenSpelling(service.runtime.tokenizer, as_ids=bool(chat.return_tokens_as_token_ids))
        self.id = f"chatcmpl-{chat.request_id or uuid.uuid4().hex}"
        self.created = int(time.time())

    def _parser(self) -> ToolCallParser | None:
        form = self.tools.parser_format
        return None if form is None else form.create_parser(self.tools.tool_names, parallel=self.tools.parallel)

    def _logprobs(self, entries: list[TokenLogprob]) -> ChatLogprobs:
        return {"content": chat_entries(self.spelling, entries, self.chat.top_logprobs or 0), "refusal": None}

    def response(self, answers: list[Answer]) -> ChatCompletion:
        response: ChatCompletion = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": self.running.usage(),
            "decoding": self.running.decoding,
        }
        if self.chat.prompt_logprobs is not None:
            response["prompt_logprobs"] = prompt_entries(self.spelling.tokenizer, answers[0].prompt_logprobs)
        if self.chat.return_token_ids:
            response["prompt_token_ids"] = self.running.prompts[0].tokens
        if self.warnings:
            response["warnings"] = self.warnings
        traces = self.running.traces([answer.trace for answer in answers])
        if traces is not None:
            response["trace"] = traces
        return response

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        """The end-of-sequence token is no content, so it has no entry among the content's log-probabilities."""
        entries = answer.logprobs[:-1] if answer.ends_with_stop_token else answer.logprobs
        choice: ChatChoice = {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(entries) if self.chat.logprobs else None,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        parser = self._parser()
        if parser is not None:
            content, calls = whole_answer([*parser.push(answer.text), *parser.finish()])
            if calls:
                choice["message"]["content"] = content or None
                choice["message"]["tool_calls"] = calls
                choice["finish_reason"] = self._finish_reason(index, answer.finish_reason, parser)
            else:
                choice["message"]["content"] = content
        if self.chat.return_token_ids:
            choice["token_ids"] = answer.tokens
        return choice

    async def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        """Per choice a chunk with the role, chunks with content or calls, one with the finish reason; last usage, if
        asked."""
        begun: set[int] = set()
        parsers = [self._parser() for _ in self.running.streams]
        warnings, started = self.warnings, False
        async for index, delta in self.running.deltas():
            choices: list[ChatChunkChoice] = []
            if index not in begun:
                begun.add(index)
                choices.append(_chunk_choice(index, {"role": "assistant", "content": ""}))
            choices += self._content(index, delta, parsers[index])
            if delta.finish_reason is not None:
                last = _chunk_choice(index, {})
                last["finish_reason"] = self._finish_reason(index, delta.finish_reason, parsers[index])
                last["stop_reason"] = delta.stop_reason
                choices.append(last)
            if delta.trace and not choices:
                choices.append(_chunk_choice(index, {"content": ""}))
            for choice in choices:
                chunk = self._chunk([choice])
                if delta.trace:
                    chunk["trace"], delta.trace = delta.trace, None
                if not started:
                    started = True
                    chunk["decoding"] = self.running.decoding
                    if self.chat.return_token_ids:
                        chunk["prompt_token_ids"] = self.running.prompts[0].tokens
                if self.chat.include_usage:
                    chunk["usage"] = self._usage_so_far(told="trace" in chunk)
                if warnings:
                    chunk["warnings"], warnings = warnings, []
                yield chunk
        if self.chat.include_usage:
            usage = self._chunk([])
            usage["usage"] = self.running.usage()
            yield usage

    def _usage_so_far(self, *, told: bool) -> Usage | None:
        """The counts of a chunk, if asked for. told: it has records of a trace, and with them the spend by then."""
        if not self.chat.continuous_usage:
            return None
        return self.running.usage() if told else self.running.token_counts()

    def _content(self, index: int, delta: Delta, parser: ToolCallParser | None) -> list[ChatChunkChoice]:
        """The chunks that one step of the engine makes: text, pieces of calls; log-probabilities go with the first."""
        events: list[Event] = [ContentText(delta.text)] if delta.text else []
        if parser is not None:
            events = parser.push(delta.text)
            if delta.finish_reason is not None:
                events += parser.finish()
        choices = [
            _chunk_choice(
                index,
                {"content": event.text} if isinstance(event, ContentText) else {"tool_calls": [call_delta(event)]},
            )
            for event in events
        ]
        entries = _content_entries(delta) if self.chat.logprobs else []
        with_ids = bool(self.chat.return_token_ids and delta.tokens)
        if (entries or with_ids) and not choices:
            choices.append(_chunk_choice(index, {"content": ""}))
        if choices:
            choices[0]["logprobs"] = self._logprobs(entries) if entries else None
            if with_ids:
                choices[0]["token_ids"] = delta.tokens
        return choices

    def _finish_reason(
        self, index: int, reason: FinishReason, parser: ToolCallParser | None
    ) -> Literal["stop", "length", "tool_calls"]:
        """An answer that made calls and was not cut off, by a limit or a stop string, ended in order to have them
        run."""
        if reason == "stop" and parser is not None and parser.ends_in_calls:
            self.running.observer.called_tools(index)
            return "tool_calls"
        return reason

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def _content_entries(delta: Delta) -> list[TokenLogprob]:
    entries = delta.logprobs or []
    return entries[:-1] if delta.stop_token else entries


def _chunk_choice(index: int, delta: ChatDelta) -> ChatChunkChoice:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
