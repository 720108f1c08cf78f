"""What is compared: each contender is a search's parameters, or plain decoding, at one temperature."""

from dataclasses import dataclass, field
from typing import Any

from strategies import registry
from strategies.search.search import Search

SAMPLES = 16
SAMPLES_NAME = "samples"
"""The contender whose samples, and their values, stand for all votes: smaller votes are drawn from them."""


@dataclass(frozen=True, slots=True)
class Contender:
    """search: `decoding.search` as a request would write it, None for plain decoding."""

    name: str
    temperature: float
    search: dict[str, Any] | None = field(default=None)

    def build(self) -> Search | None:
        """The validated search. Raises pydantic's ValidationError, InvalidRequest for an unknown type."""
        if self.search is None:
            return None
        parameters = {key: value for key, value in self.search.items() if key != "type"}
        search: Search = registry.find("search", self.search["type"], "type").model_validate(parameters)
        return search


def contenders(value: str, samples: int = SAMPLES) -> list[Contender]:
    """The grid. value: the value function of all searches that have one."""
    return [
        Contender("greedy", 0.0),
        Contender(SAMPLES_NAME, 0.8, {"type": "best-of-n", "samples": samples, "value": value, "trace": "full"}),
        Contender("litesearch incremental", 0.8, {"type": "litesearch", "expansion": "incremental", "value": value}),
        Contender("litesearch batch", 0.8, {"type": "litesearch", "expansion": "batch", "value": value}),
        Contender("rebase", 0.8, {"type": "rebase", "samples": 8, "value": value}),
        Contender("phi", 0.6, {"type": "phi", "beams": 2, "rollouts": 2, "t_min": 2, "t_max": 4}),
        Contender("predictive", 0.6, {"type": "predictive", "rollouts": 4, "t_max": 4}),
    ]
