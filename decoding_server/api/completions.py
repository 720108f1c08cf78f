"""POST /v1/completions."""

import time
import uuid
from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from decoding_server.api.endpoint import documented, read_request, service_of, tokenize
from decoding_server.errors import InvalidField
from decoding_server.fill_in_middle import fill_in_middle
from decoding_server.logprobs import CompletionLogprobsWriter, TokenSpelling, joined, prompt_entries
from decoding_server.observability import observer_of
from decoding_server.protocol.completions import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from decoding_server.running import Answer, Prompt, RunningRequest
from decoding_server.service import Scoring, Service, token_limit_param
from decoding_server.streaming import EventStream, unless_disconnected
from decoding_server.structure import structure_of
from strategies.runtime import Delta, TokenLogprob

router = APIRouter()


@router.post("/v1/completions", response_model=Completion, openapi_extra=documented(CompletionRequest))
async def create_completion(request: Request) -> Response:
    """Continues one or more prompts."""
    service = service_of(request)
    completion, warnings = await read_request(request, CompletionRequest)
    model = service.model_name(completion.model)
    _check(completion, service)
    prompts = await _prompts(service, completion)
    echoed = completion.logprobs if completion.echo else None
    scored = [count for count in (echoed, completion.prompt_logprobs) if count is not None]
    selecting = completion.candidates > completion.choices_per_prompt
    generated = 0 if selecting and completion.logprobs is None else completion.logprobs
    prompts = await service.prepare(completion, prompts, default_max_tokens=DEFAULT_MAX_TOKENS)
    running = service.submit(
        completion,
        prompts,
        Scoring(generated, max(scored, default=None)),
        choices=completion.candidates,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        observer=observer_of(request),
        structure=await structure_of(service, completion),
    )
    writer = CompletionWriter(service, completion, running, model, warnings)
    if completion.stream:
        return EventStream(writer.chunks(), running.cancel, service.config.sse_keep_alive)
    try:
        answers = await unless_disconnected(request.receive, running.answers())
    finally:
        running.cancel()
    if answers is None:
        return Response(status_code=499)
    if selecting:
        answers = running.keep_best(answers, completion.choices_per_prompt)
    return JSONResponse(writer.response(answers))


def _check(completion: CompletionRequest, service: Service) -> None:
    config = service.config
    if (completion.best_of or 0) > config.max_n:
        raise InvalidField(f"'best_of' must be at most {config.max_n}.", "best_of")
    if (completion.logprobs or 0) > config.max_logprobs:
        raise InvalidField(f"'logprobs' must be at most {config.max_logprobs}.", "logprobs")
    if completion.token_limit == 0 and not (completion.echo or completion.prompt_logprobs is not None):
        name = token_limit_param(completion)
        raise InvalidField(f"'{name}' must be at least 1, except with echo or prompt_logprobs.", name)


async def _prompts(service: Service, completion: CompletionRequest) -> list[Prompt]:
    """Token ids are taken as they are; text gets the tokenizer's special tokens (such as a beginning of sequence)."""
    tokenizer = service.runtime.tokenizer
    special = completion.add_special_tokens is not False
    prompts = []
    for prompt in completion.prompt:
        if isinstance(prompt, str):
            if completion.suffix:
                tokens = fill_in_middle(tokenizer, prompt, completion.suffix)
            else:
                tokens = await tokenize(tokenizer, prompt, add_special_tokens=special)
            text = prompt
        elif completion.suffix:
            raise InvalidField("'suffix' needs a prompt that is text, not token ids.", "suffix")
        else:
            service.check_tokens(prompt, "prompt")
            tokens, text = prompt, tokenizer.decode(prompt, skip_special_tokens=False)
        kept = service.truncated(completion, tokens)
        if len(kept) < len(tokens):
            text = tokenizer.decode(kept, skip_special_tokens=False)
        prompts.append(Prompt(kept, text))
        if not kept:
            raise InvalidField("'prompt' is empty, and this model has no token to begin with.", "prompt")
    return prompts


class CompletionWriter:
    """Writes one request's response, whole or in chunks."""

    def __init__(
        self, service: Service, completion: CompletionRequest, running: RunningRequest, model: str, warnings: list[str]
    ) -> None:
        self.tokenizer = service.runtime.tokenizer
        self.completion = completion
        self.running = running
        self.model = model
        self.warnings = warnings
        self.fingerprint = service.runtime.info.fingerprint
        self.id = f"cmpl-{completion.request_id or uuid.uuid4().hex}"
        self.created = int(time.time())

    def _envelope(self, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def _logprobs_writer(self, choice: int) -> CompletionLogprobsWriter:
        spelling = TokenSpelling(self.tokenizer, as_ids=bool(self.completion.return_tokens_as_token_ids))
        return CompletionLogprobsWriter(spelling, self.running.prompt_of(choice), self.completion.logprobs or 0)

    def response(self, answers: list[Answer]) -> Completion:
        response = self._envelope([self._choice(index, answer) for index, answer in enumerate(answers)])
        response["usage"] = self.running.usage()
        response["decoding"] = self.running.decoding
        if self.warnings:
            response["warnings"] = self.warnings
        traces = self.running.traces([answer.trace for answer in answers])
        if traces is not None:
            response["trace"] = traces
        return response

    def _choice(self, index: int, answer: Answer) -> CompletionChoice:
        writer = self._logprobs_writer(index)
        prompt = self.running.prompt_of(index)
        echo = prompt.text if self.completion.echo else ""
        choice: CompletionChoice = {
            "index": index,
            "text": echo + answer.text,
            "logprobs": self._logprobs(writer, answer.prompt_logprobs, answer.logprobs),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self.completion.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_entries(self.tokenizer, answer.prompt_logprobs)
        if self.completion.return_token_ids:
            choice["prompt_token_ids"], choice["token_ids"] = prompt.tokens, answer.tokens
        return choice

    def _logprobs(
        self,
        writer: CompletionLogprobsWriter,
        prompt: list[TokenLogprob | None] | None,
        answer: list[TokenLogprob] | None,
    ) -> CompletionLogprobs | None:
        """The end-of-sequence token keeps its entry: evaluation harnesses rely on one entry per generated token."""
        if self.completion.logprobs is None:
            return None
        if prompt is None or not self.completion.echo:
            return writer.answer_arrays(answer or [])
        prompt_arrays = writer.prompt_arrays(prompt)
        return joined(prompt_arrays, writer.answer_arrays(answer or []))

    async def chunks(self) -> AsyncIterator[Completion]:
        writers = [self._logprobs_writer(index) for index in range(len(self.running.streams))]
        begun: set[int] = set()
        warnings, started = self.warnings, False
        async for index, delta in self.running.deltas():
            text = delta.text
            if self.completion.echo and index not in begun:
                text = self.running.prompt_of(index).text + text
            with_ids = bool(self.completion.return_token_ids)
            if not (text or delta.logprobs or delta.prompt_logprobs or delta.finish_reason or with_ids or delta.trace):
                continue
            choice = self._chunk_choice(index, text, delta, writers[index])
            if with_ids:
                choice["token_ids"] = delta.tokens
                if index not in begun:
                    choice["prompt_token_ids"] = self.running.prompt_of(index).tokens
            begun.add(index)
            chunk = self._envelope([choice])
            if delta.trace:
                chunk["trace"] = delta.trace
            self._add_usage(chunk)
            if not started:
                chunk["decoding"], started = self.running.decoding, True
            if warnings:
                chunk["warnings"], warnings = warnings, []
            yield chunk
        if self.completion.include_usage:
            last = self._envelope([])
            last["usage"] = self.running.usage()
            yield last

    def _chunk_choice(self, index: int, text: str, delta: Delta, writer: CompletionLogprobsWriter) -> CompletionChoice:
        scored = delta.logprobs or delta.prompt_logprobs
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(writer, delta.prompt_logprobs, delta.logprobs) if scored else None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }

    def _add_usage(self, chunk: Completion) -> None:
        if self.completion.include_usage:
            so_far = self.running.usage() if "trace" in chunk else self.running.token_counts()
            chunk["usage"] = so_far if self.completion.continuous_usage else None
