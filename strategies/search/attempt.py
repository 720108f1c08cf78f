"""A reply that should hold a program, and a program that was evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from strategies.sandbox.outcome import Outcome, Result
from strategies.search.asking import Reply
from strategies.search.context import BudgetExhausted
from strategies.search.node import Node
from strategies.search.program_replies import normal_form, program_of

UNUSABLE = Result(Outcome.NOT_RUN, message="the reply held no complete program", behaviour="no program")


@dataclass(frozen=True, slots=True)
class Draft:
    """A reply that should hold a program. source: None if it doesn't."""

    reply: Reply
    source: str | None

    @property
    def cut_off(self) -> bool:
        """Whether the budget ended it before it held a program: nothing can be said of it then."""
        return self.source is None and self.reply.end == "budget"


@dataclass(slots=True, eq=False)
class Attempt:
    """A program with its results. number: order of evaluation. node: the answer that it would be, in the trace too.
    tried: what came of the inputs, where programs are compared by those."""

    number: int
    draft: Draft
    results: list[Result]
    node: Node
    depth: int
    key: str
    loads: bool
    tried: list[Result] = field(default_factory=list)
    score: float = 0.0
    solved: bool = False

    @property
    def program(self) -> str:
        return self.draft.source or self.draft.reply.text.rstrip() + "\n"

    @property
    def behaviour(self) -> list[str]:
        """Equal for programs that did the same on every test, or input."""
        return [result.behaviour for result in self.tried or self.results]


def drafted(reply: Reply) -> Draft:
    return Draft(reply, program_of(reply.text, cut=reply.end != "stop"))


def kept(drafts: Sequence[Draft]) -> list[int]:
    """The places of those that the budget did not cut off. Raises BudgetExhausted if it cut off all."""
    places = [place for place, draft in enumerate(drafts) if not draft.cut_off]
    if not places:
        raise BudgetExhausted("the budget is spent")
    return places


def key_of(draft: Draft) -> str:
    """Equal for programs that differ in white space and comments only, and for equal replies without a program: which
    are never equal to a program, even where the same text, not cut off, would have been one."""
    if draft.source is None:
        return f"\0{draft.reply.text}"
    return normal_form(draft.source) or draft.source
