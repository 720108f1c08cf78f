"""POST /v1/embeddings: the served model's own hidden states as vectors.

The model was trained to generate, not to embed: the vectors are those of its last layer after the final norm, pooled
over the tokens, and the reply names the pooling. Mean pooling computes every token; last-token pooling takes all but
the last from the prefix cache where it can.
"""

import asyncio
import base64

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from decoding_server.api.endpoint import documented, read_request, service_of, tokenize
from decoding_server.decoding import resolved_decoding
from decoding_server.errors import InvalidField
from decoding_server.metrics import STANDARD
from decoding_server.observability import RequestObserver, observer_of
from decoding_server.protocol.embeddings import EmbeddingEntry, EmbeddingList, EmbeddingRequest
from decoding_server.running import Prompt, RunningRequest
from decoding_server.service import Service
from decoding_server.streaming import unless_disconnected
from strategies.budget import Meter
from strategies.errors import ContextLengthExceeded, RequestFailed
from strategies.runtime import Generation, Pooling, StopConditions

router = APIRouter()

DEFAULT_POOLING: Pooling = "mean"

Vectors = npt.NDArray[np.float32]


@router.post("/v1/embeddings", response_model=EmbeddingList, openapi_extra=documented(EmbeddingRequest))
async def create_embeddings(request: Request) -> Response:
    """Turns texts into vectors."""
    service = service_of(request)
    wanted, warnings = await read_request(request, EmbeddingRequest)
    model = service.model_name(wanted.model)
    running = submit(service, wanted, model, await _prompts(service, wanted), observer_of(request))
    try:
        vectors = await unless_disconnected(request.receive, collect(running))
    finally:
        running.cancel()
    if vectors is None:
        return Response(status_code=499)
    content = await asyncio.to_thread(_content, wanted, vectors, running, model, warnings)
    return JSONResponse(content)


async def _prompts(service: Service, wanted: EmbeddingRequest) -> list[Prompt]:
    """Text gets the tokenizer's special tokens, as in completions. Raises InvalidField, ContextLengthExceeded."""
    tokenizer, longest = service.runtime.tokenizer, service.runtime.info.max_model_len
    most = min(service.config.max_prompts, service.config.max_waiting)
    if len(wanted.input) > most:
        raise InvalidField(f"'input' may hold at most {most} inputs.", "input")
    prompts = []
    for index, one in enumerate(wanted.input):
        if isinstance(one, str):
            tokens = await tokenize(tokenizer, one, add_special_tokens=wanted.add_special_tokens is not False)
            prompts.append(Prompt(tokens, one))
        else:
            service.check_tokens(one, "input")
            prompts.append(Prompt(one, ""))
        count = len(prompts[-1].tokens)
        if count > longest:
            message = f"'input': element {index} has {count} tokens; the context length is {longest}."
            raise ContextLengthExceeded(message, "input")
        if not count:
            raise InvalidField(f"'input': element {index} has no tokens.", "input")
    return prompts


def submit(
    service: Service, wanted: EmbeddingRequest, model: str, prompts: list[Prompt], observer: RequestObserver
) -> RunningRequest:
    """Queues one sequence per prompt, which generates nothing. Raises QueueFull, KeyLimited, RuntimeUnavailable."""
    leave = observer.leave
    meter = Meter()  # without a budget: half a vector is none
    generations = [
        Generation(
            prompt=prompt.tokens,
            stopping=StopConditions(max_tokens=0),
            pooling=wanted.pooling or DEFAULT_POOLING,
            priority=wanted.priority or 0,
            cache_salt=wanted.cache_salt or "",
            tenant="" if leave is None else leave.key.tenant,
            meter=meter,
        )
        for prompt in prompts
    ]
    if leave is not None:
        leave.queue(len(generations))
    streams = service.runtime.submit(generations)
    observer.described(model, STANDARD, max_tokens=0)
    observer.submitted(meter, sum(len(p.tokens) for p in prompts), len(streams), [p.text for p in prompts])
    resolved = resolved_decoding(generations[0], service.runtime.info.eos_token_ids)
    return RunningRequest(prompts, 1, streams, meter, resolved, observer)


async def collect(running: RunningRequest) -> Vectors:
    """The pooled states of every prompt, in order: [prompts, hidden]. Raises RequestFailed."""
    pooled: list[list[float] | None] = [None] * len(running.streams)
    async for index, delta in running.deltas():
        if delta.embedding is not None:
            pooled[index] = delta.embedding
    vectors = np.array([vector for vector in pooled if vector is not None], np.float32)
    if len(vectors) < len(pooled):
        raise RequestFailed("The model stopped before the end of the input.")
    if not np.isfinite(vectors).all():
        raise RequestFailed("The model's hidden states are not finite.")
    return vectors


def unit_length(vectors: Vectors) -> Vectors:
    """[n, hidden], each divided by its Euclidean length; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def _content(
    wanted: EmbeddingRequest, vectors: Vectors, running: RunningRequest, model: str, warnings: list[str]
) -> EmbeddingList:
    normalize = wanted.normalize is not False
    if normalize:
        vectors = unit_length(vectors)
    usage = running.usage()
    content: EmbeddingList = {
        "object": "list",
        "data": [_entry(index, vector, wanted.encoding_format == "base64") for index, vector in enumerate(vectors)],
        "model": model,
        "usage": {
            "prompt_tokens": usage["prompt_tokens"],
            "total_tokens": usage["total_tokens"],
            "decoding": usage["decoding"],
        },
        "pooling": wanted.pooling or DEFAULT_POOLING,
        "normalize": normalize,
    }
    if warnings:
        content["warnings"] = warnings
    return content


def _entry(index: int, vector: Vectors, as_base64: bool) -> EmbeddingEntry:
    encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()
    return {"object": "embedding", "index": index, "embedding": encoded}
