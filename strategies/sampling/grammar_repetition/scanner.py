"""Where a program stands lexically after each line: inside a string or block comment, and which brackets are open.

A parser could tell too, but only of a complete program: the scanner says how to complete one (the closers).
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from strategies.sampling.grammar_repetition.languages import Language, Quote

CLOSERS = {b"(": b")", b"[": b"]", b"{": b"}"}
INTERPOLATION = b"}`"
ENDIF = b"\n#endif\n"

MAX_DEPTH = 64
"""Open brackets beyond which parsing gets slow and the text is hardly a program."""

NESTED_COMMENT = 64
BEFORE_REGEX = re.compile(rb"(?:^|[-+*%=<>!&|^~?:;,({\[]|\b(?:return|typeof|case|in|of|delete|void|throw|else|do))\s*$")
REGEX_LITERAL = re.compile(rb"/(?![*/])(?:[^/\\\[\n]|\\[^\n]|\[(?:[^\]\\\n]|\\[^\n])*\])+/")


class Bracket(NamedTuple):
    """An open bracket, template interpolation or #if: what would close it, and its offset in the text."""

    closer: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Inside:
    """The string or block comment that the text ends in. depth: of nested comments."""

    closer: bytes
    quote: Quote | None
    depth: int = 1


@cache
def _code_pattern(language: Language) -> re.Pattern[bytes]:
    """Everything in code that changes the lexical state, or must be stepped over whole."""
    parts = [b"(?P<raw>%s)" % language.raw_opener] if language.raw_opener else []
    if language.preprocessor:
        parts.append(rb"(?P<directive>^[ \t]*#[ \t]*(?:if|el|endif)[a-z]*)")
    if language.skipped:
        parts.append(b"(?P<skip>%s)" % language.skipped)
    parts.append(b"(?P<comment>%s)" % re.escape(language.line_comment))
    if language.block_comment:
        parts.append(b"(?P<block>%s)" % re.escape(language.block_comment[0]))
    openers = sorted(language.quotes, key=len, reverse=True)
    parts.append(b"(?P<quote>%s)" % b"|".join(map(re.escape, openers)))
    if language.regex_literals:
        parts.append(rb"(?P<slash>/)")
    parts.append(rb"(?P<open>[(\[{])|(?P<close>[)\]}])")
    return re.compile(b"|".join(parts), re.MULTILINE)


@cache
def _endings(language: Language) -> list[tuple[re.Pattern[bytes], bytes]]:
    return [(re.compile(pattern), ending) for pattern, ending in language.endings]


@lru_cache(maxsize=256)
def _string_pattern(inside: Inside) -> re.Pattern[bytes]:
    """What can end a string, or must be stepped over in it."""
    assert inside.quote is not None
    parts = [rb"(?P<escape>\\(?:\r\n|[\s\S]))"] if inside.quote.escapes else []
    if inside.quote.interpolates:
        parts.append(rb"(?P<interpolation>\$\{)")
    parts.append(b"(?P<end>%s)" % re.escape(inside.closer))
    if not inside.quote.multiline:
        parts.append(rb"(?P<line>\n)")
    return re.compile(b"|".join(parts))


@cache
def _comment_pattern(opener: bytes, closer: bytes, nested: bool) -> re.Pattern[bytes]:
    start = b"|(?P<start>%s)" % re.escape(opener) if nested else b""
    return re.compile(b"(?P<end>%s)%s" % (re.escape(closer), start))


class Scanner:
    """Lexical state at the end of the text fed so far.

    inside: the open string or block comment, or None in code. brackets: the open ones, outermost first. overflow: there
    were more than MAX_DEPTH open at once; the state is then no longer tracked.
    """

    __slots__ = ("brackets", "inside", "language", "offset", "overflow")

    def __init__(self, language: Language) -> None:
        self.language = language
        self.inside: Inside | None = None
        self.brackets: list[Bracket] = []
        self.offset = 0
        self.overflow = False

    def feed(self, data: bytes) -> None:
        """Goes on over the next bytes: whole lines, or anything as the last call. Time linear in their number."""
        position, end = 0, len(data)
        while position < end and not self.overflow:
            if self.inside is None:
                position = self._code(data, position)
            elif self.inside.quote is None:
                position = self._comment(data, position, self.inside)
            else:
                position = self._string(data, position, self.inside)
        self.offset += end

    def closers(self) -> bytes:
        """What would close all open brackets, innermost first, and a line end (Go needs one after a declaration)."""
        if not self.brackets:
            return b""
        return b"".join([bracket.closer for bracket in reversed(self.brackets)]) + b"\n"

    @property
    def innermost(self) -> Bracket | None:
        """The innermost open bracket or interpolation, or None."""
        return next((bracket for bracket in reversed(self.brackets) if bracket.closer != ENDIF), None)

    def fork(self) -> "Scanner":
        """An independent copy."""
        copy = Scanner(self.language)
        copy.inside, copy.brackets = self.inside, self.brackets.copy()
        copy.offset, copy.overflow = self.offset, self.overflow
        return copy

    def _code(self, data: bytes, position: int) -> int:
        for match in _code_pattern(self.language).finditer(data, position):
            kind, text = match.lastgroup, match[0]
            if kind == "open":
                self._open(self._closer(text, data, match.start()), match.start())
                if self.overflow:
                    return len(data)
            elif kind == "close":
                if self._close(text):
                    return match.end()
            elif kind == "comment":
                line_end = data.find(b"\n", match.end())
                return len(data) if line_end < 0 else line_end + 1
            elif kind == "directive":
                self._directive(text.lstrip(b" \t#"), match.start())
            elif kind == "slash":
                literal = REGEX_LITERAL.match(data, match.start())
                line_start = data.rfind(b"\n", 0, match.start()) + 1
                if literal and BEFORE_REGEX.search(data, line_start, match.start()):
                    return literal.end()
            elif kind != "skip":
                self.inside = self._opened(kind, match)
                return match.end()
        return len(data)

    def _closer(self, opener: bytes, data: bytes, position: int) -> bytes:
        """What closes a bracket and, for some braces, what has to follow for the construct to be complete."""
        if opener != b"{":
            return CLOSERS[opener]
        before = data[data.rfind(b"\n", 0, position) + 1 : position]
        for pattern, ending in _endings(self.language):
            if pattern.search(before):
                return b"}" + ending
        return b"}"

    def _opened(self, kind: str | None, match: re.Match[bytes]) -> Inside:
        if kind == "block":
            assert self.language.block_comment is not None
            return Inside(self.language.block_comment[1], None)
        if kind == "quote":
            quote = self.language.quotes[match[0]]
            assert quote.closer is not None
            return Inside(quote.closer, quote)
        tag = match[0][match[0].index(b'"') + 1 : -1] if match[0].endswith(b"(") else match[0].strip(b'bcr"')
        closer = b")" + tag + b'"' if match[0].endswith(b"(") else b'"' + tag
        return Inside(closer, Quote(None, multiline=True, escapes=False))

    def _open(self, closer: bytes, position: int) -> None:
        if len(self.brackets) >= MAX_DEPTH:
            self.overflow = True
            return
        self.brackets.append(Bracket(closer, self.offset + position))

    def _directive(self, name: bytes, position: int) -> None:
        """Follows #if, #else and #endif. What the first branch opened is open in every other, so it counts once."""
        if name.startswith(b"if"):
            self._open(ENDIF, position)
            return
        start = next((i for i in range(len(self.brackets) - 1, -1, -1) if self.brackets[i].closer == ENDIF), None)
        if start is not None and name.startswith(b"el"):
            del self.brackets[start + 1 :]
        elif start is not None:
            del self.brackets[start]

    def _close(self, text: bytes) -> bool:
        """Pops the innermost bracket that `text` closes, with what is unclosed inside it; a stray one is ignored.

        Returns whether that ended an interpolation, so that the text goes on inside the template string.
        """
        for index in range(len(self.brackets) - 1, -1, -1):
            closer = self.brackets[index].closer
            if closer[:1] == text:
                self.brackets[index:] = [bracket for bracket in self.brackets[index:] if bracket.closer == ENDIF]
                if closer == INTERPOLATION:
                    self.inside = Inside(b"`", self.language.quotes[b"`"])
                    return True
                return False
            if closer == INTERPOLATION:
                return False
        return False

    def _string(self, data: bytes, position: int, inside: Inside) -> int:
        for match in _string_pattern(inside).finditer(data, position):
            kind = match.lastgroup
            if kind == "escape":
                continue
            self.inside = None
            if kind == "interpolation":
                self._open(INTERPOLATION, match.start() + 1)
            return match.end()
        return len(data)

    def _comment(self, data: bytes, position: int, inside: Inside) -> int:
        assert self.language.block_comment is not None
        pattern = _comment_pattern(*self.language.block_comment, self.language.nested_comments)
        for match in pattern.finditer(data, position):
            depth = inside.depth + (1 if match.lastgroup == "start" else -1)
            inside = Inside(inside.closer, None, min(depth, NESTED_COMMENT))
            self.inside = inside if depth else None
            if not depth:
                return match.end()
        return len(data)
