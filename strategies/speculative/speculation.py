"""What a request can ask for in `decoding.speculation`: a method, its shape, and who drafts.

Each class is one method; its fields are the request's parameters, so it has a JSON schema. A new method is one class
with a `Method`.
"""

from abc import abstractmethod
from functools import cache
from itertools import accumulate
from operator import mul
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from strategies.registry import register
from strategies.speculative.auto import LARGEST, NGRAM, Shape
from strategies.speculative.chain import Chain
from strategies.speculative.gumbel_top_k import ConstantBranching
from strategies.speculative.method import Method
from strategies.speculative.multi_draft import MultiDraft
from strategies.speculative.ngram import PromptLookup
from strategies.speculative.spectr import SpecTr
from strategies.speculative.stochastic_beam import StochasticBeam

MAX_NODES = 256
"""Most draft tokens of one round of one sequence."""

Length = Annotated[int, Field(ge=1, le=32, description="Draft tokens in a row: the depth of the tree.")]
Width = Annotated[int, Field(ge=1, le=32)]


class Speculation(BaseModel):
    """Base of all speculation methods.

    uses_draft: whether a draft distribution is needed; without one, tokens come from the context. couples: whether
    `coupled` is possible: the draft's Gumbel noise is then the one that plain decoding would sample the target with.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: ClassVar[str]
    uses_draft: ClassVar[bool] = True
    runtimes: ClassVar[tuple[str, ...]] = ("torch",)
    couples: ClassVar[bool] = True

    drafter: Annotated[
        str | None, Field(description="Who drafts: a draft model's name or early-exit; absent: the server's choice.")
    ] = None
    coupled: Annotated[
        bool,
        Field(description="A seeded request returns the same tokens with and without speculation; accepts less."),
    ] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        if "name" in cls.__dict__:
            register("speculation", cls.name, cls)

    @model_validator(mode="after")
    def _couples(self) -> "Speculation":
        if self.coupled and not self.couples:
            raise PydanticCustomError("value", "is not possible with this method", {"field": "coupled"})
        return self

    @model_validator(mode="after")
    def _bounded(self) -> "Speculation":
        nodes = self.nodes(self.length)
        if nodes > MAX_NODES:
            count = f"{nodes}" if nodes < 10**9 else "more than a billion"
            message = f"the tree would have {count} nodes; at most {MAX_NODES} are allowed"
            field = next((name for name in ("branching", "width") if name in type(self).model_fields), "length")
            raise PydanticCustomError("value", "{message}", {"message": message, "field": field})
        return self

    def resolved(self, *, seeded: bool) -> "Speculation":
        """With everything decided that depends on whether the request has a seed of its own."""
        return self

    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Most draft tokens of each level."""

    @abstractmethod
    def method(self, length: int) -> Method:
        """The method with at most `length` levels, 1 <= length <= self.length."""

    @property
    def length(self) -> int:
        """Levels of the tree."""
        return len(self.widths())

    def nodes(self, length: int) -> int:
        """Most draft tokens of a round of `length` levels."""
        return sum(self.widths()[:length])

    def draft_tokens(self, length: int) -> int:
        """Tokens that the draft computes in such a round: the root, and every level but the last."""
        return 1 + sum(self.widths()[: length - 1]) if self.uses_draft else 0


class RecursiveConstant(Speculation):
    """RSD-C: children without replacement, a constant number at every node of a level (Jeon et al. 2024)."""

    name: ClassVar = "rsd-c"

    branching: Annotated[
        tuple[Width, ...],
        Field(strict=False, min_length=1, max_length=32, description="Children of each node, level by level."),
    ] = (2, 2, 1)

    def widths(self) -> tuple[int, ...]:
        return tuple(accumulate(self.branching, mul))

    def method(self, length: int) -> Method:
        return ConstantBranching(self.branching[:length])


class RecursiveStochastic(Speculation):
    """RSD-S: a stochastic beam search drafts, so the width goes where the draft is unsure (Jeon et al. 2024)."""

    name: ClassVar = "rsd-s"

    width: Annotated[Width, Field(description="Draft tokens of each level.")] = 3
    length_: Annotated[Length, Field(alias="length")] = 3

    def widths(self) -> tuple[int, ...]:
        return (self.width,) * self.length_

    def method(self, length: int) -> Method:
        return StochasticBeam(self.width, length)


class ChainSpeculation(Speculation):
    """Ordinary speculative sampling: one path (Leviathan et al. 2023)."""

    name: ClassVar = "chain"

    length_: Annotated[Length, Field(alias="length")] = 4

    def widths(self) -> tuple[int, ...]:
        return (1,) * self.length_

    def method(self, length: int) -> Method:
        return ConstantBranching((1,) * length) if self.coupled else Chain(length)


class MultiDraftSpeculation(Speculation):
    """I.i.d. drafts at every node, verified in rounds, as in SpecInfer (Miao et al. 2023)."""

    name: ClassVar = "multi-draft"
    couples: ClassVar = False

    branching: Annotated[
        tuple[Width, ...],
        Field(strict=False, min_length=1, max_length=32, description="Draws at each node, level by level."),
    ] = (2, 2, 1)

    def widths(self) -> tuple[int, ...]:
        return tuple(accumulate(self.branching, mul))

    def method(self, length: int) -> Method:
        return MultiDraft(self.branching[:length])


class SpecTrSpeculation(Speculation):
    """Independent paths, accepted by k-SEQ (Sun et al. 2023)."""

    name: ClassVar = "spectr"
    couples: ClassVar = False

    width: Annotated[Width, Field(description="Paths.")] = 3
    length_: Annotated[Length, Field(alias="length")] = 3

    def widths(self) -> tuple[int, ...]:
        return (self.width,) * self.length_

    def method(self, length: int) -> Method:
        return SpecTr(self.width, length)


class NgramSpeculation(Speculation):
    """Prompt lookup: what followed the last tokens where they occurred before is the draft; no model is needed."""

    name: ClassVar = "ngram"
    uses_draft: ClassVar = False

    max_ngram: Annotated[int, Field(ge=1, le=16, description="Longest suffix that is looked up.")] = 3
    min_ngram: Annotated[int, Field(ge=1, le=16, description="Shortest suffix that is looked up.")] = 1
    length_: Annotated[Length, Field(alias="length")] = 8

    @model_validator(mode="after")
    def _range_of_ngrams(self) -> "NgramSpeculation":
        if self.min_ngram > self.max_ngram:
            raise PydanticCustomError("value", "must not be above max_ngram", {"field": "min_ngram"})
        return self

    def widths(self) -> tuple[int, ...]:
        return (1,) * self.length_

    def method(self, length: int) -> Method:
        return PromptLookup(self.max_ngram, self.min_ngram, length)


class AutoSpeculation(Speculation):
    """Picks a draft tree for every step, or none, from measured acceptance and measured cost of a step.

    With `coupled` (the default when the request has a seed) the seed decides the tokens, as without speculation.
    Without, the distribution is exact too, but equal seeds may give different tokens: which trees are drafted depends
    on timings.
    """

    name: ClassVar = "auto"
    uses_draft: ClassVar = False

    drafter: Annotated[
        str | None,
        Field(description="Who drafts: a draft model's name, early-exit or ngram; absent: whichever pays most."),
    ] = None
    coupled: Annotated[
        bool | None,
        Field(description="As for every method; absent: true if the request has a seed, else false."),
    ] = None  # type: ignore[assignment]  # here it has a third state
    max_nodes: Annotated[int, Field(ge=1, le=LARGEST, description="Most draft tokens of one round.")] = 32

    @property
    def couples_rounds(self) -> bool:
        """Whether rounds are coupled: what is not resolved is on the safe side."""
        return self.coupled is not False

    def resolved(self, *, seeded: bool) -> Speculation:
        return self if self.coupled is not None else self.model_copy(update={"coupled": seeded})

    def widths(self) -> tuple[int, ...]:
        return (self.max_nodes,)

    def method(self, length: int) -> Method:
        """There is none before a round. Raises TypeError."""
        raise TypeError("auto has no method of its own: it picks one for each round")

    def round_of(self, shape: Shape) -> Speculation:
        """The speculation of one round of this shape."""
        return _round_of(shape, self.couples_rounds)


@cache
def _round_of(shape: Shape, coupled: bool) -> Speculation:
    if shape.drafter == NGRAM:
        return NgramSpeculation.model_validate({"length": len(shape.branching), "coupled": coupled})
    return RecursiveConstant(branching=shape.branching, drafter=shape.drafter, coupled=coupled)
