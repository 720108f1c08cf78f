"""Messages as chat templates expect them: a call's arguments as an object, where the wire has JSON in a string."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from decoding_server.errors import InvalidField


def messages_for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the messages with every tool call's arguments decoded. The calls have the fields of AssistantToolCall.

    An empty string is an empty object, which is what some clients send for a tool without parameters. Raises
    InvalidField, naming messages[i].tool_calls[j].function.arguments, unless the string holds a JSON object.
    """
    return [
        {**message, "tool_calls": [_decoded(call, i, j) for j, call in enumerate(message["tool_calls"])]}
        if message.get("tool_calls")
        else {key: value for key, value in message.items() if key != "tool_calls"}
        for i, message in enumerate(messages)
    ]


def _decoded(call: Mapping[str, Any], message: int, index: int) -> dict[str, Any]:
    function = call["function"]
    param = f"messages[{message}].tool_calls[{index}].function.arguments"
    arguments = _object(function["arguments"], param) if function["arguments"].strip() else {}
    return {**call, "function": {**function, "arguments": arguments}}


def _object(text: str, param: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
        # JSON can spell half a surrogate pair, which is no character: the prompt could not be encoded.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidField(f"'{param}' contains half a surrogate pair (\\ud800 to \\udfff).", param) from error
    except RecursionError as error:
        raise InvalidField(f"'{param}' is nested too deeply.", param) from error
    except ValueError as error:
        raise InvalidField(f"'{param}' is not valid JSON: {error}", param) from error
    if not isinstance(value, dict):
        raise InvalidField(f"'{param}' must hold a JSON object.", param)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
