"""Which field a refusal of a strategy's parameters names, where a parameter may be of several types."""

from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from decoding_server.protocol.decoding import parse_search, parse_transform
from strategies.registry import registered


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ({"type": "scattered-forest", "tests": [{"call": "f()"}]}, ".tests[0].expected", "field required"),
        ({"type": "scattered-forest", "tests": [{"stdin": 1, "stdout": ""}]}, ".tests[0].stdin", "valid string"),
        ({"type": "scattered-forest", "tests": [{"x": 1}]}, ".tests[0]", "an object with 'assert', 'call' and"),
        ({"type": "scattered-forest", "themes": ["a", ""]}, ".themes[1]", "at least 1 character"),
        ({"type": "scattered-forest", "themes": ["a"] * 65}, ".themes", "at most 64 items"),
        ({"type": "scattered-forest", "themes": "x"}, ".themes", "'instruction', 'role' or 'none'"),
        ({"type": "scattered-forest", "tree": False, "c": 1.0}, ".c", "no meaning without a tree"),
        ({"type": "bregman", "alpha": "x", "k": 3}, ".alpha", "valid number"),
        ({"type": "grammar", "language": "x"}, ".language", "'python'"),
        ({"type": "grammar", "allowed": -1}, ".allowed", "greater than or equal to 1"),
        ({"type": "grammar", "allowed": {"code": "x"}}, ".allowed.code", "valid integer"),
        ({"type": "grammar", "allowed": {"x": 1}}, ".allowed.x", "not permitted"),
    ],
)
def test_names_the_field_as_it_was_given(value: dict[str, Any], field: str, words: str) -> None:
    transform = registered("transform").get(value["type"])
    with pytest.raises(PydanticCustomError) as caught:
        parse_search(value) if transform is None else parse_transform(value, transform.slot)
    context = caught.value.context or {}
    assert context["field"] == field
    assert words in context["message"]
