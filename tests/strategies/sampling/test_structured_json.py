"""Whatever a senseless model writes under a schema is valid under it; the oracle is the jsonschema package."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]
from structured_driver import BYTES, Writer, after, allowed, row_of, write

from models.loading import resolve
from models.tokenizer import HuggingFaceTokenizer, load_tokenizer
from strategies.errors import InvalidRequest
from strategies.sampling.structured import compile_structure
from strategies.sampling.structured_grammar import Framed, JsonObject, JsonSchema

INTEGER, STRING = {"type": "integer"}, {"type": "string"}


def closed(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "anything": {},
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": INTEGER,
    "number": {"type": "number"},
    "string": STRING,
    "types": {"type": ["integer", "null", "array"]},
    "enum": {"enum": [1, "a", None, {"b": [2, "ü"]}, 1.5, "ab"]},
    "const": {"const": {"a": [1, {"b": '\U0001f600 " \\ / \u2028'}]}},
    "object": {"type": "object"},
    "empty object": closed({}),
    "closed": closed({"a": INTEGER, "b": STRING}, "a"),
    "open": {"type": "object", "properties": {"a": INTEGER, "b": {"type": "null"}}, "required": ["a"]},
    "undeclared but required": {"type": "object", "properties": {"a": INTEGER}, "required": ["z", "a"]},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "map of named": {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": STRING},
    "at least one": {"type": "object", "additionalProperties": INTEGER, "minProperties": 1},
    "at most two": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 2},
    "patternProperties": {"type": "object", "patternProperties": {"^x": INTEGER}, "additionalProperties": False},
    "pattern and name": {
        "type": "object",
        "properties": {"xa": {"type": ["integer", "string"]}},
        "patternProperties": {"^x": INTEGER},
        "required": ["xa"],
    },
    "unicode names": closed({"é": INTEGER, 'q"\\': INTEGER, "\U0001f600": INTEGER, "\n": INTEGER}, "é", 'q"\\', "\n"),
    "nested": closed({"a": closed({"b": closed({"c": {"type": "array", "items": INTEGER}}, "c")}, "b")}, "a"),
    "array": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2, "maxItems": 4},
    "array of arrays": {"type": "array", "items": {"type": "array", "items": INTEGER, "maxItems": 2}},
    "exactly none": {"type": "array", "items": INTEGER, "maxItems": 0},
    "tuple": {"type": "array", "prefixItems": [INTEGER, STRING], "items": False, "minItems": 1},
    "tuple and rest": {"type": "array", "prefixItems": [INTEGER], "items": {"type": "null"}},
    "anyOf": {"anyOf": [INTEGER, closed({"a": STRING}, "a"), {"const": "x"}]},
    "oneOf": {"oneOf": [closed({"kind": {"const": "a"}, "x": INTEGER}, "kind", "x"), {"type": "null"}]},
    "allOf": {"allOf": [{"properties": {"a": INTEGER}, "required": ["a"]}, {"type": "object", "required": ["b"]}]},
    "allOf bounds": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12}]},
    "$defs": {"$defs": {"t": {"type": "boolean"}}, "type": "array", "items": {"$ref": "#/$defs/t"}, "minItems": 1},
    "$ref and more": {"$defs": {"t": INTEGER}, "$ref": "#/$defs/t", "minimum": 5},
    "recursive": {
        "$defs": {"n": closed({"v": INTEGER, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}, "next")},
        "$ref": "#/$defs/n",
    },
    "lengths": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[a-c]{2,4}-\\d+$"},
    "pattern anywhere": {"type": "string", "pattern": "[a-f]"},
    "pattern and length": {"type": "string", "pattern": "^a*b$", "minLength": 3, "maxLength": 6},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "email": {"type": "string", "format": "email"},
    "bounds": {"type": "integer", "minimum": -7, "maximum": 123},
    "exclusive": {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12},
    "fractions": {"type": "number", "minimum": -0.25, "exclusiveMaximum": 2.5},
    "multipleOf": {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 1000},
}
SAMPLES = 3


def check(schema: dict[str, Any], output: bytes) -> None:
    text = output.decode("utf-8")  # strictly: half a character would be an error
    value = json.loads(text)
    if schema.get("format") == "date" and value.startswith("0000"):
        value = "2000" + value[4:]  # RFC 3339 has a year 0, Python's calendar hasn't
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(value)


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("name", SCHEMAS)
def test_outputs_are_valid(name: str, hostile: bool) -> None:
    row = row_of(JsonSchema(SCHEMAS[name]))
    seeds = range(SAMPLES)
    outputs = [write(row.fork(), Writer(BYTES, seed, hostile=hostile)) for seed in seeds]
    for output in outputs:
        check(SCHEMAS[name], output)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads are many times slower than one at this size where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def default() -> HuggingFaceTokenizer:
    return load_tokenizer(resolve(None).folder)


@pytest.mark.parametrize("name", ["anything", "closed", "unicode names", "recursive", "pattern", "uuid", "fractions"])
def test_outputs_of_a_real_vocabulary_are_valid(default: HuggingFaceTokenizer, name: str) -> None:
    row = row_of(JsonSchema(SCHEMAS[name]), default)
    for seed in range(2):
        check(SCHEMAS[name], write(row.fork(), Writer(default, seed, hostile=seed == 1)))


def test_all_end_of_sequence_ids_end_a_structure(default: HuggingFaceTokenizer) -> None:
    assert default.eos_token_ids == {0, 2}
    row = row_of(JsonSchema({"const": 1}), default)
    row.append(default.encode("1")[0])
    logits_width = default.vocab_size + 77  # padded embeddings
    assert allowed(row, logits_width) == {0, 2}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": INTEGER}, "contains"),
        ({"type": "array", "prefixItems": [INTEGER], "unevaluatedItems": False}, "unevaluatedItems"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
        ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"if": {"const": 1}, "then": {"const": 1}}, "if"),
        ({"not": {"const": 1}}, "not"),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "oneOf"),
        ({"$defs": {"t": {"$dynamicAnchor": "q"}}, "$dynamicRef": "#q"}, "dynamicRef"),
        ({"type": "string", "format": "zorp"}, "zorp"),
        ({"$ref": "http://example.org/schema.json"}, "example.org"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "strin"}, "strin"),
        ({"type": "string", "maxLength": "3"}, "maxLength"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"properties": {"a": {"const": 2**53 + 1}}}, "2\\*\\*53"),
        ({"minimum": -(2**60)}, "2\\*\\*53"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": {1, 2}}, "not JSON"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"const": "\ud800"}, "surrogate"),
        ({"$ref": "#"}, "no text"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "nsatisfiable|greater"),
        (False, "nothing"),
    ],
)
def test_what_can_not_be_enforced_is_refused_with_its_reason(schema: dict[str, Any] | bool, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as fault:
        compile_structure(JsonSchema(schema), BYTES, "response_format")
    assert fault.value.param == "response_format"
    assert "\n" not in str(fault.value)


def test_names_and_literals_are_not_mistaken_for_keywords() -> None:
    schema = {
        "type": "object",
        "properties": {"minProperties": INTEGER, "const": INTEGER, "x-guidance": INTEGER},
        "const": {"minProperties": 5, "const": 3},
        "required": ["minProperties", "const"],
    }
    output = write(row_of(JsonSchema(schema)), Writer(BYTES, 0))
    assert json.loads(output) == schema["const"]


def test_white_space_is_bounded() -> None:
    spec = JsonSchema({"type": "array", "items": INTEGER})
    for text in ("[]", "[1,2]", "[1, 2]", "[\n  1,\n  2\n]", "[ 1 , 2 ]", "[\n" + " " * 32 + "1]"):
        assert 256 in after(spec, text.encode()), text
    for text, forbidden in (("[ ", " \n\t"), ("[\n", "\n\t"), ("[\n" + " " * 32, " \n"), ("", " \n"), ("[]", " \n")):
        assert not after(spec, text.encode()) & set(forbidden.encode()), repr(text)
    assert not after(spec, b"[") & set(b"\t\r")


def test_an_escaped_name_can_not_pass_for_another_property() -> None:
    """`{"a":1,"\\u0061":"x"}` has one property once parsed, and it is no integer."""
    spec = JsonSchema({"type": "object", "properties": {"a": INTEGER}})
    assert ord("u") not in after(spec, b'{"a":1,"\\')
    assert ord('"') not in after(spec, b'{"a":1,"a')


def test_json_object_is_an_object() -> None:
    assert after(JsonObject(), b"") == {ord("{")}
    assert isinstance(json.loads(write(row_of(JsonObject()), Writer(BYTES, 3))), dict)


def test_framed_json() -> None:
    spec = Framed('<|user|>call("', closed({"a": INTEGER}, "a"), "\n)<|system|>\\")
    row = row_of(spec)
    user, system = BYTES.special_token_ids["<|user|>"], BYTES.special_token_ids["<|system|>"]
    for token in [user, *b'call("{"a":1}\n)', system, *b"\\", 256]:
        assert token in allowed(row)
        row.append(token)
    assert after(spec, b"") == {user}
    bare = Framed("", {"const": 1}, "")
    assert after(bare, b"1") == {256}
