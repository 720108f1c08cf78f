"""Whatever the body of whatever POST: an answer in time, a 200 or a 4xx in the one envelope, and a server that is left
as it was.

Values come from the types of the request models themselves, so a new field is fuzzed from the day it is there.
"""

import json
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fuzzing import NEEDED, ODD_TEXT, TIMEOUT, check, kinds, path_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peer_server import PeerServer
from pydantic import BaseModel

from strategies.registry import registered
from strategies.sampling.transform import Transform

ODD_NUMBERS = [0, -1, 1, 2**31 - 1, 2**31, 2**53, 2**63, -(2**63) - 1, 2**64, 10**25, 0.5, -0.0, 1e308, -1e308, 5e-324]
TEXT = st.sampled_from(ODD_TEXT) | st.text(max_size=6)
NUMBER: st.SearchStrategy[Any] = st.sampled_from(ODD_NUMBERS) | st.integers(-3, 40) | st.floats(-2, 3)
SCALAR = st.none() | st.booleans() | NUMBER | TEXT
ANYTHING = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)

SMALL: dict[str, Any] = {"max_tokens": st.integers(1, 4), "n": st.integers(1, 3), "best_of": st.integers(1, 4)}
"""Fields that decide how much work a proper request is."""


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a type, or nearly: what a careless client would send for it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values(arguments[0])
    if origin in (Union, UnionType):
        return st.one_of(*map(values, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(values(arguments[0]) if arguments else ANYTHING, max_size=3)
    if origin is dict:
        return st.dictionaries(st.integers(-1, 300).map(str) | TEXT, values(arguments[1]), max_size=3)
    if annotation is Transform:
        return st.one_of(*(transforms(name, kind) for name, kind in registered("transform").items()))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return objects(annotation)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        NoneType: st.none(),
        bool: st.booleans(),
        int: st.integers(0, 8) | NUMBER,
        float: st.floats(0, 1) | NUMBER,
        str: TEXT,
        dict: st.dictionaries(TEXT, ANYTHING, max_size=3),
    }
    return simple.get(annotation, ANYTHING)


@st.composite
def transforms(draw: st.DrawFn, name: str, kind: type[Transform]) -> dict[str, Any]:
    """A stage of `decoding`, with parameters that are nearly right."""
    return {"type": name, **draw(objects(kind))} if kind.model_fields else {"type": name}


@st.composite
def objects(draw: st.DrawFn, kind: type[BaseModel], most: int = 4) -> dict[str, Any]:
    """An object with some of a model's fields: of the right type mostly, of any type sometimes, some of none."""
    names = [field.alias or name for name, field in kind.model_fields.items()]
    annotations = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    body: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(names), max_size=most, unique=True)):
        body[name] = draw(st.one_of(SMALL.get(name, values(annotations[name])), values(annotations[name]), ANYTHING))
    if draw(st.integers(0, 9)) == 0:
        body[draw(TEXT)] = draw(ANYTHING)
    return body


@kinds
def test_no_object_breaks_the_server(fuzzed: PeerServer, kind: type[BaseModel]) -> None:
    path, statuses = path_of(kind, fuzzed), set()

    @settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(objects(kind))
    def run(drawn: dict[str, Any]) -> None:
        body = NEEDED.get(kind.__name__, {}) | drawn
        if len(str(body.get("max_tokens", ""))) > 2 and isinstance(body["max_tokens"], int):
            body["max_tokens"] = -body["max_tokens"]
        response = fuzzed.http.post(path, content=json.dumps(body).encode(), timeout=TIMEOUT)
        statuses.add(check(response, body))

    run()
    assert {200, 400} <= statuses


@kinds
def test_every_field_of_every_wrong_type(fuzzed: PeerServer, kind: type[BaseModel]) -> None:
    """One field at a time, so that nothing hides behind an earlier fault."""
    path = path_of(kind, fuzzed)
    wrong = [
        True,
        -1,
        2**64,
        1.5,
        "\x00",
        "\ud800",
        [],
        [None],
        [[[]]],
        {},
        {"a": {"b": []}},
        ["\ud800"],
        {"\ud800": 1},
    ]
    for name in kind.model_fields:
        for value in wrong:
            body = NEEDED.get(kind.__name__, {}) | {name: value}
            response = fuzzed.http.post(path, content=json.dumps(body).encode(), timeout=TIMEOUT)
            if check(response, body) == 400:
                assert response.json()["error"]["param"] is not None, (name, value, response.text)
