"""What happens to a field that is not honoured: one table, so that nothing is dropped in silence.

- A field of OpenAI's API that this server does not honour is a 400 that names it, unless its value asks for nothing
  (null, or one of the neutral values below).
- A label that never changes an answer is accepted.
- A field that nobody knows is a warning in the reply, or a 400 with `--strict`.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from decoding_server.errors import InvalidField
from decoding_server.protocol.chat import ChatCompletionRequest, ChatMessage
from decoding_server.protocol.completions import CompletionRequest
from decoding_server.protocol.embeddings import NOT_HONOURED as NOT_IN_EMBEDDINGS
from decoding_server.protocol.embeddings import EmbeddingRequest
from decoding_server.protocol.responses import NOT_HONOURED as NOT_IN_RESPONSES
from decoding_server.protocol.responses import ResponsesRequest

LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
"""Accepted on the generating endpoints, without effect: they label a request for OpenAI's own bookkeeping."""

FIELDS_OF_PEERS: Mapping[str, tuple[Any, ...]] = {
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "regex": (),
    "ebnf": (),
    "json_schema": (),
    "grammar": ("",),
    "stop_regex": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1.0, 1),
}
"""Names that vLLM (of old), SGLang and llama.cpp have for what `structured_outputs` does, and for beam search; to
ignore them would return text that is not what was asked for."""

NEUTRAL: Mapping[type[BaseModel], Mapping[str, tuple[Any, ...]]] = {
    CompletionRequest: {
        "store": (False,),
        "service_tier": ("auto", "default"),
        **FIELDS_OF_PEERS,
    },
    ChatCompletionRequest: {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "prompt_cache_options": (),
        "reasoning_effort": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "verbosity": ("medium",),
        "web_search_options": (),
        # Fields of the completions endpoint; a client that sends them here expects them to work.
        "echo": (False,),
        "best_of": (1,),
        "prompt": (),
        "suffix": ("",),
        **FIELDS_OF_PEERS,
    },
    ResponsesRequest: {**NOT_IN_RESPONSES, **FIELDS_OF_PEERS},
    EmbeddingRequest: NOT_IN_EMBEDDINGS,
}
"""OpenAI's fields that are not honoured, and the values with which they ask for nothing."""

MESSAGE_FIELDS = frozenset(ChatMessage.model_fields) | {
    "function_call",
    "audio",
    "refusal",
    "annotations",
}


MAX_WARNINGS, MAX_NAME = 16, 100
"""A reply repeats no more than this of what a client made up."""


def check_fields(kind: type[BaseModel], body: Mapping[str, Any], *, strict: bool) -> list[str]:
    """Warnings about unknown fields. Raises InvalidField for known ones that can't be honoured; if strict, for all."""
    neutral = NEUTRAL.get(kind, {})
    unknown = []
    for name, value in body.items():
        if name in kind.model_fields or name in LABELS:
            continue
        if name not in neutral:
            unknown.append(name)
        elif value is not None and not _is_neutral(value, neutral[name]):
            raise InvalidField(f"'{name}' is not supported by this server.", name, "unsupported_parameter")
    if "messages" in kind.model_fields:
        unknown += _unknown_message_fields(body.get("messages"))
    if unknown and strict:
        raise InvalidField(f"'{unknown[0]}' is not a field this server knows.", unknown[0], "unknown_parameter")
    warnings = [f"unknown field '{name[:MAX_NAME]}' was ignored" for name in unknown[:MAX_WARNINGS]]
    if len(unknown) > MAX_WARNINGS:
        warnings.append(f"{len(unknown) - MAX_WARNINGS} more unknown fields were ignored")
    return warnings


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Equal, and of the same type: 0 is not False."""
    return any(type(value) is type(candidate) and value == candidate for candidate in neutral)


def _unknown_message_fields(messages: Any) -> list[str]:
    if not isinstance(messages, list):
        return []
    return [
        f"messages[{index}].{name}"
        for index, message in enumerate(messages)
        if isinstance(message, dict)
        for name in message
        if name not in MESSAGE_FIELDS
    ]
