"""DRY, "don't repeat yourself": the longer a repetition already is, the more its continuation costs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field
from torch import Tensor

from strategies.errors import InvalidRequest
from strategies.sampling.transform import Stage, Transform, scatter
from strategies.text import Tokenizer

if TYPE_CHECKING:
    from strategies.sampling.row import Row

LONGEST = 50
"""Matches count up to this many tokens, as in text-generation-webui."""
MOST_OCCURRENCES = 1024
"""How many earlier occurrences are looked at, the latest ones first: bounds the cost of a text of one token."""
LARGEST_PENALTY = 1e30
"""Keeps float32 logits finite, also after division by a low temperature."""


class Breakers:
    """Strings over which no repetition reaches: a token breaks when its text completes one of them.

    A breaker may begin in earlier tokens, so where token borders fall doesn't matter.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer | None) -> None:
        if strings and tokenizer is None:
            raise InvalidRequest("the model has no tokenizer to find sequence breakers with", "sequence_breakers")
        self._tokenizer = tokenizer
        self._strings = tuple(string.encode() for string in strings)
        self._longer = tuple(string for string in self._strings if len(string) > 1)
        self._overlap = max((len(string) - 1 for string in self._strings), default=0)
        self._inside: dict[int, bool] = {}

    def inside(self, token: int) -> bool:
        """Whether the token's own text has a breaker."""
        if self._tokenizer is None:
            return False
        known = self._inside.get(token)
        if known is None:
            text = self._tokenizer.token_bytes(token)
            known = self._inside[token] = any(string in text for string in self._strings)
        return known

    def push(self, tail: bytes, token: int) -> tuple[bool, bytes]:
        """Whether the token completes a breaker, given the bytes before it, and the bytes to give next time."""
        broken = self.inside(token)
        if not self._overlap or self._tokenizer is None:
            return broken, b""
        text = self._tokenizer.token_bytes(token)
        broken = broken or any(string in tail[-len(string) + 1 :] + text for string in self._longer)
        return broken, (tail + text)[-self._overlap :]


class Repetitions:
    """Where the end of a sequence has occurred before, and how far back each occurrence matches.

    allowed: shorter matches are not kept. last_n: how many of the latest tokens count, None for all.
    Positions count from the first token that ever counts. All grams of `allowed` tokens between breakers are indexed:
    `latest` has the position of a gram's last occurrence, `before` that of the one before the occurrence that ends at a
    position. What was indexed of the prompt is shared by all forks.
    """

    __slots__ = (
        "_before", "_breakers", "_gram", "_latest", "_prompt", "_prompt_before", "_prompt_latest", "_run", "_tail",
        "_tokens", "allowed", "last_n", "matches",
    )  # fmt: skip

    def __init__(self, allowed: int, last_n: int | None, breakers: Breakers, prompt: Sequence[int]) -> None:
        self.allowed, self.last_n = allowed, last_n
        self.matches: dict[int, int] = {}  # position -> length of the common suffix of the tokens up to there and all
        self._breakers = breakers
        self._gram: tuple[int, ...] = ()  # the last tokens, at most `allowed`, none beyond a breaker
        self._run = 0  # tokens since the last breaker
        self._tail = b""
        self._prompt: Sequence[int] = ()
        self._prompt_latest: Mapping[tuple[int, ...], int] = {}
        self._prompt_before: Sequence[int] = ()
        self._start_output()
        for token in prompt if last_n is None else prompt[max(0, len(prompt) - last_n) :]:
            self._index(token)
        self._prompt, self._prompt_latest, self._prompt_before = self._tokens, self._latest, self._before
        self._start_output()
        self._match()

    def _start_output(self) -> None:
        self._tokens: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}
        self._before: list[int] = []

    def advance(self, token: int) -> None:
        self._index(token)
        self._match()

    def fork(self) -> "Repetitions":
        copy = Repetitions.__new__(Repetitions)
        for name in Repetitions.__slots__:
            setattr(copy, name, getattr(self, name))
        copy._tokens, copy._latest, copy._before = self._tokens.copy(), self._latest.copy(), self._before.copy()
        return copy

    def continuations(self) -> dict[int, int]:
        """The longest match that each next token would continue; tokens with a breaker inside are free."""
        start = self._window_start()
        longest: dict[int, int] = {}
        for position, length in self.matches.items():
            token = self._token(position + 1)
            longest[token] = max(longest.get(token, 0), min(length, position - start + 1))
        return {token: length for token, length in longest.items() if not self._breakers.inside(token)}

    def _index(self, token: int) -> None:
        position = len(self._prompt) + len(self._tokens)
        self._tokens.append(token)
        broken, self._tail = self._breakers.push(self._tail, token)
        self._run = 0 if broken else self._run + 1
        self._gram = () if broken else (*self._gram, token)[-self.allowed :]
        if self._run < self.allowed:
            self._before.append(-1)
            return
        self._before.append(self._latest.get(self._gram, self._prompt_latest.get(self._gram, -1)))
        self._latest[self._gram] = position

    def _match(self) -> None:
        """Updates `matches`; a match one token earlier has grown by one, others are measured."""
        known, self.matches = self.matches, {}
        end = len(self._prompt) + len(self._tokens) - 1
        if end < 0 or self._run < self.allowed:
            return
        first = self._window_start() + self.allowed - 1
        position = self._position_before(end)
        while position >= first and len(self.matches) < MOST_OCCURRENCES:
            length = known.get(position - 1)
            self.matches[position] = self._measure(position, end) if length is None else min(length + 1, LONGEST)
            position = self._position_before(position)

    def _measure(self, position: int, end: int) -> int:
        """Length of the common suffix of the tokens up to `position` and up to `end`."""
        most = min(LONGEST, self._run, position + 1)
        length = self.allowed
        while length < most and self._token(position - length) == self._token(end - length):
            length += 1
        return length

    def _window_start(self) -> int:
        count = len(self._prompt) + len(self._tokens)
        return 0 if self.last_n is None else max(0, count - self.last_n)

    def _token(self, position: int) -> int:
        output = position - len(self._prompt)
        return self._tokens[output] if output >= 0 else self._prompt[position]

    def _position_before(self, position: int) -> int:
        output = position - len(self._prompt)
        return self._before[output] if output >= 0 else self._prompt_before[position]


class DRY(Transform):
    """Subtracts multiplier * base ** (length - allowed_length) from the logit of each token that would continue a
    repetition of `length` >= allowed_length tokens; the longest one counts where a token continues several.

    The penalty of text-generation-webui and llama.cpp, over prompt and output. A repetition is a suffix of the tokens
    so far that also occurs earlier (overlapping itself is fine), inside the last `penalty_last_n` tokens, without a
    sequence breaker. A token whose text has a breaker in it ends repetitions and is never penalized.
    """

    name: ClassVar = "dry"
    slot: ClassVar = "penalty"
    stage: ClassVar = Stage.PENALTY
    rank: ClassVar = 5

    multiplier: Annotated[float, Field(ge=0, le=1e6, description="Penalty at the allowed length; 0 is off.")] = 0.8
    base: Annotated[float, Field(ge=1, le=1e6, description="Factor of the penalty for each further token.")] = 1.75
    allowed_length: Annotated[
        int, Field(ge=1, le=LONGEST, description="The shortest repetition, in tokens, whose continuation costs.")
    ] = 2
    penalty_last_n: Annotated[
        int, Field(ge=-1, description="How many of the latest tokens count; -1 is all of them, 0 is off.")
    ] = -1
    sequence_breakers: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=40)], ...],
        Field(strict=False, max_length=64, description="Strings that repetitions don't reach across."),
    ] = ("\n", ":", '"', "*")

    def start(self, row: "Row") -> Repetitions | None:
        if not self.multiplier or not self.penalty_last_n:
            return None
        last_n = None if self.penalty_last_n < 0 else self.penalty_last_n
        breakers = Breakers(self.sequence_breakers, row.tokenizer)
        return Repetitions(self.allowed_length, last_n, breakers, row.prompt_ids)

    def wants(self, row: "Row") -> bool:
        state = row.states.get(self.name)
        return isinstance(state, Repetitions) and bool(state.matches)

    def penalty(self, length: int) -> float:
        """What the continuation of a repetition of this length costs."""
        return min(self.multiplier * self.base ** (length - self.allowed_length), LARGEST_PENALTY)

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        index, tokens, penalty = scatter(
            (
                (i, token, stage.penalty(length))
                for i, (row, stage) in enumerate(zip(rows, stages, strict=True))
                for token, length in _repetitions(row).continuations().items()
            ),
            logits.device,
        )
        logits[index, tokens] -= penalty
        return logits


def _repetitions(row: "Row") -> Repetitions:
    state = row.states[DRY.name]
    assert isinstance(state, Repetitions)
    return state
