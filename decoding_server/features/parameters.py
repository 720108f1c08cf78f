"""Tables of the strategies' parameters, from their JSON schemas, for the pages of the strategies."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel

from decoding_server.features.comparison import markdown_table
from decoding_server.features.fields import Schema, declared, range_of, type_of
from decoding_server.features.strategy_notes import documented
from strategies.search.coding_search import CodingSearch
from strategies.search.search import Search
from strategies.search.step_search import StepSearch
from strategies.search.valued import ValuedSearch
from strategies.speculative.speculation import Speculation

SHARED: Mapping[str, type[BaseModel]] = {
    "searches": Search,
    "values": ValuedSearch,
    "steps": StepSearch,
    "programs": CodingSearch,
    "speculations": Speculation,
}
"""Bases whose parameters are shown once, in a table of their own."""


def tables() -> dict[str, Callable[[], str]]:
    """What makes the block `parameters-NAME` of every built-in strategy and of the shared bases."""
    kinds = {**{name: strategy.kind for name, strategy in documented().items()}, **SHARED}
    return {f"parameters-{name}": partial(table, kind) for name, kind in kinds.items()}


def table(kind: type[BaseModel]) -> str:
    """The fields that a class and its bases declare, but for those that another table is about."""
    schema = kind.model_json_schema()
    others = set(SHARED.values()) - {kind}
    rows: list[list[str]] = []
    for owner, names in declared(kind).items():
        for name in names if owner not in others else ():
            rows += _rows(name, schema["properties"][name], schema, required=name in schema.get("required", ()))
    if not rows:
        return "No parameters of its own."
    return markdown_table(["parameter", "type", "default", "range", "meaning"], rows)


def _rows(name: str, field: Schema, schema: Schema, *, required: bool) -> Iterator[list[str]]:
    """The row of a field; of an object's fields instead, one each, where the object is described by the schema."""
    inner = _definition(field, schema)
    if inner is not None:
        for part, description in inner["properties"].items():
            default = (field.get("default") or {}).get(part, description.get("default"))
            yield _row(f"{name}.{part}", {**description, "default": default}, required=False)
    else:
        yield _row(name, field, required=required)


def _definition(field: Schema, schema: Schema) -> Schema | None:
    """The object type that a field refers to, or None if it is no object."""
    reference = next((one["$ref"] for one in (field, *field.get("allOf", ())) if "$ref" in one), "")
    found: Any = schema.get("$defs", {}).get(reference.rpartition("/")[2])
    return found if found is not None and "properties" in found else None


def _row(name: str, field: Schema, *, required: bool) -> list[str]:
    default = "required" if required else shown(field.get("default"))
    return [f"`{name}`", _plain(type_of(field)), default, range_of(field), field.get("description", "")]


def _plain(text: str) -> str:
    """A type without links: the pages of the strategies have no sections for types."""
    if text.startswith("[") and "](#" in text:
        return "object"
    return "list of object" if text.startswith("list of [") else text


def shown(value: Any) -> str:
    """A default as it would be written in a request."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:.6g}`"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(part).strip('`')}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(part) for part in value) or "none"
    # Blanks and line ends would not be seen.
    return f"`{value}`" if str(value).split() == [str(value)] else f"`{value!r}`"
