"""The grammar-based repetition penalty of one sequence: what to change in the logits of its next token."""

from collections.abc import Iterable, Sequence

from strategies.errors import InvalidRequest
from strategies.sampling.grammar_repetition import fences
from strategies.sampling.grammar_repetition.code_block import BLANKS, MAX_LINE, CodeBlock, Hit
from strategies.sampling.grammar_repetition.languages import LANGUAGES, Language, by_tag, grammar
from strategies.sampling.grammar_repetition.lexemes import LexemeIndex, lexeme_index
from strategies.sampling.grammar_repetition.options import GrammarRepetitionOptions
from strategies.sampling.grammar_repetition.policy import (
    Penalties,
    allowed_tokens,
    guarded_factor,
    paper_factor,
)
from strategies.sampling.grammar_repetition.prompt_text import ROLES, continued_text
from strategies.sampling.grammar_repetition.released import START_WORDS, ReleasedDetector, piece_of
from strategies.sampling.grammar_repetition.tandem import TandemDetector
from strategies.sampling.grammar_repetition.token_map import TokenMap
from strategies.text import Tokenizer

TOKEN_PERIOD = 256
"""Longest verbatim unit, in tokens."""


class GrammarRepetitionState:
    """Fed with the generated tokens in order; `penalties` answers for the next one.

    options: the request's parameters. tokenizer: gives the tokens' bytes; the text alone decides about lines,
    statements and copies, wherever token borders fall. prompt_ids: the whole prompt; `scope` says what of it counts.
    Raises InvalidRequest when the language's grammar is not installed.
    """

    __slots__ = (
        "_base",
        "_block",
        "_counted_from",
        "_fence",
        "_index",
        "_language",
        "_length",
        "_line_start",
        "_map",
        "_options",
        "_pending",
        "_released",
        "_strip",
        "_structural",
        "_tail",
        "_tokenizer",
        "_tokens",
    )

    def __init__(self, options: GrammarRepetitionOptions, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._options, self._tokenizer = options, tokenizer
        self._released = ReleasedDetector() if options.mode == "released" else None
        self._language: Language | None = None
        self._block: CodeBlock | None = None
        self._fence: fences.Fence | None = None
        self._tokens: TandemDetector | None = None
        self._map = TokenMap()
        self._length = self._line_start = self._base = self._counted_from = 0
        self._tail = b""
        self._pending = False
        self._strip = tokenizer.strips_leading_space  # the space that such a tokenizer puts before a text
        self._structural: dict[int, float] | None = None
        self._index: LexemeIndex | None = None
        if self._released is not None:
            for token in prompt_ids:
                self._released.push(token, piece_of(tokenizer.token_bytes(token)))
        elif self.idle:
            return
        elif options.language == "off":
            self._start_tokens(prompt_ids if options.scope == "all" else ())
        else:
            self._start(prompt_ids)

    @property
    def idle(self) -> bool:
        """Whether the options are the identity (lambda = 1)."""
        return self._options.factor == 1

    @property
    def pending(self) -> bool:
        """Whether the next token may begin a line of code: the text since the last line end is blank, and not in a
        string or block comment."""
        return self._pending

    @property
    def suspended(self) -> bool:
        """Whether the last line end is inside a string or block comment."""
        return self._block is not None and self._block.suspended

    @property
    def language(self) -> str | None:
        """The language of the code that the text ends in, or None outside code."""
        return None if self._block is None else self._block.language.name

    @property
    def hits(self) -> tuple[Hit, ...]:
        """What repeats at the last line end, line level first."""
        return () if self._block is None else self._block.hits

    def latest_copy(self, hit: Hit) -> bytes:
        """The text of the last copy of what repeats."""
        block = self._block
        return b"" if block is None or not hit.starts else block.text(hit.starts[0], self._line_start - self._base)

    def verbatim_repeat(self) -> tuple[int, int, bytes] | None:
        """(period in tokens, copies, text of one) of the tokens that repeat at the end, or None."""
        repeat = None if self._tokens is None else self._tokens.hit()
        if self._tokens is None or repeat is None:
            return None
        period, copies = repeat
        return period, copies, b"".join(map(self._tokenizer.token_bytes, self._tokens.block(period)))

    def advance(self, token: int) -> None:
        """Appends one generated token. Special tokens are no text and are passed over."""
        if self._released is not None:
            self._released.push(token, piece_of(self._tokenizer.token_bytes(token)))
            return
        if self.idle or self._tokenizer.is_special(token):
            return
        if self._tokens is not None:
            self._tokens.push(token)
        if self._options.language != "off":
            self._text(token, self._tokenizer.token_bytes(token))

    def penalties(self) -> Penalties | None:
        """The changes to the logits of the next token, or None for none. Does not change the state."""
        if self.idle:
            return None
        if self._released is not None:
            return self._released_penalties(self._released)
        factors = self._structural_factors()
        if factors and self._options.eos_factor != 1:
            factors = factors | dict.fromkeys(self._tokenizer.eos_token_ids, self._options.eos_factor)
        verbatim = self._verbatim()
        if verbatim is not None:
            token, factor = verbatim
            factors = factors | {token: min(factor, factors.get(token, 1.0))}
        return Penalties(self._options.space, factors) if factors else None

    def fork(self) -> "GrammarRepetitionState":
        """An independent copy, for another continuation of the same tokens."""
        copy = GrammarRepetitionState.__new__(GrammarRepetitionState)
        for name in GrammarRepetitionState.__slots__:
            setattr(copy, name, getattr(self, name))
        copy._map = self._map.fork()
        copy._block = None if self._block is None else self._block.fork()
        copy._tokens = None if self._tokens is None else self._tokens.fork()
        copy._released = None if self._released is None else self._released.fork()
        return copy

    def _start(self, prompt_ids: Sequence[int]) -> None:
        options = self._options
        self._index = lexeme_index(self._tokenizer)
        if options.language != "auto":
            self._language = LANGUAGES[options.language]
        grammar(self._language or LANGUAGES["python"])  # tells now, not in mid-answer, that nothing is installed
        ids, conversation = continued_text(prompt_ids, self._tokenizer)
        pieces = [self._tokenizer.token_bytes(token) for token in ids]
        text = b"".join(pieces)
        if self._strip and text:
            self._strip = False
            if text.startswith(b" "):
                pieces[0], text = pieces[0][1:], text[1:]
        for token, piece in zip(ids, pieces, strict=True):
            self._map.append(token, self._length)
            self._length += len(piece)
        generated = options.scope == "generated" or (options.scope == "auto" and conversation)
        self._counted_from = len(text) if generated else 0
        first, newline, _ = text.partition(b"\n")
        if conversation and newline and first.strip(BLANKS) in ROLES:
            self._line_start = len(first) + 1  # the template's role, no part of the answer
        self._open(self._language)
        self._lines(text[self._line_start :], prompt=True)
        if self._block is not None:
            self._block.start()
        self._line_end()
        since = max(self._base, self._counted_from)
        self._start_tokens(token for token, start in self._map.since(since))

    def _start_tokens(self, tokens: Iterable[int]) -> None:
        """Starts the token detector afresh, where it applies, with the tokens seen there already."""
        options = self._options
        wanted = options.mode == "guarded" and options.tokens and (self._block is not None or options.language == "off")
        self._tokens = TandemDetector(TOKEN_PERIOD) if wanted else None
        if self._tokens is not None:
            self._tokens.extend(list(tokens))

    def _text(self, token: int, data: bytes) -> None:
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        self._map.append(token, self._length)
        self._length += len(data)
        if b"\n" in data:
            self._lines(self._tail + data)
            self._line_end()
            return
        if len(self._tail) <= 2 * MAX_LINE:  # more is never looked at
            self._tail += data
        if self._pending and data.strip(BLANKS):
            self._pending = False

    def _lines(self, text: bytes, prompt: bool = False) -> None:
        """Takes the complete lines of a text that ends at `_length`; the rest becomes the tail.

        Hits are brought up to date after each line, so that they do not depend on how many lines one token ends; those
        of a prompt by `CodeBlock.start` alone.
        """
        start, offset = 0, self._length - len(text)
        while (end := text.find(b"\n", start) + 1) > 0:
            self._line_start = offset + end
            line = text[start:end]
            block = self._block
            if not self._fenced(line) and block is not None:
                if prompt:
                    block.scan(line)
                else:
                    block.add(line)
                    block.refresh()
            start = end
        self._tail = text[start:]

    def _fenced(self, line: bytes) -> bool:
        """Whether the line opens or closes a fence; it then begins another stretch of text."""
        if self._fence is not None:
            if not fences.closes(line, self._fence):
                return False
            self._fence = None
            self._open(None)
            return True
        if self._block is not None and self._block.suspended:
            return False
        self._fence = fences.opening(line)
        if self._fence is None:
            return False
        self._open(self._fenced_language(self._fence.tag))
        return True

    def _fenced_language(self, tag: str) -> Language | None:
        """The language of a fenced block: the tag's; the request's if there is no tag, or none if they disagree."""
        if self._language is not None:
            return self._language if not tag or by_tag(tag) is self._language else None
        language = by_tag(tag)
        if language is not None:
            try:
                grammar(language)
            except InvalidRequest:
                return None
        return language

    def _open(self, language: Language | None) -> None:
        """Begins a stretch of text in a language, or of no code, at `_line_start`. Nothing before it counts."""
        self._base = self._line_start
        if language is None:
            self._block = None
        else:
            counted_from = max(0, self._counted_from - self._base)
            self._block = CodeBlock(language, self._options.levels, self._options.max_period, counted_from)
        self._start_tokens(())

    def _line_end(self) -> None:
        block = self._block
        self._pending = (
            block is not None and not block.exhausted and not block.suspended and not self._tail.strip(BLANKS)
        )
        self._structural = None

    def _structural_factors(self) -> dict[int, float]:
        block, index = self._block, self._index
        if block is None or index is None or block.exhausted:
            return {}
        if self._pending:
            if self._structural is None:
                self._structural = self._factors(block, index)
            return self._structural
        if not index.jumping or block.suspended or not self._tail or not self._may_hit(block):
            return {}
        # Some tokens end this line and begin the next: judge those as if the line ended here.
        ended = self.fork()
        ended._length += 1
        ended._lines(ended._tail + b"\n")
        ended._line_end()
        return {token: f for token, f in ended._structural_factors().items() if token in index.jumping}

    def _may_hit(self, block: CodeBlock) -> bool:
        """Whether one more line could bring a penalty; cheap, where a closer look would cost a parse."""
        if "statement" in self._options.levels:
            return True
        allowed = self._options.allowed_copies
        lowest = min(allowed.code, allowed.declarations, allowed.literals, allowed.imports)
        return block.could_repeat() > (1 if self._options.mode == "paper" else lowest)

    def _factors(self, block: CodeBlock, index: LexemeIndex) -> dict[int, float]:
        """Factors of the tokens that would begin another copy; of several hits on a token the strongest."""
        factors: dict[int, float] = {}
        for hit in block.hits:
            factor = self._factor(hit)
            if factor == 1:
                continue
            tokens = set(index.starting_with(hit.lexeme)) if hit.lexeme is not None else set()
            tokens.update(self._observed(block, hit))
            for token in tokens:
                factors[token] = min(factor, factors.get(token, 1.0))
        return factors

    def _factor(self, hit: Hit) -> float:
        options = self._options
        if options.mode == "paper":
            return paper_factor(hit.copies, options.factor)
        allowed = options.allowed_copies
        copies = allowed.statements if hit.level == "statement" else int(getattr(allowed, hit.context))
        return guarded_factor(hit.copies, copies, options.factor, options.cap)

    def _observed(self, block: CodeBlock, hit: Hit) -> set[int]:
        """The tokens that began the copies: those that hold the first byte, with nothing but blanks before it."""
        tokens: set[int] = set()
        for start in hit.starts:
            found = self._map.covering(self._base + start)
            if found is not None:
                token, begin = found
                if not block.text(max(0, begin - self._base), start).strip(BLANKS):
                    tokens.add(token)
        return tokens

    def _verbatim(self) -> tuple[int, float] | None:
        """The token that would continue a verbatim repeat, and its factor."""
        repeat = None if self._tokens is None else self._tokens.hit()
        if self._tokens is None or repeat is None:
            return None
        period, copies = repeat
        options, allowed = self._options, self._options.allowed_copies
        if copies <= min(allowed.tokens, allowed.single_token):
            return None
        unit = b"".join(map(self._tokenizer.token_bytes, self._tokens.block(period)))
        inside = self._block is not None and not self._block.exhausted and self._block.within_literal(self._tail)
        limit = allowed_tokens(period, unit, inside, allowed)
        factor = guarded_factor(copies, limit, options.factor, options.cap)
        return None if factor == 1 else (self._tokens.next_symbol(period), factor)

    def _released_penalties(self, released: ReleasedDetector) -> Penalties | None:
        exponents = released.exponents()
        if not exponents:
            return None
        factors = {token: self._options.factor**exponent for token, exponent in exponents.items()}
        last = next(reversed(exponents))
        if self._tokenizer.decode([last], skip_special_tokens=False) in START_WORDS:
            boost = self._options.eos_factor ** exponents[last]
            for token in self._tokenizer.eos_token_ids:
                factors[token] = factors.get(token, 1.0) * boost
        factors = {token: factor for token, factor in factors.items() if factor != 1}
        return Penalties("raw", factors) if factors else None
