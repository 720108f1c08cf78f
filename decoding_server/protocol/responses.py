"""POST /v1/responses: request and response."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from decoding_server.protocol.decoding import DecodingOptions, ResolvedDecoding
from decoding_server.protocol.response_items import InputItem, OutputItem
from decoding_server.protocol.response_tools import ResponseToolFields
from decoding_server.protocol.sampling import SamplingFields, invalid
from decoding_server.protocol.structure import JsonSchemaFormat, ResponseFormat
from decoding_server.protocol.usage import DecodingUsage

MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512

LOGPROBS = "message.output_text.logprobs"

NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),  # it counts calls of OpenAI's own tools, which this server doesn't have
    "moderation": (),
    "prompt": (),
    "prompt_cache_options": (),
    "reasoning": ({}, {"effort": None}, {"summary": None}, {"effort": None, "summary": None}, {"effort": "none"}),
    "service_tier": ("auto", "default"),
    "truncation": ("disabled",),
    # Fields of the other endpoints; a client that sends them here expects them to work.
    "functions": ([],),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "max_tokens": (),
    "messages": (),
    "n": (1,),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "response_format": (),
    "stop": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "verbosity": ("medium",),
}
"""Fields that are not honoured here, and the values with which they ask for nothing."""


def _items(value: Any) -> Any:
    """A string is one message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise invalid("must be an object of strings")
    if len(value) > MAX_METADATA:
        raise invalid(f"must not have more than {MAX_METADATA} pairs")
    for key, text in value.items():
        if len(key) > MAX_METADATA_KEY or len(text) > MAX_METADATA_VALUE:
            limits = f"{MAX_METADATA_KEY} and {MAX_METADATA_VALUE}"
            raise invalid(f"keys and values must not have more than {limits} characters")
    return value


class TextFormat(BaseModel):
    """`text`, `json_object`, or `json_schema` with name and schema. The schema is always enforced."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(min_length=1)] | None = None
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> "TextFormat":
        wanted = self.type == "json_schema"
        for field, value in (("name", self.name), ("schema", self.json_schema)):
            if wanted and value is None:
                raise invalid("is missing", field)
        for field, value in (("name", self.name), ("description", self.description), ("schema", self.json_schema)):
            if not wanted and value is not None:
                raise invalid("is only allowed with type json_schema", field)
        return self

    def as_response_format(self) -> ResponseFormat:
        """The same in the shape of chat completions."""
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        named = {"name": self.name, "description": self.description, "schema": self.json_schema, "strict": self.strict}
        return ResponseFormat(type=self.type, json_schema=JsonSchemaFormat.model_validate(named))


class TextOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(BaseModel):
    """include_obfuscation: accepted with either value; nothing is ever padded."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_obfuscation: bool | None = None


Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
"""All but the first concern items that an answer of this server never has."""


class ResponsesRequest(SamplingFields, ResponseToolFields):
    """A conversation to answer, whole or as what follows an earlier response. Sampling fields and `decoding` are those
    of the other endpoints."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = Field(None, description="A served name; absent means the first one.")
    input: Annotated[
        list[InputItem], BeforeValidator(_items, json_schema_input_type=str | list[InputItem]), Field(min_length=1)
    ]
    instructions: str | None = Field(None, description="A system message before the conversation; not carried over.")
    previous_response_id: str | None = Field(None, description="A stored response, whose conversation goes on.")
    store: bool | None = Field(None, description="Default true: can be read and continued, until it is evicted.")
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    include: list[Includable] | None = Field(None, description=f"Only {LOGPROBS} has an effect.")
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    text: TextOptions | None = None
    metadata: Annotated[
        dict[str, str],
        PlainValidator(_metadata),
        WithJsonSchema({"type": ["object", "null"], "additionalProperties": {"type": "string"}}),
    ] = Field(default_factory=dict, description="Labels, which come back with the response.")
    user: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(None, description="Smaller ones go first.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Cached prefixes are shared only among requests with the same salt."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")
    decoding: DecodingOptions | None = None

    @property
    def logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @model_validator(mode="after")
    def _options_fit_together(self) -> "ResponsesRequest":
        if self.stream_options is not None and not self.stream:
            raise invalid("is only allowed when stream is true", "stream_options")
        if self.top_logprobs and not self.logprobs:
            raise invalid(f"is only allowed when include has {LOGPROBS}", "top_logprobs")
        return self


class InputTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """OpenAI's counts under the names of this endpoint, and under `decoding` what the model really computed."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    decoding: NotRequired[DecodingUsage]


class IncompleteDetails(TypedDict):
    """stop_reason: `budget:<unit>` if a budget, not a number of tokens, ended the answer."""

    reason: Literal["max_output_tokens"]
    stop_reason: str | int | None


class ResponseFault(TypedDict):
    code: Literal["server_error"]
    message: str


class ResponseObject(TypedDict):
    """One response. `decoding` is how it was decoded, `warnings` what of the request had no effect."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseFault | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, None]
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    background: Literal[False]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, str]
    system_fingerprint: str
    stop_reason: str | int | None
    decoding: ResolvedDecoding
    warnings: NotRequired[list[str]]
    trace: NotRequired[list[dict[str, Any]]]


class DeletedResponse(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]
