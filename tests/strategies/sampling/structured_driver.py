"""Drives a structure with random and hostile "models" through the real pipeline, one token at a time."""

import random
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from models.scripted import ByteTokenizer
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.pipeline import faulty_rows, process
from strategies.sampling.row import Row
from strategies.sampling.structured import compile_structure
from strategies.sampling.structured_grammar import Spec
from strategies.sampling.transform import Transform
from strategies.text import Tokenizer

BYTES = ByteTokenizer()
PATIENCE = 40
"""Tokens after which a model begins to prefer what ends strings, numbers, lists and objects."""
CLOSING = (b'"', b"}", b"]", b",", b"n", b"f", b"0", b"@", b"a", b"b")
TEMPTING = (b" ", b"\n", b"\t", b"\\", b"u", b"/", b"\xff", b"\xc3", b"-", b".", b"e", b'"', b"<|user|>")


def row_of(
    spec: Spec,
    tokenizer: Tokenizer = BYTES,
    *,
    others: Sequence[Transform] = (),
    temperature: float = 1.0,
    stopping: StopConditions | None = None,
) -> Row:
    generation = Generation(
        prompt=[0],
        sampling=SamplingParameters(temperature, (*others, compile_structure(spec, tokenizer, "spec"))),
        stopping=StopConditions() if stopping is None else stopping,
    )
    return Row(generation, tokenizer.eos_token_ids, tokenizer)


def allowed(row: Row, width: int = 0) -> set[int]:
    """Tokens that can be drawn next, from logits of that width (the vocabulary's by default)."""
    assert row.tokenizer is not None
    logits = process(torch.zeros(1, width or row.tokenizer.vocab_size), [row])[0]
    return set(torch.isfinite(logits).nonzero()[:, 0].tolist())


def push(row: Row, data: bytes) -> None:
    for byte in data:
        row.append(byte)


def after(spec: Spec, data: bytes, tokenizer: Tokenizer = BYTES) -> set[int]:
    """What may follow these bytes."""
    row = row_of(spec, tokenizer)
    push(row, data)
    return allowed(row)


@cache
def ids(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Bytes -> the first token that stands for them."""
    return {tokenizer.token_bytes(token): token for token in reversed(range(tokenizer.vocab_size))}


class Writer:
    """A model without sense: normal logits, of which the largest is taken; a hostile one likes what JSON mostly
    forbids. Once their patience is over they end where they may, and mostly prefer what leads there."""

    def __init__(self, tokenizer: Tokenizer, seed: int, *, hostile: bool = False) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.tokenizer = tokenizer
        self.chance = random.Random(seed)
        self.patience = self.chance.randrange(PATIENCE)
        table = ids(tokenizer)  # type: ignore[arg-type]  # a protocol can't say that it is hashable
        self.closing = [(table[text], 4.0 * (len(CLOSING) - i)) for i, text in enumerate(CLOSING) if text in table]
        self.tempting = [table[text] for text in TEMPTING if text in table] if hostile else []

    def logits(self, written: int) -> Tensor:
        logits = torch.randn(1, self.tokenizer.vocab_size, generator=self.random) * 2
        logits[0, self.tempting] += 5.0
        if written > self.patience:
            for token, bonus in self.closing:
                logits[0, token] += bonus * self.chance.randrange(2)
            logits[0, sorted(self.tokenizer.eos_token_ids)] += 60.0
        return logits


def write(row: Row, writer: Writer, limit: int = 1500) -> bytes:
    """The bytes of one finished output; the pipeline must never leave nothing to draw."""
    assert row.tokenizer is not None
    output = b""
    for written in range(limit):
        logits = process(writer.logits(written), [row])
        assert not bool(faulty_rows(logits)[0]), output
        token = int(logits.argmax())
        row.append(token)
        if token in row.tokenizer.eos_token_ids:
            return output
        assert not row.tokenizer.is_special(token)
        output += row.tokenizer.token_bytes(token)
    raise AssertionError(f"no end after {limit} tokens: {output!r}")
