"""The application: routes, guards and error handlers around one runtime."""

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from decoding_server import __version__
from decoding_server.api import chat, completions, health, models, tokens
from decoding_server.auth import ApiKeyGuard
from decoding_server.config import ServerConfig
from decoding_server.errors import answer_exception
from decoding_server.protocol.chat import ChatCompletionRequest
from decoding_server.protocol.completions import CompletionRequest
from decoding_server.protocol.tokens import DetokenizeRequest, TokenizeRequest
from decoding_server.request_context import RequestContext
from decoding_server.service import Service
from strategies.errors import DecodingError
from strategies.runtime import Runtime

BODIES = (CompletionRequest, ChatCompletionRequest, TokenizeRequest, DetokenizeRequest)


def create_app(runtime: Runtime, config: ServerConfig) -> FastAPI:
    """An ASGI application that serves `runtime`. The caller owns the runtime and closes it."""
    app = FastAPI(
        title="decoding-server",
        version=__version__,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would be an answer without our error body
    )
    app.state.service = Service(runtime, config)
    for family in (completions, chat, models, tokens, health):
        app.include_router(family.router)
    for error in (DecodingError, HTTPException, RequestValidationError):
        app.add_exception_handler(error, answer_exception)
    if config.api_key:
        app.add_middleware(ApiKeyGuard, keys=[key.get_secret_value() for key in config.api_key])
    app.add_middleware(RequestContext)  # the last one added is the outermost: every reply gets its headers
    document_bodies(app)
    return app


def document_bodies(app: FastAPI) -> None:
    """Adds the request types to the OpenAPI document: handlers read bodies themselves, so FastAPI sees none."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, definitions = models_json_schema(
                [(kind, "validation") for kind in BODIES], ref_template="#/components/schemas/{model}"
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
