"""What is compared: strategies by a preset's name or as a request would write them, and how each uses its budget.

A strategy that samples many answers needs to be told how many. Its `scale` says so: a parameter of `decoding.search`
becomes the number of answers that the budget pays for,

    width     = (budget - cost of the prompt) / cost of an answer        at least 1
    parameter = floor((width / cost)^power)                              within least..most

so that every strategy may spend what the others may. Strategies that look at the budget themselves need no scale.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from decoding_server.protocol.decoding import DecodingOptions
from strategies import registry
from strategies.errors import InvalidRequest
from strategies.search.coding_search import CodingSearch
from strategies.search.search import Search

Body = dict[str, Any]
SCALE = "scale"
RESERVED = frozenset({"model", "messages", "prompt", "stream", "n", "seed", "cache_salt"})
"""Fields of a request that the benchmark writes itself."""


@dataclass(frozen=True, slots=True)
class Scale:
    """cost: of one of the parameter's answers, in answers of plain decoding (more where each is also valued)."""

    parameter: str
    cost: float = 1.0
    power: float = 1.0
    least: int = 1
    most: int = 128

    def value(self, width: float) -> int:
        wanted = math.floor(math.pow(width / self.cost, self.power) + 1e-9)
        return max(self.least, min(self.most, wanted))


def _sampled(kind: str, cost: float = 1.0, parameter: str = "samples", most: int = 128) -> Body:
    return {"decoding": {"search": {"type": kind}}, SCALE: {parameter: {"cost": cost, "most": most}}}


_SQUARE: Body = {"power": 0.5, "most": 4}
PRESETS: dict[str, Body] = {
    "greedy": {"temperature": 0.0},
    "sampling": {},
    "top-k": {"top_k": 40},
    "bregman": {"decoding": {"sampler": {"type": "bregman", "alpha": 1.5, "lambda": 0.01}}},
    "rpg": {"temperature": 0.0, "decoding": {"penalty": {"type": "grammar"}}},
    "speculation": {"temperature": 0.0, "decoding": {"speculation": {"type": "ngram"}}},
    "majority": _sampled("majority"),
    "weighted-majority": _sampled("weighted-majority", cost=2.0),
    "best-of-n": _sampled("best-of-n", cost=2.0),
    "rebase": _sampled("rebase", cost=4.0),
    "phi": {"decoding": {"search": {"type": "phi"}}, SCALE: {"beams": _SQUARE, "rollouts": _SQUARE}},
    "predictive": _sampled("predictive", cost=2.0, parameter="rollouts", most=8),
    "litesearch": {"decoding": {"search": {"type": "litesearch"}}},
    "code-best-of-n": _sampled("code-best-of-n", parameter="k", most=32),
    "sfs": _sampled("scattered-forest", cost=2.0, parameter="k", most=32),
}
"""What each strategy's answers cost beside a plain one is a rough figure: a value is two short reads, REBASE values
every step, a program of a forest comes with a reflection."""
PRESETS["self-consistency"] = PRESETS["majority"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """body: fields of the request, without what the benchmark writes."""

    name: str
    body: Mapping[str, Any]
    scales: tuple[Scale, ...] = ()

    @property
    def search(self) -> Mapping[str, Any] | None:
        found = (self.body.get("decoding") or {}).get("search")
        return {"type": found} if isinstance(found, str) else found

    @property
    def kind(self) -> type[Search] | None:
        """Of the search; None without one, and for one that only the server knows."""
        if self.search is None:
            return None
        try:
            found: type[Search] = registry.find("search", str(self.search.get("type")), "strategy")
        except InvalidRequest:
            return None
        return found

    @property
    def searches_programs(self) -> bool:
        kind = self.kind
        return kind is not None and issubclass(kind, CodingSearch)

    @property
    def budget_blind(self) -> bool:
        """Whether a run that its budget did not end would be the same under any larger one."""
        return self.search is None and not self.scales

    @property
    def plain(self) -> bool:
        """Whether a server without this project's extensions can run it."""
        return "decoding" not in self.body

    def parameters(self, width: float) -> dict[str, int]:
        return {scale.parameter: scale.value(width) for scale in self.scales}

    def request(self, width: float) -> Body:
        """The body, with the parameters that follow from the width."""
        body = copy.deepcopy(dict(self.body))
        if self.scales:
            body["decoding"]["search"] = {**(self.search or {}), **self.parameters(width)}
        return body


def parsed(text: str) -> Strategy:
    """A preset's name, or NAME=JSON. Raises ValueError."""
    name, mark, body = text.partition("=")
    if not mark or "{" in name:
        if text not in PRESETS:
            raise ValueError(f"--strategy: {text!r} is no preset ({', '.join(PRESETS)}) and no NAME={{...}}")
        return strategy(text, PRESETS[text])
    if body in PRESETS:
        return strategy(name.strip(), PRESETS[body])
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ValueError(f"--strategy {name.strip()}: not JSON: {error}") from None
    return strategy(name.strip(), found)


def strategy(name: str, body: Any) -> Strategy:
    """Raises ValueError that names the field."""
    where = f"--strategy {name}"
    if not name or not isinstance(body, Mapping):
        raise ValueError(f"{where}: must be an object of request fields")
    fields = {key: value for key, value in body.items() if key != SCALE}
    taken = sorted(RESERVED & fields.keys())
    if taken:
        raise ValueError(f"{where}: {', '.join(taken)} is not for a strategy to say")
    decoding = fields.get("decoding")
    if decoding is not None and not isinstance(decoding, Mapping):
        raise ValueError(f"{where}: decoding must be an object")
    if decoding is not None and "budget" in decoding:
        raise ValueError(f"{where}: decoding.budget comes from --budget")
    made = Strategy(name, fields, tuple(scales(where, body.get(SCALE))))
    if made.scales and made.search is None:
        raise ValueError(f"{where}: scale needs a decoding.search, whose parameters it sets")
    return made


def scales(where: str, given: Any) -> list[Scale]:
    """Of `{"samples": {"cost": 2}}`, or `{"samples": 2}` for short. Raises ValueError."""
    if given is None:
        return []
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: scale must be an object of parameters")
    found = []
    for parameter, options in given.items():
        known = {"cost", "power", "least", "most"}
        values = options if isinstance(options, Mapping) else {"cost": options}
        bad = [key for key, value in values.items() if key not in known or not _positive(value)]
        if bad:
            raise ValueError(f"{where}: scale.{parameter}.{bad[0]} must be a number above 0, one of {sorted(known)}")
        found.append(Scale(str(parameter), **values))
    return found


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def strategies(texts: Sequence[str]) -> list[Strategy]:
    """All of the command line's. Raises ValueError for one that is wrong, or two of one name."""
    found = [parsed(text) for text in texts]
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--strategy: {twice!r} is given twice")
    return found


def check(one: Strategy) -> None:
    """What this version would refuse; a running server may have plug-ins, and is asked itself. Raises ValueError."""
    decoding = one.request(4.0).get("decoding")
    if decoding is None:
        return
    if one.searches_programs:  # the rest of its parameters depends on the task
        decoding = {**decoding, "search": {**decoding["search"], "entry_point": "f"}}
    try:
        DecodingOptions.model_validate(decoding)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(["decoding", *map(str, fault["loc"])])
        raise ValueError(f"--strategy {one.name}: {where}: {fault['msg'].removeprefix('Value error, ')}") from None
