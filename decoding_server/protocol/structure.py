"""What the text must be: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from decoding_server.protocol.sampling import invalid


class JsonSchemaFormat(BaseModel):
    """A named schema. `strict` is accepted with either value: the schema is always enforced."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | bool, Field(alias="schema")] = True
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """`text`, `json_object` or `json_schema`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            needed = "is missing" if self.json_schema is None else "is only allowed with type json_schema"
            raise invalid(needed, "json_schema")
        return self


class StructuredOutputs(BaseModel):
    """Exactly one of: json (a schema, also as text), json_object, regex, choice, grammar (Lark or EBNF)."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    json_schema: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Annotated[str, Field(min_length=1)] | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        kinds = (self.json_schema, self.json_object or None, self.regex, self.choice, self.grammar)
        if sum(kind is not None for kind in kinds) != 1:
            raise invalid("exactly one of json, json_object, regex, choice and grammar is needed")
        return self
