"""What becomes of a request with certain fields, as validation and the table of refused fields decide it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from decoding_server.decoding import expand
from decoding_server.features.routes import bodies, routes
from decoding_server.protocol.unsupported import LABELS, check_fields
from decoding_server.request_body import validate
from strategies.errors import InvalidRequest

Mark = Literal["●", "◐", "○", "✗", "–"]
LEGEND = (
    "● works · ◐ partly, or with a different meaning · ○ accepted and ignored · ✗ refused with an error · – not there"
)

LEAST: Mapping[str, Mapping[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
}
"""The smallest body of an endpoint, which fields are added to."""


def served(names: list[str]) -> Mark:
    """Of routes (`POST /v1/completions`): all of them, some, or none."""
    there = {route.name for route in routes()} | {"GET /docs", "GET /openapi.json"}
    count = sum(name in there for name in names)
    return "●" if count == len(names) else "◐" if count else "–"


def honoured(path: str, fields: Mapping[str, Any]) -> Mark:
    """Of fields with these values: all together, some of them, or what happens to them instead."""
    kind = bodies().get(path)
    if kind is None:
        return "–"
    together = _outcome(kind, {**LEAST[path], **fields})
    if together == "●" or len(fields) == 1:
        return together
    alone = [_outcome(kind, {**LEAST[path], name: value}) for name, value in fields.items()]
    return "◐" if "●" in alone else together


def _outcome(kind: type[BaseModel], body: dict[str, Any]) -> Mark:
    try:
        warnings = check_fields(kind, body, strict=False)
        validate(kind, body | {"decoding": expand(body.get("decoding"), {})})
    except InvalidRequest:
        return "✗"
    if warnings:
        return "–"
    return "○" if LABELS & (set(body) - set(kind.model_fields)) else "●"


def unknown_field(path: str, expected: str) -> Mark:
    """Of an unknown field: whether there is a "warning", or in strict mode a "refusal" that names it."""
    kind, body = bodies()[path], {**LEAST[path], "no_such_field": 1}
    if expected == "warning":
        return "●" if any("no_such_field" in text for text in check_fields(kind, body, strict=False)) else "–"
    try:
        check_fields(kind, body, strict=True)
    except InvalidRequest as error:
        return "●" if error.param == "no_such_field" else "◐"
    return "–"
