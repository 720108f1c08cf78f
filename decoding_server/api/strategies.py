"""GET /v1/strategies: everything that `decoding` can ask for, with JSON schemas."""

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request

from decoding_server.api.endpoint import service_of
from decoding_server.decoding import expanded_presets
from decoding_server.protocol.decoding import BudgetOptions
from decoding_server.protocol.strategies import Strategy, StrategyList
from strategies.registry import RUNTIMES, registered
from strategies.sampling.transform import Transform
from strategies.search.search import Search
from strategies.speculative.speculation import Speculation

router = APIRouter()


@router.get("/v1/strategies")
async def list_strategies(request: Request) -> StrategyList:
    """Strategies by the slot of `decoding` that takes them, presets, the budget's schema, the value functions that
    this server has loaded for its searches, and whether it can run programs."""
    return {
        "object": "list",
        "data": [
            strategy
            for name, kind in sorted(registered("transform").items())
            if (strategy := described(name, kind)) is not None
        ]
        + [described_speculation(name, kind) for name, kind in sorted(registered("speculation").items())]
        + [described_search(name, kind) for name, kind in sorted(registered("search").items())],
        "presets": expanded_presets(service_of(request).config.presets),
        "budget": BudgetOptions.model_json_schema(),
        "values": [
            {"id": name, "calibrated": value.calibrated, "automatic": getattr(value, "automatic", True)}
            for name, value in service_of(request).scorers.items()
        ],
        "sandbox": service_of(request).sandbox.described,
    }


def described(name: str, kind: type[Transform]) -> Strategy | None:
    """None for stages that no slot names (bias, minimum length, ...)."""
    if kind.slot is None:
        return None
    supports = {"greedy": kind.greedy, "speculation": not kind.observes}
    return _strategy(name, kind, kind.slot, kind.stage.name.lower(), exact=False, supports=supports)


def described_speculation(name: str, kind: type[Speculation]) -> Strategy:
    supports = {"greedy": True, "speculation": False, "coupled": kind.couples, "draft_needed": kind.uses_draft}
    return _strategy(name, kind, "speculation", "speculation", exact=True, supports=supports)


def described_search(name: str, kind: type[Search]) -> Strategy:
    whole = kind.whole_answers
    supports = {"greedy": True, "speculation": kind.draws, "tools": whole, "structured_output": whole}
    supports["logprobs"] = not kind.own_text
    supports["needs_sandbox"] = kind.runs_programs
    return _strategy(name, kind, "search", "search", exact=False, supports=supports)


def _strategy(
    name: str, kind: type[BaseModel], slot: str, stage: str, *, exact: bool, supports: dict[str, bool]
) -> Strategy:
    everywhere = dict.fromkeys(("stream", "n", "stop", "logprobs", "seed", "tools", "structured_output"), True)
    return {
        "id": name,
        "object": "strategy",
        "slot": slot,
        "summary": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
        "stage": stage,
        "parameters": kind.model_json_schema(),
        "exact": exact,
        "supports": everywhere | supports,
        "runtimes": list(getattr(kind, "runtimes", RUNTIMES)),
    }
