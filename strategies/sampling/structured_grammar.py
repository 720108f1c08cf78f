"""What a structured output may be asked to be, and its translation to one Lark grammar for llguidance.

Everything here is text to text. What the library would not enforce as JSON Schema means it is refused here; whatever it
doesn't know it refuses itself when the grammar is compiled.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from strategies.errors import InvalidRequest

MAX_SPEC_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 100
"""Levels of objects and lists in the schema's own JSON."""
MAX_CHOICES = 10_000
MAX_EXACT_INTEGER = 2**53
"""Larger constants and bounds would be rounded to a float on their way through the library."""

WHITE_SPACE = r"( |\n {0,32})"
"""At most one of these wherever JSON allows white space: a blank, or a line feed and an indentation."""
ESCAPES = 'nrbtf\\"'
"""No \\uXXXX: written so, a declared property's name would pass for an undeclared one."""
NO_FORCING = '%llguidance {"no_forcing": true}\n'
"""A text that has only one continuation may still be cut into any tokens. (Forcing would also compute all of it at
once, which takes seconds where a pattern repeats something a million times.)"""

UNSUPPORTED_ATTRIBUTE = re.compile(r"\[[^\]\n]*\b(temperature|stop)\s*=")
GBNF_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)", re.DOTALL)
LITERALS = frozenset({"const", "enum", "default", "examples"})
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose value maps names to schemas."""
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
RISKY = frozenset({"pattern", "patternProperties", "format", "multipleOf", "allOf"})
"""Keywords that can make the library intersect regular expressions, which takes it arbitrarily long."""


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that is valid under a JSON Schema (draft 2020-12; `true` and `{}` allow anything)."""

    schema: Mapping[str, Any] | bool


@dataclass(frozen=True, slots=True)
class Regex:
    r"""A text that a regular expression matches as a whole. Classes such as \d and \w are ASCII; no look-around."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A text of a context-free language: Lark's syntax (rule `start`), or llama.cpp's GBNF (rule `root`)."""

    text: str


@dataclass(frozen=True, slots=True)
class Framed:
    """Literal text, JSON by a schema, literal text: a forced tool call. Names of special tokens in the literals stand
    for those tokens."""

    prefix: str
    schema: Mapping[str, Any] | bool
    suffix: str


@dataclass(frozen=True, slots=True)
class FramedSequence:
    """begin, then one of `frames` or, with a separator, one or more of them, then end: forced tool calls."""

    begin: str
    frames: tuple[Framed, ...]
    separator: str | None
    end: str


Spec = JsonObject | JsonSchema | Regex | Choice | Grammar | Framed | FramedSequence


def lark_of(spec: Spec, special_tokens: Mapping[str, int], param: str | None) -> tuple[str, bool]:
    """The grammar, and whether compiling it may take arbitrarily long.

    special_tokens: text -> id. Raises InvalidRequest(param) for what is malformed, too large, or would be ignored.
    """
    try:
        text, risky = _translate(spec, special_tokens)
        size = len(text.encode())
    except InvalidRequest as fault:
        raise InvalidRequest(str(fault), param) from None
    except UnicodeEncodeError:
        raise InvalidRequest("the structure holds a lone surrogate, which is not Unicode text", param) from None
    if size > MAX_SPEC_BYTES:
        raise InvalidRequest(f"the structure is too large: {size} bytes, at most {MAX_SPEC_BYTES} are allowed", param)
    return text, risky


def _translate(spec: Spec, special_tokens: Mapping[str, int]) -> tuple[str, bool]:
    match spec:
        case JsonObject():
            return f"{NO_FORCING}start: {_json_rule({'type': 'object'})}", False
        case JsonSchema(schema):
            return f"{NO_FORCING}start: {_json_rule(schema)}", _check_schema(schema)
        case Framed(prefix, schema, suffix):
            risky = _check_schema(schema)
            frame = [_literal(prefix, special_tokens), _json_rule(schema), _literal(suffix, special_tokens)]
            return f"{NO_FORCING}start: {' '.join(part for part in frame if part)}", risky
        case FramedSequence():
            return _sequence(spec, special_tokens)
        case Regex(pattern):
            if len(pattern) > MAX_SPEC_BYTES:
                raise InvalidRequest(f"the regular expression is longer than {MAX_SPEC_BYTES} characters")
            # The whole text is matched anyway, and the library knows no anchors.
            body = pattern.removeprefix("^")
            if re.search(r"(?<!\\)(\\\\)*\$$", body):
                body = body[:-1]
            return f"{NO_FORCING}start: /{regex_to_lark(body, 'dw')}/" if body else f'{NO_FORCING}start: ""', False
        case Choice(options):
            if not options or len(options) > MAX_CHOICES:
                raise InvalidRequest(f"a choice needs between 1 and {MAX_CHOICES} options; there are {len(options)}")
            # One terminal: a rule would count every option at every step.
            return f"{NO_FORCING}start: OPTION\nOPTION: {' | '.join(map(_quoted, options))}", False
        case Grammar(text):
            return NO_FORCING + _lark(text), True


def _sequence(spec: FramedSequence, special_tokens: Mapping[str, int]) -> tuple[str, bool]:
    risky = [_check_schema(frame.schema) for frame in spec.frames]
    rules = [
        f"frame_{i}: {_literal(frame.prefix, special_tokens)} value_{i} {_literal(frame.suffix, special_tokens)}\n"
        f"value_{i}: {_json_rule(frame.schema)}"
        for i, frame in enumerate(spec.frames)
    ]
    more = "" if spec.separator is None else f"({_literal(spec.separator, special_tokens)} frame)*"
    start = f"start: {_literal(spec.begin, special_tokens)} frame {more} {_literal(spec.end, special_tokens)}"
    frame = "frame: " + " | ".join(f"frame_{i}" for i in range(len(spec.frames)))
    return NO_FORCING + "\n".join([start, frame, *rules]), any(risky)


def _lark(text: str) -> str:
    if len(text) > MAX_SPEC_BYTES:
        raise InvalidRequest(f"the grammar is longer than {MAX_SPEC_BYTES} characters")
    if "::=" in text and not re.search(r"(?m)^\s*start\b[^\n]*:(?!:=)", text):
        try:
            return gbnf_to_lark(GBNF_ESCAPE.sub(_decoded, text))
        except RecursionError:
            raise InvalidRequest("the grammar is nested too deeply") from None
        except Exception as fault:  # the translator raises plain exceptions, and IndexError where a text is cut off
            raise InvalidRequest(f"the GBNF grammar can't be read: {fault}") from None
    if attribute := UNSUPPORTED_ATTRIBUTE.search(text):
        raise InvalidRequest(f"the grammar attribute {attribute[1]!r} is not supported")
    return text


def _decoded(escape: re.Match[str]) -> str:
    """A GBNF escape by number as the character, which the translator would get wrong; the rest as it stands."""
    code = escape[1] or escape[2] or escape[3]
    if code is None or int(code, 16) > sys.maxunicode:
        return escape[0]
    character = chr(int(code, 16))
    return character if character.isalnum() or ord(character) >= 0xA0 else f"\\x{ord(character):02x}"


def _json_rule(schema: Mapping[str, Any] | bool) -> str:
    if schema is False:
        raise InvalidRequest("the schema `false` allows nothing")
    options = {
        "whitespace_pattern": WHITE_SPACE,
        "json_allowed_escapes": ESCAPES,
        "json_allow_general_unicode_escapes": False,
        "lenient": False,
        "coerce_one_of": False,
    }
    body = {} if schema is True else schema
    if "x-guidance" in body:
        raise InvalidRequest("the schema keyword x-guidance is not supported")
    _check_depth(body)
    try:
        return "%json " + json.dumps({"x-guidance": options, **body}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as fault:
        raise InvalidRequest(f"the schema is not JSON: {fault}") from None


def _check_depth(schema: Any) -> None:
    level = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise InvalidRequest(f"the schema is nested more than {MAX_SCHEMA_DEPTH} levels deep")


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        yield from node.values()
    elif isinstance(node, list | tuple):
        yield from node


def _check_schema(schema: Mapping[str, Any] | bool) -> bool:
    """Whether it holds a RISKY keyword. Raises InvalidRequest for what would be accepted but not enforced."""
    risky = False
    for node in _schemas(schema):
        risky = risky or not RISKY.isdisjoint(node)
        least, required = node.get("minProperties", 0), node.get("required", ())
        named = len(set(map(str, required))) if isinstance(required, list | tuple) else 0
        if isinstance(least, int | float) and least > max(1, named):
            raise InvalidRequest(
                f"minProperties {least} is more than the {named} required properties; the others could repeat one name"
            )
        for keyword in (LITERALS - {"default", "examples"}) | BOUNDS:
            if keyword in node:
                _check_numbers(node[keyword], keyword)
    return risky


def _schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every schema object inside a schema, itself included; names of properties and literals are not mistaken for any.
    Unknown keywords count as holding schemas, since a $ref may point there."""
    stack = [(schema, False)]
    while stack:
        node, names = stack.pop()
        if isinstance(node, Mapping):
            if not names:
                yield node
            for key, value in node.items():
                if names or key not in LITERALS:
                    stack.append((value, not names and key in MAPS))
        elif isinstance(node, list | tuple):
            stack += [(value, False) for value in node]


def _check_numbers(value: Any, keyword: str) -> None:
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, int) and abs(node) > MAX_EXACT_INTEGER:
            raise InvalidRequest(f"an integer of {keyword} is beyond ±2**53 and can't be kept exactly")
        stack += _children(node)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _literal(text: str, special_tokens: Mapping[str, int]) -> str:
    """Lark terms for a literal text, with its special tokens by id."""
    names = sorted((name for name in special_tokens if name), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    return " ".join(f"<[{special_tokens[p]}]>" if p in special_tokens else _quoted(p) for p in pieces if p)
