"""The model behind the rows of the peer survey: it plays back exact tokens, or has a distribution with known values.

What stands before the first `|` of a completion's prompt, or the last user message of a chat, tells it what to do:

    #7...   plays script number 7, token by token, then ends (see `play`)
    ?...    draws lower-case letters at random, all equally likely, for ever
    %...    goes on in a made-up language: `language_logits` of the last token
    other   plays the text's own bytes, then ends

A first character `~` before any of these makes every distribution slow. A prompt without `|` is language.
"""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from models.scripted import ByteTokenizer, scripted_runtime
from models.torch_runtime.runtime import TorchRuntime

END, SYSTEM, USER, ASSISTANT = 256, 257, 258, 259
BAR = ord("|")
LETTERS = range(ord("a"), ord("z") + 1)
SLOW_SECONDS = 0.005

SPELLABLE = (b"XDEFGH", "a\N{GRINNING FACE}b\N{BLACK HEART SUIT}c".encode())
"""Texts that scripts may cut into tokens anywhere."""
SECOND_E = b"e"
"""One more token with the text of the byte `e`: two ids, one text."""


def _pieces() -> list[bytes]:
    cuts = {text[i:j] for text in SPELLABLE for i in range(len(text)) for j in range(i + 2, len(text) + 1)}
    return [SECOND_E, b"love", *sorted(cuts)]


TOKENIZER = ByteTokenizer(pieces=_pieces())
VOCAB_SIZE = TOKENIZER.vocab_size
E, SECOND_E_ID = ord("e"), 260
TOKEN_OF = {TOKENIZER.token_bytes(i): i for i in range(VOCAB_SIZE) if i != SECOND_E_ID}

_scripts: list[list[int]] = []


def play(*tokens: str | bytes | int) -> str:
    """The prompt (without `|`) or the message that makes the model emit these tokens, then its end-of-sequence id."""
    ids = [
        token if isinstance(token, int) else TOKEN_OF[token if isinstance(token, bytes) else token.encode()]
        for token in tokens
    ]
    _scripts.append(ids)
    return f"#{len(_scripts) - 1}"


def splits(text: bytes) -> list[list[bytes]]:
    """All 2^(n-1) ways to cut a text of n bytes into tokens."""
    ways: list[list[bytes]] = [[text[:1]]]
    for i in range(1, len(text)):
        byte = text[i : i + 1]
        ways = [[*way, byte] for way in ways] + [[*way[:-1], way[-1] + byte] for way in ways]
    return ways


@cache
def language_logits(last: int) -> Tensor:
    """Logits float32 [vocab] after a token: letters are likely, `|` and special tokens impossible."""
    logits = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(last)) * 2.0
    logits[[*LETTERS, SECOND_E_ID]] += 12.0
    logits[[BAR, END, SYSTEM, USER, ASSISTANT]] = float("-inf")
    return logits


def distribution(context: Sequence[int]) -> Tensor:
    """Logits of the token after `context`."""
    script, position = _instruction(list(context))
    if context[0] == ord("~") or script[:1] == [ord("~")]:
        time.sleep(SLOW_SECONDS)
        script = script[1:]
    if not script or script[0] == ord("%"):
        return language_logits(context[-1]).clone()
    logits = torch.full((VOCAB_SIZE,), -30.0)
    if script[0] == ord("?"):
        logits[list(LETTERS)] = 30.0
        return logits
    tokens = _script(script)
    logits[tokens[position] if position < len(tokens) else END] = 30.0
    return logits


def _script(script: list[int]) -> list[int]:
    if script[0] != ord("#"):
        return script
    number = bytes(token for token in script[1:] if token < 256).decode("utf-8", "replace").split(" ")[0]
    return _scripts[int(number)] if number.isdecimal() and int(number) < len(_scripts) else script


def _instruction(context: list[int]) -> tuple[list[int], int]:
    """The tokens that say what to do, and how many have been generated since."""
    if ASSISTANT in context:
        answer = len(context) - context[::-1].index(ASSISTANT)
        before = context[: answer - 1]
        if USER not in before:
            return [], 0
        start = len(before) - before[::-1].index(USER)
        return before[start : before.index(END, start)], len(context) - answer
    if BAR in context:
        end = context.index(BAR)
        return context[:end], len(context) - end - 1
    return [], 0


def draft(context: Sequence[int]) -> Tensor:
    """Logits of a smaller model: nearly `distribution`, and often wrong."""
    noise = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(len(context) * 1000 + context[-1]))
    logits = distribution(context)
    return 0.7 * logits + noise * (1.5 if logits.isinf().any() else 12.0)


def make_runtime(tokenizer: Any = TOKENIZER, **options: Any) -> TorchRuntime:
    """tokenizer: a `strategies.text.Tokenizer`. options: of `scripted_runtime`."""
    return scripted_runtime(distribution, tokenizer, **options)
