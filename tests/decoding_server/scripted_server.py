"""The server under test: our engine around a scripted model whose answers are written into the prompts.

The script is what stands before the first `|` of a completion's prompt, or the last user message of a chat. The model
answers with the script's own bytes, one token each, then ends. A first character changes that: `?` draws letters at
random for ever, `~` writes `z` for ever and slowly, `!` makes logits that are not numbers, `#` ends the engine thread.
A prompt without `|` is followed by random letters.

Run as a program, it serves the same model with the flags given (`key=value`) until it gets a signal.
"""

import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from decoding_server.config import load_config
from decoding_server.server import run
from models.scripted import ByteTokenizer, scripted_runtime
from models.torch_runtime.runtime import TorchRuntime

END, USER, ASSISTANT = 256, 258, 259
SLOW_STEP_SECONDS = 0.02
HEART = 260
"""A token of several characters, for scripts that are given as token ids."""

TOKENIZER = ByteTokenizer(pieces=[b"love", "\u2665".encode()[:2]])
LETTERS = range(ord("a"), ord("z") + 1)


def distribution(context: Sequence[int]) -> Tensor:
    """Logits of the token after `context`."""
    script, position = _script(list(context))
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    if not script or script[0] == ord("?"):
        logits[list(LETTERS)] = 30.0
    elif script[0] == ord("!"):
        logits[:] = float("nan")
    elif script[0] == ord("#"):
        raise SystemExit  # no Exception: the thread ends silently, as by a signal
    elif script[0] == ord("~"):
        time.sleep(SLOW_STEP_SECONDS)
        logits[ord("z")] = 30.0
    else:
        logits[script[position] if position < len(script) else END] = 30.0
    return logits


def _script(context: list[int]) -> tuple[list[int], int]:
    """The tokens to play, and how many have been played."""
    if ASSISTANT in context:
        answer = len(context) - context[::-1].index(ASSISTANT)
        before = context[: answer - 1]
        if USER not in before:
            return [], 0
        start = len(before) - before[::-1].index(USER)
        if END not in before[start:]:  # a draft tree's own tokens can spell half a chat
            return [], 0
        return before[start : before.index(END, start)], len(context) - answer
    if ord("|") in context:
        end = context.index(ord("|"))
        return context[:end], len(context) - end - 1
    return [], 0


def make_runtime(**options: int) -> TorchRuntime:
    return scripted_runtime(distribution, TOKENIZER, **options)


if __name__ == "__main__":
    flags = dict(argument.split("=", 1) for argument in sys.argv[1:])
    sys.exit(run(load_config(flags), make_runtime))
