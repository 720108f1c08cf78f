"""The `decoding` object: how an answer is decoded. It is strict: what can't be honoured is refused."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema
from typing_extensions import TypedDict

from decoding_server.protocol.parameter_faults import told
from decoding_server.protocol.sampling import invalid
from strategies import registry
from strategies.sampling.transform import Transform
from strategies.search.search import Search
from strategies.speculative.speculation import Speculation


class BudgetOptions(BaseModel):
    """Limits of one request over all its choices; at the limit the best answer so far is returned.

    forward_tokens and flops count what the model computes (prompt tokens from the prefix cache are free),
    output_tokens what it generates, seconds the wall time since submission.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    forward_tokens: Annotated[int, Field(gt=0, le=2**63)] | None = None
    output_tokens: Annotated[int, Field(gt=0, le=2**63)] | None = None
    flops: Annotated[float, Field(gt=0)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None


def slot_transforms(slot: str) -> dict[str, type[Transform]]:
    """The transforms that `decoding.<slot>` can name, by name."""
    return {name: kind for name, kind in registry.registered("transform").items() if kind.slot == slot}


def parse_transform(value: Any, slot: str, where: str = "") -> Transform:
    """`{"type": name, ...parameters}` or a bare name to a transform. where: "[i]" inside a list."""
    chosen: Transform = _parse(value, slot_transforms(slot), where)
    return chosen


def _parse(value: Any, known: Mapping[str, type[Any]], where: str) -> Any:
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise invalid("must be a name, or an object with a 'type' and its parameters", where)
    kind = known.get(value["type"])
    if kind is None:
        raise invalid(f"{value['type'][:100]!r} is unknown; there are: {', '.join(sorted(known))}", f"{where}.type")
    parameters = {name: given for name, given in value.items() if name != "type"}
    try:
        return kind.model_validate(parameters)
    except ValidationError as error:
        fault, place = told(error, parameters)
        message = fault["msg"].removeprefix("Value error, ")
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
        context = fault.get("ctx", {})
        culprit = str(context.get("field") or (context.get("param") if not place else None) or "")
        message = message.removeprefix(f"{culprit}: ")
        raise invalid(message[:1].lower() + message[1:], where + path + (f".{culprit}" if culprit else "")) from error


def parse_speculation(value: Any) -> Speculation | None:
    """`{"type": name, ...parameters}` or a bare name."""
    if value is None:
        return None
    chosen: Speculation = _parse(value, registry.registered("speculation"), "")
    return chosen


def parse_search(value: Any) -> Search | None:
    """`{"type": name, ...parameters}` or a bare name."""
    if value is None:
        return None
    chosen: Search = _parse(value, registry.registered("search"), "")
    return chosen


def _transforms(slot: str) -> PlainValidator:
    def validate(value: Any) -> list[Transform]:
        if value is None:
            return []
        if not isinstance(value, list):
            return [parse_transform(value, slot)]
        return [parse_transform(one, slot, f"[{i}]") for i, one in enumerate(value)]

    return PlainValidator(validate)


class DecodingOptions(BaseModel):
    """How the answer is decoded; every part is optional.

    sampler, penalty: one transform or a list, each a name or {"type": name, ...parameters}; with a sampler, the model's
    own default top_k, top_p and min_p do not apply. pipeline: transforms that take one another's places in the default
    order. speculation: how draft tokens are proposed and verified, likewise a name or an object. search: how the answer
    is found among many, likewise. budget: what the request may spend. trace: how much the reply tells of every step.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    sampler: Annotated[list[Transform], _transforms("sampler"), WithJsonSchema({})] = Field(default_factory=list)
    penalty: Annotated[list[Transform], _transforms("penalty"), WithJsonSchema({})] = Field(default_factory=list)
    pipeline: list[str] | None = None
    speculation: Annotated[Speculation | None, PlainValidator(parse_speculation), WithJsonSchema({})] = None
    search: Annotated[Search | None, PlainValidator(parse_search), WithJsonSchema({})] = None
    budget: BudgetOptions | None = None
    trace: Literal["none", "full"] | None = None


class ResolvedTransform(TypedDict, total=False):
    """`type`, and the transform's parameters, defaults included."""

    type: str


class ResolvedDecoding(TypedDict):
    """What a reply says about how it was decoded: everything that is needed to ask for the same again.

    pipeline: names of all stages in the order in which they ran. budget: limits that were set. trace: only if asked
    for.
    """

    seed: int
    temperature: float
    sampler: list[ResolvedTransform]
    penalty: list[ResolvedTransform]
    pipeline: list[str]
    speculation: ResolvedTransform | None
    search: ResolvedTransform | None
    budget: dict[str, float] | None
    trace: NotRequired[Literal["full"]]


def resolved_strategy(strategy: Transform | Speculation | Search) -> ResolvedTransform:
    return {"type": strategy.name, **strategy.model_dump(mode="json", by_alias=True)}  # type: ignore[typeddict-item]


def duplicate(transforms: Sequence[Transform]) -> str | None:
    """The name of a transform that occurs twice."""
    seen: set[str] = set()
    for transform in transforms:
        if transform.name in seen:
            return transform.name
        seen.add(transform.name)
    return None
