"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from decoding_server.api.endpoint import documented, read_request, service_of, tokenize
from decoding_server.errors import InvalidField
from decoding_server.logprobs import chat_entries
from decoding_server.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatLogprobs,
)
from decoding_server.running import Answer, Prompt, RunningRequest
from decoding_server.service import Scoring, Service, token_limit_param
from decoding_server.streaming import EventStream, unless_disconnected
from strategies.runtime import Delta, TokenLogprob

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatCompletion, openapi_extra=documented(ChatCompletionRequest))
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation."""
    service = service_of(request)
    chat, warnings = await read_request(request, ChatCompletionRequest)
    model = service.model_name(chat.model)
    _check(chat)
    prompt = await _prompt(service, chat)
    scoring = Scoring((chat.top_logprobs or 0) if chat.logprobs else None)
    running = service.submit(chat, [prompt], scoring, prompt_field="messages")
    writer = ChatWriter(service, chat, running, model, warnings)
    if chat.stream:
        return EventStream(writer.chunks(), running.cancel, service.config.sse_keep_alive)
    try:
        answers = await unless_disconnected(request.receive, running.answers())
    finally:
        running.cancel()
    return Response(status_code=499) if answers is None else JSONResponse(writer.response(answers))


def _check(chat: ChatCompletionRequest) -> None:
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidField("'top_logprobs' is only allowed when logprobs is true.", "top_logprobs")
    if chat.token_limit == 0:
        name = token_limit_param(chat)
        raise InvalidField(f"'{name}' must be at least 1.", name)


async def _prompt(service: Service, chat: ChatCompletionRequest) -> Prompt:
    """The rendered conversation. No special tokens are added: the template writes its own."""
    tokenizer = service.runtime.tokenizer
    text = tokenizer.render_chat([message.for_template() for message in chat.messages])
    tokens = await tokenize(tokenizer, text, add_special_tokens=False)
    if not tokens:
        raise InvalidField("The chat template makes an empty prompt of these messages.", "messages")
    return Prompt(tokens, text)


class ChatWriter:
    """Writes one request's response, whole or in chunks."""

    def __init__(
        self, service: Service, chat: ChatCompletionRequest, running: RunningRequest, model: str, warnings: list[str]
    ) -> None:
        self.tokenizer = service.runtime.tokenizer
        self.chat = chat
        self.running = running
        self.model = model
        self.warnings = warnings
        self.fingerprint = service.runtime.info.fingerprint
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def _logprobs(self, entries: list[TokenLogprob]) -> ChatLogprobs:
        return {"content": chat_entries(self.tokenizer, entries, self.chat.top_logprobs or 0), "refusal": None}

    def response(self, answers: list[Answer]) -> ChatCompletion:
        response: ChatCompletion = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": self.running.usage(),
        }
        if self.warnings:
            response["warnings"] = self.warnings
        return response

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        """The end-of-sequence token is no content, so it has no entry among the content's log-probabilities."""
        entries = answer.logprobs[:-1] if answer.ends_with_stop_token else answer.logprobs
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(entries) if self.chat.logprobs else None,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }

    async def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        """Per choice a chunk with the role, chunks with content, one with the finish reason; last usage, if asked."""
        begun: set[int] = set()
        warnings = self.warnings
        async for index, delta in self.running.deltas():
            choices: list[ChatChunkChoice] = []
            if index not in begun:
                begun.add(index)
                choices.append(_chunk_choice(index, {"role": "assistant", "content": ""}))
            entries = _content_entries(delta) if self.chat.logprobs else []
            if delta.text or entries:
                content = _chunk_choice(index, {"content": delta.text})
                content["logprobs"] = self._logprobs(entries) if entries else None
                choices.append(content)
            if delta.finish_reason is not None:
                last = _chunk_choice(index, {})
                last["finish_reason"] = delta.finish_reason
                last["stop_reason"] = delta.stop_reason
                choices.append(last)
            for choice in choices:
                chunk = self._chunk([choice])
                if self.chat.include_usage:
                    chunk["usage"] = self.running.token_counts() if self.chat.continuous_usage else None
                if warnings:
                    chunk["warnings"], warnings = warnings, []
                yield chunk
        if self.chat.include_usage:
            usage = self._chunk([])
            usage["usage"] = self.running.usage()
            yield usage

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
