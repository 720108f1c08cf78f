"""What a logits transform is: one configured stage of a request's sampling pipeline.

The class is the strategy, its fields are the request's parameters (so it has a JSON schema), and `apply` runs it for
all rows that ask for it at once. A new transform is one file in this package, or a class behind an entry point of the
group `decoding_server.strategies`.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from strategies.registry import RUNTIMES, register
from strategies.sampling.support import Support

if TYPE_CHECKING:
    from strategies.sampling.row import Row
    from strategies.text import Tokenizer

Value = TypeVar("Value", float, int, bool)


class Stage(IntEnum):
    """The default order of the pipeline. Within a stage, transforms run in the order of their `rank`, then name.

    Structure comes before bans, so that a ban can yield to it but never the other way round; whatever reshapes
    probabilities (Bregman) comes last, since nothing may rescale them afterwards.
    """

    PENALTY = 1
    BIAS = 2
    STRUCTURE = 3
    BAN = 4
    TEMPERATURE = 5
    TRUNCATION = 6
    RESHAPE = 7


class TransformState(Protocol):
    """What a transform remembers of one sequence. It sees every generated token once, in order."""

    def advance(self, token: int) -> None: ...

    def fork(self) -> Self:
        """An independent copy: both go on with different tokens (draft trees, searches)."""


class Transform(BaseModel):
    """Base of all transforms.

    slot: the field of `decoding` under which requests name it. stage, rank: its place in the default order. greedy:
    whether it applies at temperature 0; what cannot change the most likely token doesn't. observes: its state depends
    on the distribution it was last applied to, so it can't follow the branches of a draft tree. runtimes: those that
    can run it.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True)

    name: ClassVar[str]
    slot: ClassVar[Literal["sampler", "penalty"] | None] = None
    stage: ClassVar[Stage]
    rank: ClassVar[int] = 100
    greedy: ClassVar[bool] = True
    observes: ClassVar[bool] = False
    runtimes: ClassVar[tuple[str, ...]] = RUNTIMES

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        if "name" in cls.__dict__:
            register("transform", cls.name, cls)

    @classmethod
    def order(cls) -> tuple[int, int, str]:
        """Sort key of the default order."""
        return (cls.stage, cls.rank, cls.name)

    @classmethod
    def prepare(cls, tokenizer: "Tokenizer", device: torch.device) -> None:
        """Called when a runtime starts: what would keep the first request waiting is built here."""
        return

    def encoded(self) -> str:
        """The transform as text, for a runtime whose pipeline runs in another process; see `decoded`."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def decoded(cls, text: str, tokenizer: "Tokenizer") -> Self:
        """The transform that `encoded` wrote."""
        return cls.model_validate_json(text)

    def start(self, row: "Row") -> TransformState | None:
        """State of a new sequence, kept in `row.states[name]`. Raises InvalidRequest for what this model can't do."""
        return None

    def token_ids(self) -> Iterable[int]:
        """Ids that the request names, which must be in the vocabulary."""
        return ()

    def wants(self, row: "Row") -> bool:
        """Whether there is anything to do at this step; rows that answer no pay nothing."""
        return True

    def explain(self, row: "Row") -> dict[str, Any] | None:
        """What a trace says of this stage at the row's next token, as JSON; None where there is nothing to say."""
        return None

    @classmethod
    @abstractmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        """Logits float32 [R, V] of exactly the rows that want it, with each row's parameters -> [R, V].

        May write in place. A logit of -inf stays -inf, and a row keeps at least one finite logit.
        """

    @classmethod
    def support(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Support | None:
        """What `apply` would leave of the rows, as the tokens that they keep, where these are few; else None.

        Asked for only where nothing follows and no row is greedy, so that a draw need not read the vocabulary again.
        Must not write.
        """
        return None


def column(values: Sequence[Value], logits: Tensor) -> Tensor:
    """Per-row parameters as [R, 1], of the logits' dtype and device."""
    return torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]


def scatter(pairs: Iterable[tuple[int, int, float]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(row, token, value) triples as index tensors int64 [N], int64 [N] and values float32 [N]."""
    listed = list(pairs)
    rows = torch.tensor([p[0] for p in listed], dtype=torch.int64, device=device)
    tokens = torch.tensor([p[1] for p in listed], dtype=torch.int64, device=device)
    values = torch.tensor([p[2] for p in listed], dtype=torch.float32, device=device)
    return rows, tokens, values


def keep_at_least(logits: Tensor, threshold: Tensor) -> Tensor:
    """Masks, in place, logits [R, V] below threshold [R, 1]. Ties with the threshold stay."""
    return logits.masked_fill_(logits < threshold, float("-inf"))


def ban(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Masks the (row, token) pairs, int64 [N] each, in place; a row that would be left without a token keeps its own.

    That is the pipeline's fallback: a ban yields to whatever restricted the row before it.
    """
    before = logits[rows, tokens]
    # A NaN or +inf stays, so that the row is still found faulty.
    logits[rows, tokens] = torch.where(before < float("inf"), float("-inf"), before)
    empty = torch.isneginf(logits.amax(-1))[rows]
    # Selected by a mask of pairs, not of rows: duplicates among the pairs restore the same value.
    logits[rows[empty], tokens[empty]] = before[empty]
    return logits
