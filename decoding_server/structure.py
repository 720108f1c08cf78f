"""What a request wants its text to be, compiled. That may take a while, so it runs in a thread."""

import asyncio
import json
from typing import Any

from decoding_server.errors import InvalidField
from decoding_server.protocol.generation import GenerationRequest
from decoding_server.protocol.structure import StructuredOutputs
from decoding_server.service import Service
from decoding_server.tools.choice import ForcedCalls, ToolPlan
from strategies.sampling.structured import Structure, compile_structure
from strategies.sampling.structured_grammar import (
    Choice,
    Framed,
    FramedSequence,
    Grammar,
    JsonObject,
    JsonSchema,
    Regex,
    Spec,
)


async def structure_of(service: Service, request: GenerationRequest, tools: ToolPlan | None = None) -> Structure | None:
    """The structure that the request's format or its forced tool calls ask for, or None. Raises InvalidRequest."""
    found = requested(request)
    if tools is not None and tools.forced is not None:
        if found is not None:
            raise InvalidField("'tool_choice' forces a call, which leaves no room for a format.", found[1])
        found = forced_structure(tools.forced), "tools"
    if found is None:
        return None
    if request.ignore_eos:
        raise InvalidField("'ignore_eos' can't be combined with structured output, which ends by itself.", "ignore_eos")
    spec, param = found
    return await asyncio.to_thread(compile_structure, spec, service.runtime.tokenizer, param)


def requested(request: GenerationRequest) -> tuple[Spec, str] | None:
    """The specification and the field that holds it."""
    form, outputs = request.response_format, request.structured_outputs
    if form is not None and form.type == "json_object":
        return JsonObject(), "response_format"
    if form is not None and form.json_schema is not None:
        return JsonSchema(form.json_schema.json_schema), "response_format.json_schema.schema"
    return None if outputs is None else _structured_outputs(outputs)


def _structured_outputs(outputs: StructuredOutputs) -> tuple[Spec, str]:
    if outputs.json_schema is not None:
        return JsonSchema(_schema(outputs.json_schema)), "structured_outputs.json"
    if outputs.regex is not None:
        return Regex(outputs.regex), "structured_outputs.regex"
    if outputs.choice is not None:
        return Choice(tuple(outputs.choice)), "structured_outputs.choice"
    if outputs.grammar is not None:
        return Grammar(outputs.grammar), "structured_outputs.grammar"
    return JsonObject(), "structured_outputs.json_object"


def _schema(schema: dict[str, Any] | str) -> dict[str, Any] | bool:
    """A schema, also as JSON text."""
    if isinstance(schema, dict):
        return schema
    try:
        value = json.loads(schema)
    except ValueError as error:
        raise InvalidField(f"'structured_outputs.json' is not JSON: {error}", "structured_outputs.json") from error
    if not isinstance(value, (dict, bool)):
        raise InvalidField("'structured_outputs.json' must be a JSON schema.", "structured_outputs.json")
    return value


def forced_structure(forced: ForcedCalls) -> FramedSequence:
    """The language of forced tool calls."""
    frames = tuple(Framed(call.prefix, call.schema, call.suffix) for call in forced.calls)
    return FramedSequence(forced.begin, frames, forced.separator, forced.end)
