"""The sampling fields of a request, under the names that OpenAI, vLLM, llama.cpp and transformers gave them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

INT64_MIN, UINT64_MAX = -(2**63), 2**64 - 1


def invalid(message: str, field: str = "") -> PydanticCustomError:
    """A validator's way of refusing a value. `field` names the culprit when the validator looks at a whole object."""
    return PydanticCustomError("value", "{message}", {"message": message, "field": field})


def _logit_bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid("must be an object of token ids and biases")
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal() and len(token) < 12):
            raise invalid(f"{token!r} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise invalid(f"the bias of token {token} must be a number from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


class SamplingFields(BaseModel):
    """Every field may be null, which means its default (off, where nothing else is said)."""

    model_config = ConfigDict(strict=True, extra="ignore")

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy.")
    seed: Annotated[int, Field(ge=INT64_MIN, le=UINT64_MAX)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="-1, 0 and null switch it off.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="1 switches it off.")
    top_n_sigma: Annotated[float, Field(ge=-1)] | None = Field(None, description="0 and below switch it off.")
    epsilon_cutoff: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="0 switches it off.")
    eta_cutoff: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="0 switches it off.")
    xtc_probability: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0 switches XTC off.")
    xtc_threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Default 0.1.")
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = Field(None, description="0 is off, 2 is version 2.")
    mirostat_tau: Annotated[float, Field(gt=0)] | None = Field(None, description="Target surprise, default 5 bits.")
    mirostat_eta: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Learning rate, default 0.1.")
    repetition_penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=1024)] | None = Field(None, description="0 is off.")
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0 switches DRY off.")
    dry_base: Annotated[float, Field(ge=1, le=8)] | None = Field(None, description="Default 1.75.")
    dry_allowed_length: Annotated[int, Field(ge=1, le=1024)] | None = Field(None, description="Default 2.")
    dry_penalty_last_n: Annotated[int, Field(ge=-1)] | None = Field(None, description="-1 is the whole context.")
    dry_sequence_breakers: list[str] | None = None
    logit_bias: Annotated[
        dict[int, float],
        PlainValidator(_logit_bias),
        WithJsonSchema({"type": ["object", "null"], "additionalProperties": {"type": "number"}}),
    ] = Field(default_factory=dict, description="Token id (as a string) to a bias from -100 to 100.")
    allowed_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="No other can be drawn, unless a structured output leaves none of them."
    )
    bad_words: list[str] | None = Field(None, description="Words that can't be completed, unless nothing else is left.")
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
