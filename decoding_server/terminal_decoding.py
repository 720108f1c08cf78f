"""How the terminal chat decodes: strategies switched by name, and a budget, as the `decoding` of the next request."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

UNITS: Mapping[str, type[int] | type[float]] = {
    "forward_tokens": int,
    "output_tokens": int,
    "flops": float,
    "seconds": float,
}
SLOTS = ("sampler", "penalty", "speculation", "search")


class ChoiceError(Exception):
    """What was typed can't be chosen; the message is one line."""


class DecodingChoice:
    """What is chosen. known: the slot of each strategy that the server has; presets: its named decodings."""

    def __init__(self, known: Mapping[str, str], presets: Mapping[str, Any]) -> None:
        self.known = known
        self.presets = presets
        self.slots: dict[str, Any] = {}
        self.budget: dict[str, float] = {}

    def choose(self, name: str, parameters: str = "") -> None:
        """A strategy takes its slot, a preset all of them; "off" empties them. parameters: a JSON object, or nothing.
        Raises ChoiceError."""
        self._choose(name, read_object(parameters) if parameters else {}, self.presets)

    def take(self, decoding: Any) -> None:
        """A whole `decoding` as a request has it: a name, or an object. Raises ChoiceError."""
        self._take(decoding, self.presets)

    def _choose(self, name: str, given: Mapping[str, Any], presets: Mapping[str, Any]) -> None:
        """presets: those that the name may stand for; inside a preset not that one, as at the server."""
        if name == "off":
            self.slots = {}
        elif name in presets:
            if given:
                raise ChoiceError(f"the preset {name!r} takes no parameters")
            self._take(presets[name], {other: its for other, its in presets.items() if other != name})
        elif name in self.known:
            self.slots[self.known[name]] = {"type": name, **given}
        else:
            names = ", ".join(sorted({*self.presets, *self.known}))
            raise ChoiceError(f"{name!r} is unknown; there are: {names}")

    def _take(self, decoding: Any, presets: Mapping[str, Any]) -> None:
        if isinstance(decoding, str):
            self._choose(decoding, {}, presets)
        elif isinstance(decoding, dict) and isinstance(decoding.get("strategy"), str):
            given = {name: value for name, value in decoding.items() if name != "strategy"}
            self._choose(decoding["strategy"], given, presets)
        elif isinstance(decoding, dict) and isinstance(decoding.get("budget") or {}, dict):
            budget = {unit: limit for unit, limit in (decoding.get("budget") or {}).items() if limit is not None}
            for unit, limit in budget.items():
                number = isinstance(limit, int | float) and not isinstance(limit, bool)
                if unit not in UNITS or not number or not 0 < limit < math.inf:
                    raise ChoiceError(f"{json.dumps({unit: limit})} is no limit of a budget")
            self.slots = {name: value for name, value in decoding.items() if name != "budget"}
            self.budget.update(budget)
        else:
            raise ChoiceError("decoding must be a name or a JSON object")

    def limit(self, words: Sequence[str]) -> None:
        """["off"], or a unit and its limit. Raises ChoiceError."""
        if list(words) == ["off"]:
            self.budget = {}
            return
        if len(words) != 2 or words[0] not in UNITS:
            raise ChoiceError(f"say a unit and a limit, or off; units are: {', '.join(UNITS)}")
        unit, text = words
        try:
            limit = UNITS[unit](text)
        except ValueError:
            limit = 0
        if not 0 < limit < math.inf:
            raise ChoiceError(f"{text!r} is no limit in {unit}")
        self.budget[unit] = limit

    def body(self) -> dict[str, Any] | None:
        """The field `decoding` of a request, None for the server's default."""
        return ({**self.slots, "budget": self.budget} if self.budget else dict(self.slots)) or None

    def lines(self) -> list[str]:
        """What is chosen, in words."""
        chosen = [f"{slot} {_words(value)}" for slot, value in self.slots.items()]
        if self.budget:
            chosen.append("budget: " + ", ".join(f"{unit} {limit:g}" for unit, limit in self.budget.items()))
        return chosen or ["plain decoding, as the server is configured"]

    def listed(self) -> list[str]:
        """What there is, by slot."""
        slots = {slot: [name for name, its in self.known.items() if its == slot] for slot in SLOTS}
        lines = [f"{slot}: {', '.join(sorted(names))}" for slot, names in slots.items() if names]
        return [*lines, f"preset: {', '.join(sorted(self.presets))}"] if self.presets else lines


def read_object(text: str) -> dict[str, Any]:
    """Raises ChoiceError for what is no JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ChoiceError(f"parameters must be a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise ChoiceError('parameters must be a JSON object, such as {"k": 40}')
    return value


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_words(one) for one in value)
    if not isinstance(value, dict):
        return str(value)
    parameters = ", ".join(
        f"{name} {given if isinstance(given, str) else json.dumps(given)}"
        for name, given in value.items()
        if name != "type"
    )
    name = str(value.get("type", ""))
    return f"{name}: {parameters}" if parameters else name
