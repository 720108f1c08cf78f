"""From a request's sampling fields and `decoding` object to one pipeline of transforms."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from decoding_server.errors import InvalidField
from decoding_server.protocol.decoding import duplicate
from decoding_server.protocol.generation import GenerationRequest
from strategies import registry
from strategies.runtime import SamplingParameters
from strategies.sampling.bans import AllowedTokenIds, BadWords, bad_word_sequences
from strategies.sampling.standard import sampling
from strategies.sampling.transform import Stage, Transform
from strategies.text import Tokenizer

TRUNCATION_DEFAULTS = ("top_k", "top_p", "min_p")
"""Defaults of a model's generation_config that a request with its own `decoding.sampler` doesn't get."""


class FlatFields(NamedTuple):
    """Request fields that configure one transform: it is on unless `switch` is null or at most `off`, or (typical_p)
    at least `off` where it restricts from above."""

    transform: str
    switch: str
    off: float
    parameters: Mapping[str, str]

    def chosen(self, request: GenerationRequest) -> bool:
        value = getattr(request, self.switch)
        return value is not None and (value < self.off if self.off == 1.0 else value > self.off)


FLAT = (
    FlatFields("typical_p", "typical_p", 1.0, {"mass": "typical_p"}),
    FlatFields("top_n_sigma", "top_n_sigma", 0.0, {"n": "top_n_sigma"}),
    FlatFields("epsilon_cutoff", "epsilon_cutoff", 0.0, {"epsilon": "epsilon_cutoff"}),
    FlatFields("eta_cutoff", "eta_cutoff", 0.0, {"epsilon": "eta_cutoff"}),
    FlatFields("xtc", "xtc_probability", 0.0, {"probability": "xtc_probability", "threshold": "xtc_threshold"}),
    FlatFields("mirostat", "mirostat", 0.0, {"tau": "mirostat_tau", "eta": "mirostat_eta"}),
    FlatFields("no_repeat_ngram", "no_repeat_ngram_size", 0.0, {"size": "no_repeat_ngram_size"}),
    FlatFields(
        "dry",
        "dry_multiplier",
        0.0,
        {
            "multiplier": "dry_multiplier",
            "base": "dry_base",
            "allowed_length": "dry_allowed_length",
            "penalty_last_n": "dry_penalty_last_n",
            "sequence_breakers": "dry_sequence_breakers",
        },
    ),
)


def sampling_of(
    request: GenerationRequest, defaults: Mapping[str, float], tokenizer: Tokenizer, structure: Transform | None = None
) -> SamplingParameters:
    """The request's pipeline: its own values, else the model's defaults (generation_config), else OpenAI's.

    structure: the compiled form of what the text must be. Raises InvalidField.
    """
    decoding = request.decoding
    named = [*decoding.sampler, *decoding.penalty] if decoding is not None else []
    if decoding is not None and decoding.sampler:
        defaults = {name: value for name, value in defaults.items() if name not in TRUNCATION_DEFAULTS}

    def value(name: str, fallback: float) -> Any:
        given = getattr(request, name)
        return given if given is not None else defaults.get(name, fallback)

    parameters = sampling(
        temperature=value("temperature", 1.0),
        top_k=max(0, int(value("top_k", 0))),
        top_p=value("top_p", 1.0),
        min_p=value("min_p", 0.0),
        repetition_penalty=value("repetition_penalty", 1.0),
        presence_penalty=value("presence_penalty", 0.0),
        frequency_penalty=value("frequency_penalty", 0.0),
        logit_bias=request.logit_bias,
        transforms=[*_flat(request), *_bans(request, tokenizer), *named, *([] if structure is None else [structure])],
        order=_order(decoding.pipeline if decoding is not None else None, structure),
    )
    twice = duplicate(parameters.transforms)
    if twice is not None:
        raise InvalidField(f"'{twice}' is asked for twice, in 'decoding' and by a field of its own.", "decoding")
    return parameters


def _flat(request: GenerationRequest) -> list[Transform]:
    if request.mirostat == 1:
        raise InvalidField("'mirostat': only version 2 is supported.", "mirostat", "unsupported_parameter")
    return [_configured(fields, request) for fields in FLAT if fields.chosen(request)]


def _configured(fields: FlatFields, request: GenerationRequest) -> Transform:
    """The transform with those of its fields that the request gives; its own defaults for the others."""
    given = {
        parameter: value
        for parameter, field in fields.parameters.items()
        if (value := getattr(request, field)) is not None
    }
    try:
        transform: Transform = registry.find("transform", fields.transform, fields.switch).model_validate(given)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = fields.parameters.get(str(fault["loc"][0]) if fault["loc"] else "", fields.switch)
        raise InvalidField(f"'{field}': {fault['msg'][:1].lower()}{fault['msg'][1:]}", field) from error
    return transform


def _bans(request: GenerationRequest, tokenizer: Tokenizer) -> list[Transform]:
    bans: list[Transform] = []
    if request.allowed_token_ids is not None:
        if not request.allowed_token_ids:
            raise InvalidField("'allowed_token_ids' must not be empty.", "allowed_token_ids")
        bans.append(AllowedTokenIds(ids=tuple(sorted(set(request.allowed_token_ids)))))
    if request.bad_words:
        bans.append(BadWords(sequences=bad_word_sequences(request.bad_words, tokenizer)))
    return bans


def _order(names: Sequence[str] | None, structure: Transform | None) -> tuple[str, ...]:
    """`decoding.pipeline`, checked: known names, none twice, and nothing that could leave the structure no token."""
    known = registry.registered("transform")
    for i, name in enumerate(names or ()):
        param = f"decoding.pipeline[{i}]"
        if name not in known:
            raise InvalidField(f"'{param}': {name[:100]!r} is unknown; there are: {', '.join(sorted(known))}.", param)
        if known[name].stage == Stage.STRUCTURE:
            raise InvalidField(f"'{param}': the place of {name!r} is fixed.", param)
        if name in (names or ())[:i]:
            raise InvalidField(f"'{param}': {name!r} occurs twice.", param)
    sides = {known[name].stage > Stage.STRUCTURE for name in names or ()}
    if structure is not None and len(sides) == 2:
        message = "With structured output, nothing that removes tokens may change places with what comes before it."
        raise InvalidField(f"'decoding.pipeline': {message}", "decoding.pipeline")
    return tuple(names or ())
