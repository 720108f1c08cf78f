"""What every endpoint with a body does first: read it, refuse what can't be honoured, and look up the model."""

import asyncio
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from starlette.requests import Request

from decoding_server.decoding import HEADER, expand, split_model
from decoding_server.protocol.unsupported import check_fields
from decoding_server.request_body import read_json, validate
from decoding_server.service import Service
from strategies.text import Tokenizer

Body = TypeVar("Body", bound=BaseModel)

LONG_TEXT = 20_000
"""Characters from which text is tokenized in a thread, so that other requests' streams go on meanwhile."""


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def read_request(request: Request, kind: type[Body]) -> tuple[Body, list[str]]:
    """The validated body and warnings about fields that were ignored. Raises InvalidField, BodyTooLarge."""
    service = service_of(request)
    body = await read_json(request, service.config.max_body)
    warnings = check_fields(kind, body, strict=service.config.strict)
    if "decoding" in kind.model_fields:
        body["decoding"] = requested_decoding(service, body, request.headers.get(HEADER))
    return validate(kind, body), warnings


def requested_decoding(service: Service, body: dict[str, Any], header: str | None) -> Any:
    """`decoding` from the body, the model name, the header or the server's default, whichever comes first."""
    presets = service.config.presets
    if body.get("decoding") is not None:
        return expand(body["decoding"], presets)
    model = body.get("model")
    if isinstance(model, str):
        preset = split_model(model, service.served_names)[1]
        if preset is not None:
            return expand(preset, presets, "model")
    if header is not None:
        return expand(header, presets, HEADER)
    return expand(service.config.decoding, presets)


def documented(kind: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that the handler reads by itself (`app.document_bodies` adds the definition)."""
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


async def tokenize(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    if len(text) < LONG_TEXT:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
