"""Which decoding a request gets, and what the reply says about it.

Precedence: the body's `decoding`, the model name (`name@preset`), the header `x-decoding-strategy`, the server's
default. The first that is there counts alone; nothing is merged, and nothing is ever read out of a prompt.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from decoding_server.config import ConfigError
from decoding_server.errors import InvalidField
from decoding_server.protocol.decoding import DecodingOptions, ResolvedDecoding, resolved_strategy
from decoding_server.request_body import validate
from strategies import registry
from strategies.runtime import Generation
from strategies.sampling.row import stages_of
from strategies.search.search import Search

HEADER = "x-decoding-strategy"
SEPARATOR = "@"
SLOTS = ("sampler", "penalty")


def split_model(name: str, served: tuple[str, ...]) -> tuple[str, str | None]:
    """`name@preset` to its parts; a served name that holds the separator itself is not split."""
    base, separator, preset = name.rpartition(SEPARATOR)
    return (base, preset) if separator and name not in served and base in served else (name, None)


def expand(value: Any, presets: Mapping[str, Any], param: str = "decoding") -> Any:
    """A name, or {"strategy": name, ...parameters}, to the object with slots that it stands for.

    A preset of that name comes first, then a transform. A preset may stand for either in turn, but not for itself: its
    own name is then the strategy's. Anything else is left to validation. Raises InvalidField.
    """
    parameters: dict[str, Any] = {}
    if isinstance(value, dict) and "strategy" in value:
        parameters = {name: given for name, given in value.items() if name != "strategy"}
        value = value["strategy"]
        param = f"{param}.strategy"
        if not isinstance(value, str):
            raise InvalidField(f"'{param}': must be a name.", param, "invalid_type")
    if not isinstance(value, str):
        return value
    if value in presets:
        if parameters:
            raise InvalidField(f"'{param}': the preset {value!r} takes no parameters.", param)
        others = {name: preset for name, preset in presets.items() if name != value}
        return expand(presets[value], others, param)
    for slot in SLOTS:
        known = registry.registered("transform").get(value)
        if known is not None and known.slot == slot:
            return {slot: {"type": value, **parameters}}
    if value in registry.registered("speculation"):
        return {"speculation": {"type": value, **parameters}}
    if value in registry.registered("search"):
        return {"search": {"type": value, **parameters}}
    names = sorted(
        {
            *presets,
            *(name for name, kind in registry.registered("transform").items() if kind.slot),
            *registry.registered("speculation"),
            *registry.registered("search"),
        }
    )
    raise InvalidField(f"'{param}': {value[:100]!r} is unknown; there are: {', '.join(names)}.", param)


def expanded_presets(presets: Mapping[str, Any]) -> dict[str, Any]:
    """Each preset as the object that it stands for; one that can't be had as it was written, for requests to refuse."""
    found = dict(presets)
    for name in presets:
        with suppress(InvalidField):
            found[name] = expand(name, presets)
    return found


def check_configured(default: Any, presets: Mapping[str, Any]) -> None:
    """What requests would be refused for, before the first of them. default: decoding of those that ask for none.
    Raises ConfigError that names the preset."""
    named = {f"presets: {name!r}": name for name in presets}
    for what, value in {**named, "decoding": default}.items():
        try:
            found = expand(value, presets)
            if found is not None and not isinstance(found, dict):
                raise ConfigError(f"{what}: must be a name or an object")
            validate(DecodingOptions, found or {})
        except InvalidField as error:
            raise ConfigError(f"{what}: {error}") from None


def resolved_decoding(
    generation: Generation, eos_token_ids: frozenset[int], search: Search | None = None
) -> ResolvedDecoding:
    """Everything that is needed to ask for the same again."""
    sampling, limits = generation.sampling, asdict(generation.meter.budget)
    resolved: ResolvedDecoding = {
        "seed": generation.seed,
        "temperature": sampling.temperature,
        "sampler": [resolved_strategy(one) for one in sampling.transforms if one.slot == "sampler"],
        "penalty": [resolved_strategy(one) for one in sampling.transforms if one.slot == "penalty"],
        "pipeline": [stage.name for stage in stages_of(generation, eos_token_ids)],
        "speculation": None if generation.speculation is None else resolved_strategy(generation.speculation),
        "search": None if search is None else resolved_strategy(search),
        "budget": {unit: limit for unit, limit in limits.items() if limit is not None} or None,
    }
    if generation.traced:
        resolved["trace"] = "full"
    return resolved
