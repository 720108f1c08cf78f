"""GET /v1/strategies: everything that `decoding` can ask for, with JSON schemas."""

from fastapi import APIRouter
from starlette.requests import Request

from decoding_server.api.endpoint import service_of
from decoding_server.protocol.decoding import BudgetOptions
from decoding_server.protocol.strategies import Strategy, StrategyList
from strategies.registry import registered
from strategies.sampling.transform import Transform

router = APIRouter()


@router.get("/v1/strategies")
async def list_strategies(request: Request) -> StrategyList:
    """Strategies by the slot of `decoding` that takes them, presets, and the budget's schema."""
    return {
        "object": "list",
        "data": [
            strategy
            for name, kind in sorted(registered("transform").items())
            if (strategy := described(name, kind)) is not None
        ],
        "presets": dict(service_of(request).config.presets),
        "budget": BudgetOptions.model_json_schema(),
    }


def described(name: str, kind: type[Transform]) -> Strategy | None:
    """None for stages that no slot names (bias, minimum length, ...)."""
    if kind.slot is None:
        return None
    return {
        "id": name,
        "object": "strategy",
        "slot": kind.slot,
        "summary": (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n", " "),
        "stage": kind.stage.name.lower(),
        "parameters": kind.model_json_schema(),
        "supports": {
            "greedy": kind.greedy,
            "stream": True,
            "n": True,
            "stop": True,
            "logprobs": True,
            "seed": True,
            "tools": True,
        },
        "runtimes": ["torch"],
    }
