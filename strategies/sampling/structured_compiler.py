"""Compiled grammars: the vocabulary handed to llguidance, limits that a hostile grammar meets, and bounded caches."""

import json
import subprocess
import sys
import threading
from collections import OrderedDict
from functools import cache
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from strategies.errors import InvalidRequest
from strategies.text import Tokenizer

LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
"""llguidance's units: fuel is about 15-50 thousand a millisecond, a lexer state about 2 kB. A row that runs into one
while generating fails alone."""
TRIAL_SECONDS = 10.0
TRIAL_BYTES = 4 << 30
CACHED_GRAMMARS = 32
PROBED_STEPS = 3
NOTHING_FITS = "NoExtension"
"""How the library calls a state from which no text leads on."""

TRIAL = """
import json, sys
task = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (task["bytes"], task["bytes"]))
    resource.setrlimit(resource.RLIMIT_CPU, (task["seconds"], task["seconds"]))
except (ImportError, ValueError, OSError):
    pass
from llguidance import LLMatcher, LLParserLimits
limits = LLParserLimits(**task["limits"], precompute_large_lexemes=False, verbose_errors=False)
json.dump(LLMatcher.validate_grammar(task["grammar"], None, limits=limits), sys.stdout)
"""


class CompiledGrammar:
    """A grammar over one vocabulary. `matcher` is its start state; rows take copies.

    lark: what it was compiled from. tokens: size of the vocabulary. words: int32 words of a mask.
    """

    def __init__(self, matcher: LLMatcher, lark: str, vocab_size: int) -> None:
        self._matcher = matcher
        self.lark = lark
        self._lock = threading.Lock()
        self.tokens = vocab_size
        self.words = (vocab_size + 31) // 32

    def start(self) -> LLMatcher:
        """A matcher at the beginning, independent of all others. Safe from any thread."""
        with self._lock:
            return self._matcher.deep_copy()


class _Vocabulary:
    """A converted tokenizer and the grammars compiled for it, the least recently used dropped."""

    def __init__(self, tokenizer: Tokenizer, eos: list[int]) -> None:
        self.library = _convert(tokenizer, eos)
        self.grammars: OrderedDict[str, CompiledGrammar] = OrderedDict()


_vocabularies: WeakKeyDictionary[Tokenizer, _Vocabulary] = WeakKeyDictionary()
_lock = threading.Lock()
"""Guards both caches; conversion runs under it, so that concurrent requests do not convert twice."""


def compile_grammar(lark: str, tokenizer: Tokenizer, *, trial: bool, param: str | None) -> CompiledGrammar:
    """The compiled grammar, from the cache if it was compiled lately. Blocks for up to TRIAL_SECONDS.

    trial: first compile it in a process of its own, which can be stopped. Raises InvalidRequest(param) with the
    library's reason, or if no text at all fits.
    """
    vocabulary = _vocabulary(tokenizer, param)
    with _lock:
        found = vocabulary.grammars.get(lark)
        if found is not None:
            vocabulary.grammars.move_to_end(lark)
            return found
    if trial:
        _try_elsewhere(lark, param)
    limits = LLParserLimits(**LIMITS, precompute_large_lexemes=False, verbose_errors=False)
    matcher = LLMatcher(vocabulary.library, lark, log_level=0, limits=limits)
    if reason := matcher.get_error() or _first_steps(matcher.deep_copy(), frozenset(tokenizer.eos_token_ids)):
        raise _refusal(reason, param)
    compiled = CompiledGrammar(matcher, lark, tokenizer.vocab_size)
    with _lock:
        vocabulary.grammars[lark] = compiled
        while len(vocabulary.grammars) > CACHED_GRAMMARS:
            vocabulary.grammars.popitem(last=False)
    return compiled


@cache
def executor() -> LLExecutor:
    """The library's thread pool, for masks of several rows at once."""
    return LLExecutor()


def _vocabulary(tokenizer: Tokenizer, param: str | None) -> _Vocabulary:
    eos = sorted(token for token in tokenizer.eos_token_ids if 0 <= token < tokenizer.vocab_size)
    if not eos:
        raise InvalidRequest("the model has no end-of-sequence token, which structured output needs", param)
    with _lock:
        known = _vocabularies.get(tokenizer)
        if known is None:
            known = _vocabularies[tokenizer] = _Vocabulary(tokenizer, eos)
        return known


class _Tokens:
    """What TokenizerWrapper reads. Special tokens get their names, but are marked, so they never match text."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos: list[int]) -> None:
        self.eos_token_id = eos[0]
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        special = {token for token in range(tokenizer.vocab_size) if tokenizer.is_special(token)}
        self.special_token_ids = sorted(special | set(eos))

    def __call__(self, text: bytes) -> list[int]:
        raise AssertionError("nothing is ever tokenized: grammars are compiled without forced tokens")


def _convert(tokenizer: Tokenizer, eos: list[int]) -> LLTokenizer:
    # A wrapper without the tokenizer itself, which the weak cache must not keep alive.
    return LLTokenizer(TokenizerWrapper(_Tokens(tokenizer, eos)), eos_token=eos)


def _try_elsewhere(lark: str, param: str | None) -> None:
    """Compiles the grammar in a process with bounded time and memory. Raises InvalidRequest if that does not end well.

    The library bounds the size of what it builds, but not the time some regular expressions take (intersections).
    """
    task = {"grammar": lark, "limits": LIMITS, "seconds": int(TRIAL_SECONDS), "bytes": TRIAL_BYTES}
    too_complex = InvalidRequest("the structure is too complex to be compiled in bounded time and memory", param)
    try:
        outcome = subprocess.run(
            [sys.executable, "-I", "-c", TRIAL],
            input=json.dumps(task).encode(),
            capture_output=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise too_complex from None
    if outcome.returncode:
        raise too_complex
    reason = json.loads(outcome.stdout)
    if reason and not reason.startswith("WARNING"):
        raise _refusal(reason, param)


def _first_steps(matcher: LLMatcher, eos: frozenset[int]) -> str:
    """Why the first tokens can't be generated, if so: some limits are met only there."""
    for _ in range(PROBED_STEPS):
        mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        if matcher.is_error():
            return matcher.get_error()
        allowed = np.flatnonzero(mask)
        text = next((int(token) for token in allowed if int(token) not in eos), None)
        if text is None:
            return "" if len(allowed) else NOTHING_FITS
        if not matcher.consume_token(text):
            return matcher.get_error()
    return ""


def _refusal(reason: str, param: str | None) -> InvalidRequest:
    """The library's reason in one line, without the excerpt of the translated grammar that follows it."""
    if reason.startswith(NOTHING_FITS):
        return InvalidRequest("no text that the model could write fits the structure", param)
    lines = reason.strip().splitlines() or ["it can't be compiled"]
    # The parser of regular expressions draws a picture and then says `error: reason`.
    line = next((f"invalid regular expression: {x.strip()[7:]}" for x in lines if x.strip()[:7] == "error: "), lines[0])
    line = line.rpartition("failed to compile JSON schema: ")[2].replace("<non-verbose/>", "").strip()
    return InvalidRequest(f"the structure is not supported: {line[:300]}", param)
