"""No n-gram twice: bans the tokens that would repeat one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field
from torch import Tensor

from strategies.sampling.transform import Stage, Transform, ban, scatter

if TYPE_CHECKING:
    from strategies.sampling.row import Row

Prefix = tuple[int, ...]


class Followers:
    """Which tokens have followed each (size - 1)-gram of a sequence.

    Those of the prompt are shared by all forks. Those of the output are a linked list per prefix in two flat
    dictionaries: a token costs O(1) to add, and a fork copies no list.
    """

    __slots__ = ("_before", "_latest", "_prompt", "_recent", "size")

    def __init__(self, size: int, prompt: Sequence[int]) -> None:
        self.size = size
        self._latest: dict[Prefix, int] = {}  # prefix -> the follower that was added last
        self._before: dict[Prefix, int | None] = {}  # n-gram -> the follower added before its last token
        grams = zip(*(prompt[i:] for i in range(size)), strict=False)
        followers: dict[Prefix, set[int]] = {}
        for gram in grams:
            followers.setdefault(gram[:-1], set()).add(gram[-1])
        self._prompt: Mapping[Prefix, set[int]] = followers
        self._recent: Prefix = tuple(prompt[max(0, len(prompt) - size + 1) :])

    def advance(self, token: int) -> None:
        if len(self._recent) == self.size - 1:
            gram = (*self._recent, token)
            if gram not in self._before:
                self._before[gram] = self._latest.get(self._recent)
                self._latest[self._recent] = token
            self._recent = gram[1:]
        else:
            self._recent = (*self._recent, token)

    def fork(self) -> "Followers":
        copy = Followers.__new__(Followers)
        copy.size, copy._prompt, copy._recent = self.size, self._prompt, self._recent
        copy._latest, copy._before = self._latest.copy(), self._before.copy()
        return copy

    def __bool__(self) -> bool:
        """Whether the next token could repeat an n-gram."""
        return self._recent in self._latest or self._recent in self._prompt

    def __iter__(self) -> Iterator[int]:
        """The tokens that would; those in the prompt and in the output come twice."""
        yield from self._prompt.get(self._recent, ())
        token = self._latest.get(self._recent)
        while token is not None:
            yield token
            token = self._before[*self._recent, token]


class NoRepeatNgram(Transform):
    """Bans each token that would complete an n-gram of length `size` that prompt and output already hold.

    Paulus, Xiong, Socher 2018, section 2.5 (there for trigrams). Where that would leave no token, the row stays as it
    was.
    """

    name: ClassVar = "no_repeat_ngram"
    slot: ClassVar = "penalty"
    stage: ClassVar = Stage.BAN
    rank: ClassVar = 30

    size: Annotated[int, Field(ge=1, le=64, description="Length of the n-grams, in tokens, that occur at most once.")]

    def start(self, row: "Row") -> Followers:
        return Followers(self.size, row.prompt_ids)

    def wants(self, row: "Row") -> bool:
        return bool(_followers(row))

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        index, tokens, _ = scatter(
            ((i, token, 0.0) for i, row in enumerate(rows) for token in _followers(row)), logits.device
        )
        return ban(logits, index, tokens)


def _followers(row: "Row") -> Followers:
    state = row.states[NoRepeatNgram.name]
    assert isinstance(state, Followers)
    return state
