"""Searches that ask what a partial answer is worth: which value function they get."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from strategies.errors import InvalidRequest
from strategies.search.search import Search

if TYPE_CHECKING:
    from strategies.scoring.value import ValueFunction

ValueKind = Literal["auto", "head", "prm", "self-eval", "http"]
PREFERENCE = ("head", "prm", "self-eval")
"""What "auto" takes, the first that is loaded: a head is free and calibrated; self-evaluation needs nothing."""


class ValuedSearch(Search):
    """Base of the searches with a value function."""

    value: Annotated[
        ValueKind,
        Field(
            description="What scores partial answers: a trained head, a process reward model, the model itself, the "
            "operator's verifier; auto takes the best that is loaded."
        ),
    ] = "auto"

    def value_kind(self, scorers: "Mapping[str, ValueFunction]") -> str:
        """The name of the value function to use."""
        if self.value != "auto":
            return self.value
        return next(
            (kind for kind in PREFERENCE if kind in scorers and getattr(scorers[kind], "automatic", True)), "self-eval"
        )

    def check(self, scorers: "Mapping[str, ValueFunction]") -> None:
        """Raises InvalidRequest for a value function that this server has not loaded."""
        kind = self.value_kind(scorers)
        if kind not in scorers:
            loaded = ", ".join(sorted(scorers)) or "none"
            raise InvalidRequest(
                f"the value function {kind!r} is not loaded; there are: {loaded}", "decoding.search.value"
            )
