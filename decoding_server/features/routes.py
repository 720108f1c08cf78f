"""The routes of the API and the types of their bodies, read off the modules of `decoding_server.api`."""

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import NamedTuple

from fastapi.routing import APIRoute
from pydantic import BaseModel

from decoding_server import api

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
"""These come first in the documentation."""


class Route(NamedTuple):
    """One method of one path. path: with braces around parameters. body: None for a route that reads none."""

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


@cache
def routes() -> tuple[Route, ...]:
    """All of them: those that run the model first, then by path."""
    found = [
        _route(module, route)
        for info in pkgutil.iter_modules(api.__path__, api.__name__ + ".")
        for module in [importlib.import_module(info.name)]
        for route in getattr(getattr(module, "router", None), "routes", ())
        if isinstance(route, APIRoute)
    ]
    order = {path: place for place, path in enumerate(GENERATING)}
    return tuple(sorted(found, key=lambda route: (order.get(route.path, len(order)), route.path, route.method)))


def _route(module: ModuleType, route: APIRoute) -> Route:
    (method,) = route.methods
    return Route(
        method, route.path.replace(":path}", "}"), _first_sentence(route.endpoint.__doc__ or ""), _body(module, route)
    )


def _body(module: ModuleType, route: APIRoute) -> type[BaseModel] | None:
    """The type that `documented` names in the route's OpenAPI entry, which the module must have imported."""
    content = (route.openapi_extra or {}).get("requestBody", {}).get("content", {}).get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    if not name:
        return None
    kind = getattr(module, name)
    assert isinstance(kind, type)
    assert issubclass(kind, BaseModel)
    return kind


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def bodies() -> dict[str, type[BaseModel]]:
    """The type of the body by path."""
    return {route.path: route.body for route in routes() if route.body is not None}
