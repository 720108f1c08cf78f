"""Reference of request bodies from their types' JSON schemas; docs/fields.toml adds what a schema can't say."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from decoding_server.features.comparison import markdown_table
from decoding_server.features.routes import routes

Schema = Mapping[str, Any]
ANY = "any"
"""The section of docs/fields.toml for fields that mean the same in every type."""


@dataclass(frozen=True, slots=True)
class Note:
    """What the documentation adds. default: what null or absence means. type: where the schema allows anything."""

    meaning: str = ""
    default: str = ""
    type: str = ""


class Notes:
    """docs/fields.toml: notes by type and field."""

    def __init__(self, path: Path) -> None:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        self.by_type = {
            kind: {
                name: Note(**(note if isinstance(note, dict) else {"meaning": note})) for name, note in notes.items()
            }
            for kind, notes in data.items()
        }

    def of(self, kind: str, name: str, schema: Schema) -> Note:
        """The type's own note first, then the field's description, then the note for any type."""
        own = self.by_type.get(kind, {}).get(name, Note())
        general = self.by_type.get(ANY, {}).get(name, Note())
        default = str(schema["default"]) if schema.get("default") is not None else ""
        return Note(
            own.meaning or schema.get("description", "") or general.meaning,
            own.default or general.default or default,
            own.type or general.type,
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Fields that one class declares. users: the endpoints that take them; the class of a single one is its body."""

    kind: type[BaseModel]
    fields: dict[str, Schema]
    required: frozenset[str]
    users: tuple[str, ...]


class Reference:
    """The fields of every body, grouped by the class that declares them, so that shared ones are described once."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.bodies = {route.path: route.body for route in routes() if route.body is not None}
        self.schemas = {kind: kind.model_json_schema() for kind in self.bodies.values()}

    def groups(self) -> list[Group]:
        users: dict[type[BaseModel], list[str]] = {}
        fields: dict[type[BaseModel], tuple[dict[str, Schema], frozenset[str]]] = {}
        for path, body in self.bodies.items():
            schema = self.schemas[body]
            for kind, names in declared(body).items():
                users.setdefault(kind, []).append(path)
                fields[kind] = (
                    {name: schema["properties"][name] for name in names},
                    frozenset(schema.get("required", ())),
                )
        shared = [kind for kind in fields if kind not in self.schemas]
        return [Group(kind, *fields[kind], tuple(users[kind])) for kind in [*self.schemas, *shared] if kind in fields]

    def markdown(self) -> str:
        parts = []
        for group in self.groups():
            inherited = [kind.__name__ for kind in declared(group.kind) if kind is not group.kind]
            title = f"POST {group.users[0]}" if group.kind in self.schemas else group.kind.__name__
            parts.append(f"### {title}")
            parts.append(paragraphs(group.kind.__doc__ or ""))
            if group.kind not in self.schemas:
                parts.append("Taken by " + ", ".join(f"`{path}`" for path in group.users) + ".")
            elif inherited:
                parts.append("Also the fields of " + ", ".join(link(name) for name in inherited) + ".")
            parts.append(self._table(group.kind.__name__, group.fields, group.required))
        for name, schema in sorted(self.definitions().items()):
            parts += [f"### {name}", paragraphs(schema.get("description", ""))]
            parts.append(self._table(name, schema["properties"], frozenset(schema.get("required", ()))))
        return "\n\n".join(part for part in parts if part)

    def definitions(self) -> dict[str, Schema]:
        """The object types inside bodies, by name."""
        return {
            name: definition
            for schema in self.schemas.values()
            for name, definition in schema.get("$defs", {}).items()
            if "properties" in definition
        }

    def every_field(self) -> Iterator[tuple[str, str, Note]]:
        """(class, field as on the wire, note) of all bodies."""
        for group in self.groups():
            for name, schema in group.fields.items():
                yield group.kind.__name__, name, self.notes.of(group.kind.__name__, name, schema)

    def _table(self, kind: str, fields: Mapping[str, Schema], required: frozenset[str]) -> str:
        rows = []
        for name, schema in fields.items():
            note = self.notes.of(kind, name, schema)
            default = "required" if name in required else note.default or "–"
            rows.append([f"`{name}`", note.type or type_of(schema), default, range_of(schema), note.meaning])
        return markdown_table(["field", "type", "default", "range", "meaning"], rows)


def declared(body: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """The names, as on the wire, of the fields that each class of a body declares; classes without any are left out."""
    found: dict[type[BaseModel], list[str]] = {}
    seen: set[str] = set()
    for kind in body.__mro__:
        if not issubclass(kind, BaseModel):
            continue
        own = [name for name in kind.__annotations__ if name in body.model_fields and name not in seen]
        seen.update(own)
        if own:
            found[kind] = [body.model_fields[name].alias or name for name in own]
    return found


def paragraphs(text: str) -> str:
    """A docstring as Markdown: lines of a paragraph joined."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def type_of(schema: Schema) -> str:
    """In words. null is left out: it means the default everywhere."""
    if "$ref" in schema:
        return link(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    variants = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if variants:
        names = dict.fromkeys(type_of(variant) for variant in variants if variant.get("type") != "null")
        return " or ".join(names)
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        kind = next(name for name in kind if name != "null")
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_of(schema['additionalProperties'])}"
    return str(kind)


def range_of(schema: Schema) -> str:
    """The limits of a number, a text or a list."""
    given = [variant for variant in schema.get("anyOf", ()) if variant.get("type") != "null"]
    if len(given) == 1:
        return range_of(given[0])
    low, high = (
        _bound(schema, "minimum", "exclusiveMinimum", "≥", ">"),
        _bound(schema, "maximum", "exclusiveMaximum", "≤", "<"),
    )
    parts = [part for part in (low, high) if part]
    for what, least, most in (("items", "minItems", "maxItems"), ("characters", "minLength", "maxLength")):
        if schema.get(least) == 1:
            parts.append("not empty")
        if most in schema:
            parts.append(f"at most {schema[most]} {what}")
    if "pattern" in schema:
        parts.append(f"`{schema['pattern']}`")
    if not parts and isinstance(schema.get("items"), dict):
        return f"each {limits}" if (limits := range_of(schema["items"])) else ""
    return ", ".join(parts)


def _bound(schema: Schema, inclusive: str, exclusive: str, sign: str, strict_sign: str) -> str:
    if inclusive in schema:
        return f"{sign} {_number(schema[inclusive])}"
    return f"{strict_sign} {_number(schema[exclusive])}" if exclusive in schema else ""


def _number(value: float) -> str:
    """Powers of two beyond a million read better as such."""
    magnitude = abs(int(value))
    for exact, suffix in ((magnitude, ""), (magnitude + 1, " - 1")):
        if magnitude > 2**20 and exact & (exact - 1) == 0:
            return f"{'-' if value < 0 else ''}2^{exact.bit_length() - 1}{suffix}"
    return f"{value:g}"
