"""Reads a JSON body: bounded in size and depth, finite numbers, proper Unicode. Whatever is wrong is a 400 or a 413."""

import json
import math
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from decoding_server.errors import BodyTooLarge, InvalidField

Body = TypeVar("Body", bound=BaseModel)

MAX_DEPTH = 64
MAX_DIGITS = 32


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object. Raises InvalidField, BodyTooLarge, ClientDisconnect."""
    too_large = BodyTooLarge(f"The body is larger than {max_bytes} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return parse_json(bytes(body))


def parse_json(body: bytes) -> dict[str, Any]:
    """Raises InvalidField for anything but a JSON object that can be handled without surprises further on."""
    try:
        value = json.loads(body.decode(), parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded)
    except UnicodeDecodeError as error:
        raise InvalidField("The body is not UTF-8.", code="invalid_json") from error
    except RecursionError as error:
        raise InvalidField("The body is nested too deeply.", code="invalid_json") from error
    except ValueError as error:
        raise InvalidField(f"The body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise InvalidField("The body must be a JSON object.", code="invalid_json")
    _check_depth(value)
    if b"\\u" in body:
        _check_unicode(value)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:MAX_DIGITS]} is out of range")
    return number


def _bounded(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"the number {digits[:MAX_DIGITS]}... is out of range")
    return int(digits)


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise InvalidField(f"The body is nested more than {MAX_DEPTH} levels deep.", code="invalid_json")


def _check_unicode(value: dict[str, Any]) -> None:
    """JSON can spell half a surrogate pair, which is no character and can't be encoded by anything downstream."""
    for name, field in value.items():
        try:
            json.dumps([name, field], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            param = name.encode("ascii", "backslashreplace").decode()
            raise InvalidField(f"'{param}' contains half a surrogate pair (\\ud800 to \\udfff).", param) from error


def validate(kind: type[Body], body: dict[str, Any]) -> Body:
    """The typed request, or InvalidField for its first fault, named as the client would (messages[0].content)."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        culprit = fault.get("ctx", {}).get("field")
        param = field_path((*fault["loc"], culprit) if culprit else fault["loc"])
        message = fault["msg"][:1].lower() + fault["msg"][1:]
        raise InvalidField(f"'{param}': {message}", param, _code(fault["type"])) from error


def field_path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "content") -> "messages[0].content". A part may be the rest of a path, such as "[1].type"."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += part if not path or part[:1] in (".", "[") else f".{part}"
    return path


def _code(kind: str) -> str:
    if kind == "missing":
        return "missing_required_parameter"
    if kind == "extra_forbidden":
        return "unsupported_parameter"
    return "invalid_type" if kind.endswith("_type") else "invalid_value"
