"""Structured output: tokens that would leave the language of a schema, regular expression or grammar are masked.

The language is matched by llguidance (Rust; an Earley parser over a lexer of regular-expression derivatives). Masks are
exact: a token is allowed if and only if the text with its bytes can still be completed.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np
import torch
from llguidance import LLMatcher
from pydantic import InstanceOf
from pydantic.json_schema import SkipJsonSchema
from torch import Tensor

from strategies.sampling.structured_compiler import CompiledGrammar, compile_grammar, executor
from strategies.sampling.structured_grammar import Spec, lark_of
from strategies.sampling.transform import Stage, Transform
from strategies.text import Tokenizer

if TYPE_CHECKING:
    from strategies.sampling.row import Row

log = logging.getLogger(__name__)


class StructureState:
    """Where one sequence stands in the grammar. fault: why it can't go on, if a token was forced on it that the grammar
    refuses, or a limit was met; its row is then masked altogether, and so fails alone.

    A refused token is nothing to warn of: drafts that were copied from the context are refused all the time, and what
    comes after them is never reached."""

    __slots__ = ("fault", "matcher", "tokens")

    def __init__(self, matcher: LLMatcher, tokens: int, fault: str | None = None) -> None:
        self.matcher, self.tokens, self.fault = matcher, tokens, fault

    def advance(self, token: int) -> None:
        if self.fault is not None:
            return
        if not 0 <= token < self.tokens:
            self.fault = f"token {token} is not in the vocabulary"
            return
        valid = self.matcher.validate_tokens([token])  # 0 also for an end of sequence, which may be consumed
        if not self.matcher.consume_token(token):
            if valid:
                self.fail(self.matcher.get_error())
            else:
                self.fault = f"the grammar refuses token {token}"

    def fork(self) -> "StructureState":
        return StructureState(self.matcher.deep_copy(), self.tokens, self.fault)

    def fail(self, reason: str) -> None:
        self.fault = reason.strip().splitlines()[0] if reason.strip() else "unknown"
        log.warning("a structured output can't go on: %s", self.fault)


class Structure(Transform):
    """Masks what a compiled grammar doesn't allow; end-of-sequence ids are allowed exactly where it may end.

    Made by `compile_structure`, once per request; all its rows share it and go their own ways.
    """

    name: ClassVar = "structure"
    stage: ClassVar = Stage.STRUCTURE

    grammar: SkipJsonSchema[InstanceOf[CompiledGrammar]]

    def encoded(self) -> str:
        return self.grammar.lark

    @classmethod
    def decoded(cls, text: str, tokenizer: Tokenizer) -> Self:
        """Compiles the grammar again, without a trial: the one who encoded it has tried it."""
        return cls(grammar=compile_grammar(text, tokenizer, trial=False, param=None))

    def start(self, row: "Row") -> StructureState:
        return StructureState(self.grammar.start(), self.grammar.tokens)

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        states = [cast(StructureState, row.states[cls.name]) for row in rows]
        width = max(stage.grammar.words for stage in stages)
        masks = torch.zeros(len(rows), width, dtype=torch.int32)
        _fill(masks, states, stages)
        banned = unpacked(~masks, logits.device)
        known = min(banned.shape[1], logits.shape[1])
        logits[:, :known].masked_fill_(banned[:, :known], float("-inf"))
        logits[:, known:] = float("-inf")
        return logits


def compile_structure(spec: Spec, tokenizer: Tokenizer, param: str | None = None) -> Structure:
    """The transform that holds an output to `spec`. Pure but for its caches. May block for seconds: run it in a thread.

    Raises InvalidRequest(param) for what is malformed, too complex, impossible, or not supported, with the reason.
    """
    lark, risky = lark_of(spec, tokenizer.special_token_ids, param)
    return Structure(grammar=compile_grammar(lark, tokenizer, trial=risky, param=param))


def unpacked(masks: Tensor, device: torch.device) -> Tensor:
    """Bits of int32 [R, W], the lowest first, as bool [R, 32 W] on a device."""
    packed = masks.view(torch.uint8)
    if device.type == "cpu":  # numpy is ten times faster than torch here, and needs no second thread
        return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, bitorder="little").view(np.bool_))
    return unpacked_by_shifts(packed.to(device))


def unpacked_by_shifts(packed: Tensor) -> Tensor:
    """Bits of uint8 [R, B], the lowest first, as bool [R, 8 B]; on any device, so that one eighth is copied to it."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(1).bool()


def _fill(masks: Tensor, states: Sequence[StructureState], stages: Sequence[Structure]) -> None:
    """Writes each row's mask, one bit per token, int32 [R, W]; a row at fault gets none."""
    alive = [i for i, state in enumerate(states) if state.fault is None]
    size = masks.element_size()
    same_width = all(stage.grammar.words == masks.shape[1] for stage in stages)
    if len(alive) > 1 and same_width:
        pairs = [(states[i].matcher, i) for i in alive]
        executor().unsafe_compute_mask_ptr(pairs, masks.data_ptr(), masks.shape[1] * size, len(masks))
    else:
        for i in alive:
            states[i].matcher.unsafe_compute_mask_ptr(masks[i].data_ptr(), stages[i].grammar.words * size)
    for i in alive:
        if states[i].matcher.is_error():
            states[i].fail(states[i].matcher.get_error())
            masks[i] = 0
