"""The grammar-based repetition penalty as a stage of the pipeline (Dong et al. 2025, Rethinking Repetition Problems of
LLMs in Code Generation)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor

from strategies.errors import InvalidRequest
from strategies.sampling.grammar_repetition.explanation import explained
from strategies.sampling.grammar_repetition.lexemes import lexeme_index
from strategies.sampling.grammar_repetition.options import GrammarRepetitionOptions
from strategies.sampling.grammar_repetition.policy import Penalties, adjusted
from strategies.sampling.grammar_repetition.state import GrammarRepetitionState
from strategies.sampling.transform import Stage, Transform

if TYPE_CHECKING:
    from strategies.sampling.row import Row
    from strategies.text import Tokenizer


class RowState:
    """The detector of one sequence, and what it asks for at the next token, worked out once."""

    __slots__ = ("_current", "_known", "detector")

    def __init__(self, detector: GrammarRepetitionState) -> None:
        self.detector = detector
        self._known = False
        self._current: Penalties | None = None

    @property
    def current(self) -> Penalties | None:
        if not self._known:
            self._current, self._known = self.detector.penalties(), True
        return self._current

    def advance(self, token: int) -> None:
        self.detector.advance(token)
        self._known = False

    def fork(self) -> "RowState":
        return RowState(self.detector.fork())


class GrammarRepetition(GrammarRepetitionOptions, Transform):
    """Penalises the tokens that would begin another copy of a repeating line or statement of code (RPG, Dong et al.
    2025), as the program's grammar sees it, so that renamed loops are found and ordinary code is left alone."""

    name: ClassVar = "grammar"
    slot: ClassVar[Literal["penalty"]] = "penalty"
    stage: ClassVar = Stage.PENALTY
    rank: ClassVar = 30

    @classmethod
    def prepare(cls, tokenizer: "Tokenizer", device: torch.device) -> None:
        """Reads the vocabulary."""
        lexeme_index(tokenizer)

    def start(self, row: "Row") -> RowState:
        """Raises InvalidRequest without a tokenizer, and for a language whose grammar is not installed."""
        if row.tokenizer is None:
            raise InvalidRequest("the grammar penalty needs a tokenizer", "decoding.penalty")
        return RowState(GrammarRepetitionState(self, row.tokenizer, row.prompt_ids))

    def wants(self, row: "Row") -> bool:
        return cast(RowState, row.states[self.name]).current is not None

    def explain(self, row: "Row") -> dict[str, Any] | None:
        """The penalised tokens, and what repeats."""
        state = cast(RowState, row.states[self.name])
        if state.current is None or row.tokenizer is None:
            return None
        return {"stage": self.name, **explained(state.detector, state.current, row.tokenizer)}

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        for i, row in enumerate(rows):
            penalties = cast(RowState, row.states[cls.name]).current
            if penalties is not None:
                tokens = torch.tensor(list(penalties.factors), dtype=torch.int64, device=logits.device)
                factors = torch.tensor(list(penalties.factors.values()), dtype=logits.dtype, device=logits.device)
                logits[i, tokens] = adjusted(logits[i, tokens], factors, penalties.scale)
        return logits
