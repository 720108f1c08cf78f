"""The application: routes, guards and error handlers around one runtime."""

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from decoding_server import __version__
from decoding_server.api import (
    chat,
    completions,
    embeddings,
    health,
    metrics,
    models,
    playground,
    responses,
    strategies,
    tokens,
)
from decoding_server.api_keys import KeyRing
from decoding_server.auth import OPEN_PATHS, ApiKeyGuard
from decoding_server.config import ServerConfig
from decoding_server.errors import answer_exception
from decoding_server.key_limits import KeyLimits, LimitKeys
from decoding_server.metrics import KeyMetrics
from decoding_server.observability import Observability, ObserveRequests
from decoding_server.protocol.chat import ChatCompletionRequest
from decoding_server.protocol.completions import CompletionRequest
from decoding_server.protocol.embeddings import EmbeddingRequest
from decoding_server.protocol.responses import ResponsesRequest
from decoding_server.protocol.tokens import DetokenizeRequest, TokenizeRequest
from decoding_server.request_context import in_context
from decoding_server.response_store import ResponseStore
from decoding_server.service import Service
from decoding_server.tracing import Tracing
from decoding_server.values import Scorers
from strategies.errors import DecodingError
from strategies.registry import registered
from strategies.runtime import Runtime

BODIES = (
    CompletionRequest,
    ChatCompletionRequest,
    ResponsesRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
)


def create_app(runtime: Runtime, config: ServerConfig, scorers: Scorers | None = None) -> FastAPI:
    """An ASGI application that serves `runtime`. The caller owns the runtime and closes it.

    scorers: value functions of searches; the configured ones are loaded if None. Raises ModelLoadError.
    """
    app = FastAPI(
        title="decoding-server",
        version=__version__,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would be an answer without our error body
    )
    app.state.service = Service(runtime, config, scorers)
    app.state.response_store = ResponseStore(config.response_store_size, config.response_store_memory)
    app.state.observability = observability_of(runtime, config, app.state.service.served_names[0])
    app.state.service.sandbox.listener = app.state.observability.programs
    for family in (completions, chat, responses, embeddings, models, tokens, strategies, health):
        app.include_router(family.router)
    if config.metrics != "off":
        app.include_router(metrics.router)
    if config.playground:
        app.include_router(playground.router)
    for error in (DecodingError, HTTPException, RequestValidationError):
        app.add_exception_handler(error, answer_exception)
    usage = KeyMetrics(app.state.observability.registry, app.state.service.served_names[0])
    app.state.keys = keys = KeyRing(config, usage.reloaded)
    if keys.keys:
        app.add_middleware(LimitKeys, limits=KeyLimits(config.max_num_seqs + config.max_waiting, keys, usage))
        open_paths = OPEN_PATHS | ({"/metrics"} if config.metrics == "open" else set())
        open_paths |= playground.PATHS if config.playground else set()
        app.add_middleware(ApiKeyGuard, keys=keys, open_paths=open_paths)
    app.add_middleware(ObserveRequests, observability=app.state.observability)
    # The last one added is the outermost: whoever wrote a reply, it gets its headers.
    app.add_middleware(in_context, origins=config.cors_origin)
    document_bodies(app)
    return app


def observability_of(runtime: Runtime, config: ServerConfig, model: str) -> Observability:
    return Observability(
        model,
        runtime.status,
        strategies=[*registered("transform"), *registered("speculation"), *registered("search")],
        cache_config={"cache_dtype": runtime.info.dtype, "enable_prefix_caching": str(config.prefix_cache)},
        log_requests=config.log_requests,
        log_prompts=config.log_prompts,
        tracing=Tracing.to(config.otlp_endpoint) if config.otlp_endpoint else None,
    )


def document_bodies(app: FastAPI) -> None:
    """Adds the request types to the OpenAPI document: handlers read bodies themselves, so FastAPI sees none."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, definitions = models_json_schema(
                [(kind, "validation") for kind in BODIES], ref_template="#/components/schemas/{model}"
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    document_responses(path, operation["responses"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


ERROR = {
    "description": "An error; `param` names the field at fault, where there is one.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                        "required": ["message", "type", "param", "code"],
                    }
                },
                "required": ["error"],
            }
        }
    },
}
STREAMING = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/responses"})


def document_responses(path: str, responses: dict[str, Any]) -> None:
    """Our error body instead of the framework's 422, and the event streams of generating routes."""
    responses.pop("422", None)
    responses["default"] = ERROR
    if path in STREAMING:
        responses["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
