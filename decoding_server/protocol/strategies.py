"""GET /v1/strategies."""

from typing import Any, Literal

from typing_extensions import TypedDict

from decoding_server.programs import SandboxState


class Strategy(TypedDict):
    """One strategy: the slot of `decoding` that takes it, its parameters' JSON schema, what it works with.

    exact: whether the output's distribution is that of decoding without it. supports.greedy: whether it has an effect
    at temperature 0; supports.speculation: whether it can be combined with speculation.
    """

    id: str
    object: Literal["strategy"]
    slot: str
    summary: str
    stage: str
    parameters: dict[str, Any]
    exact: bool
    supports: dict[str, bool]
    runtimes: list[str]


class LoadedValue(TypedDict):
    """A value function that searches may ask for. calibrated: its values may be read as probabilities. automatic:
    `auto` may choose it."""

    id: str
    calibrated: bool
    automatic: bool


class StrategyList(TypedDict):
    """presets: by name, as objects with slots; one that is faulty stands as it was written."""

    object: Literal["list"]
    data: list[Strategy]
    presets: dict[str, Any]
    budget: dict[str, Any]
    values: list[LoadedValue]
    sandbox: SandboxState
