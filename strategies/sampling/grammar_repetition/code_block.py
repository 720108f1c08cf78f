"""One stretch of code in one language: what repeats at its end, line by line, kept up to date as lines arrive."""

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple

from strategies.sampling.grammar_repetition.context import context_of, inside_literal
from strategies.sampling.grammar_repetition.languages import Language
from strategies.sampling.grammar_repetition.leaves import COMMENT, first_leaf, leaf_of, leaves
from strategies.sampling.grammar_repetition.policy import Context
from strategies.sampling.grammar_repetition.scanner import Bracket, Scanner
from strategies.sampling.grammar_repetition.statements import Level, open_levels
from strategies.sampling.grammar_repetition.tandem import TandemDetector, trailing_tandem
from strategies.sampling.grammar_repetition.window import SourceWindow

if TYPE_CHECKING:
    from tree_sitter import Tree

MAX_LINE = 4096
MAX_TEXT = 256 * 1024
LINES, STATEMENT_LINES = 32, 128
"""Lines that are parsed at least (at most twice as many), without and with the statement level."""

START_LINES = 512
"""Lines of a prompt that are looked at, from the last."""

OBSERVED_COPIES = 8
"""Copies whose own tokens are penalised, from the last."""

BLANKS = b" \t\r\n\f"


class Line(NamedTuple):
    """A line that holds code. symbol: (column, class of each lexeme). start: offset of the first lexeme in the block.

    lexeme: its text if it is a keyword or punctuation.
    """

    symbol: tuple[int, tuple[str, ...]]
    start: int
    lexeme: str | None


@dataclass(frozen=True, slots=True)
class Hit:
    """A unit that repeats at the end of the code.

    container: the node type of the level, "" for lines. unit: its symbols. indent: column of its first line, for lines.
    starts: offsets in the block at which the last copies begin, latest first. lexeme: what each begins with, if that
    is a keyword or punctuation.
    """

    level: Literal["line", "statement"]
    container: str
    period: int
    copies: int
    unit: tuple[tuple[str, ...], ...]
    indent: int
    context: Context
    starts: tuple[int, ...]
    lexeme: str | None


class CodeBlock:
    """The state of one stretch of code.

    levels: which of "line" and "statement" to evaluate. counted_from: offset from which lines and statements count as
    copies (earlier text still is context). hits: what repeats at the end, as of the last `refresh`.
    """

    __slots__ = (
        "_counted_from",
        "_detector",
        "_done",
        "_keep",
        "_levels",
        "_lines",
        "_max_period",
        "_new",
        "_patience",
        "_places",
        "_size",
        "_symbols",
        "_text",
        "_window",
        "exhausted",
        "hits",
        "language",
        "scanner",
    )

    def __init__(self, language: Language, levels: frozenset[str], max_period: int, counted_from: int = 0) -> None:
        self.language = language
        self.scanner = Scanner(language)
        self.hits: tuple[Hit, ...] = ()
        self.exhausted = False  # a cap was passed: no structure from here on
        self._levels, self._max_period, self._counted_from = levels, max_period, counted_from
        self._detector = TandemDetector(max_period)
        self._lines: list[Line] = []
        self._symbols: dict[tuple[int, tuple[str, ...]], int] = {}  # shared by forks, only ever grows
        self._text = b""
        self._new: list[bytes] = []  # lines added since the text was last put together
        self._size = 0
        self._done = 0  # everything before has its line symbols
        self._window = SourceWindow(language)
        # Where lines begin in code, and which brackets are open there; as far back as the window goes.
        self._places: list[tuple[int, tuple[Bracket, ...]]] = []
        self._keep = STATEMENT_LINES if "statement" in levels else max(LINES, max_period)
        self._patience = 0

    @property
    def suspended(self) -> bool:
        """Whether the text ends inside a string or block comment, where there is no structure."""
        return self.scanner.inside is not None

    def start(self) -> None:
        """Takes note of the lines `scan`ned at the beginning, with one parse; only the last START_LINES count."""
        self.refresh()
        if len(self._places) > 2 * self._keep and not self.suspended:
            self._shorten()

    def add(self, line: bytes) -> None:
        """Appends one complete line. Takes effect on `hits` at the next `refresh`."""
        self.scan(line)
        if len(self._places) - self._patience > 2 * self._keep and not self.suspended:
            # Here, not in `refresh`: the window must not depend on how often that is called.
            self.refresh()
            self._shorten()

    def scan(self, line: bytes) -> None:
        """Appends one complete line of a prompt: `start` has to follow the last."""
        if self.exhausted:
            return
        if self.scanner.inside is None:
            self._places.append((self._size, tuple(self.scanner.brackets)))
        self.scanner.feed(line)
        self._new.append(line)
        self._size += len(line)
        if self.scanner.overflow or self._size > MAX_TEXT or len(line) > MAX_LINE:
            self.exhausted = True
            self.hits = ()
            self._window, self._text, self._new, self._places = SourceWindow(self.language), b"", [], []

    def refresh(self) -> None:
        """Brings `hits` up to date with the lines added."""
        if self.exhausted:
            return
        if self.suspended:
            self.hits = ()
            return
        added = b"".join(self._new)
        self._new = []
        self._text += added
        self._window.append(added)
        fresh = self._text[self._done :]
        if self._skippable(fresh):
            self._done = len(self._text)
            return
        tree = self._window.parse(self.scanner.closers())
        start = self._done
        for _ in range(fresh.count(b"\n") - START_LINES):
            start = self._text.index(b"\n", start) + 1
        while start < len(self._text):
            end = self._text.index(b"\n", start) + 1
            self._add_line(tree, start, end)
            start = end
        self._done = len(self._text)
        self.hits = tuple(chain(self._line_hits(tree), self._statement_hits(tree)))

    def text(self, start: int, end: int) -> bytes:
        """The bytes [start, end) of the lines up to the last `refresh`."""
        return self._text[start:end]

    def could_repeat(self) -> int:
        """An upper bound of the copies that one more line could complete."""
        return self._detector.best_next()

    def within_literal(self, tail: bytes) -> bool:
        """Whether the text with `tail`, an unfinished line, ends inside a literal, argument list or parameter list."""
        scanner = self.scanner
        if tail:
            scanner = scanner.fork()
            scanner.feed(tail)
        innermost = scanner.innermost
        if scanner.inside is not None or innermost is None:
            return False
        if innermost.offset >= self._done:
            return not innermost.closer.startswith(b"}")
        place = self._window.place(innermost.offset)
        tree = self._window.tree
        return tree is not None and place is not None and inside_literal(tree, innermost.closer, place)

    def fork(self) -> "CodeBlock":
        """An independent copy: trees and texts are shared (they never change), counters copied."""
        copy = CodeBlock.__new__(CodeBlock)
        for name in CodeBlock.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.scanner, copy._detector = self.scanner.fork(), self._detector.fork()
        copy._lines, copy._new, copy._places = self._lines.copy(), self._new.copy(), self._places.copy()
        copy._window = self._window.fork()
        return copy

    def _skippable(self, fresh: bytes) -> bool:
        """Whether the new lines hold no code: blank, or one line comment (blank lines between copies do not count)."""
        stripped = fresh.strip(BLANKS)
        return not stripped or (b"\n" not in stripped and stripped.startswith(self.language.line_comment))

    def _shorten(self) -> None:
        """Drops all but the last lines from what is parsed, at a place where that is possible."""
        for offset, brackets in self._places[-self._keep : -self._keep // 2]:
            if self._window.restart(self._text, offset, brackets):
                self._places = [place for place in self._places if place[0] >= offset]
                break
        else:
            self._window.forget()
            self._patience += self._keep
            return
        self._patience = 0
        self._window.parse(self.scanner.closers())

    def _add_line(self, tree: "Tree", start: int, end: int) -> None:
        shift = self._window.shift
        found = leaves(tree.walk(), start - shift, end - shift)
        if not found:
            if self._unreadable(tree, start, end):
                self._push(Line((-1 - self._detector.length, ()), start, None))
            return
        first = found[0].start + shift
        if all(leaf.symbol == COMMENT for leaf in found) or first < self._counted_from:
            return
        symbol = (first - start, tuple([leaf.symbol for leaf in found]))
        self._push(Line(symbol, first, found[0].lexeme))

    def _unreadable(self, tree: "Tree", start: int, end: int) -> bool:
        """Whether a line without lexemes has text that the parser skipped (rather than part of a string or comment)."""
        blanks = end - start - len(self._text[start:end].lstrip(BLANKS))
        if blanks == end - start:
            return False
        place = start + blanks - self._window.shift
        node = tree.root_node.descendant_for_byte_range(place, place + 1)
        return node is None or node.is_error or leaf_of(node) is None

    def _push(self, line: Line) -> None:
        self._detector.push(self._symbols.setdefault(line.symbol, len(self._symbols)))
        self._lines.append(line)
        if len(self._lines) > 2 * self._kept:
            del self._lines[: -self._kept]

    @property
    def _kept(self) -> int:
        return OBSERVED_COPIES * self._max_period

    def _line_hits(self, tree: "Tree") -> list[Hit]:
        repeat = self._detector.hit() if "line" in self._levels else None
        if repeat is None:
            return []
        period, copies = repeat
        unit = self._lines[-period:]
        starts = [line.start for line in self._lines[-period::-period][: min(copies, OBSERVED_COPIES)]]
        context = self._context(tree, unit)
        symbols = tuple([line.symbol[1] for line in unit])
        return [Hit("line", "", period, copies, symbols, unit[0].symbol[0], context, tuple(starts), unit[0].lexeme)]

    def _context(self, tree: "Tree", unit: list[Line]) -> Context:
        place, innermost = self._window.place, self.scanner.innermost
        bracket = None if innermost is None else place(innermost.offset)
        starts = [start for line in unit if (start := place(line.start)) is not None]
        literal = innermost is not None and bracket is not None and inside_literal(tree, innermost.closer, bracket)
        return context_of(tree, literal, starts)

    def _statement_hits(self, tree: "Tree") -> list[Hit]:
        if "statement" not in self._levels:
            return []
        window = self._window
        since = max(window.head, self._counted_from - window.shift)
        levels = open_levels(tree, self.language, self._done - window.shift, since)
        hits = [self._statement_hit(level) for level in levels]
        return [hit for hit in hits if hit is not None]

    def _statement_hit(self, level: Level) -> Hit | None:
        repeat = trailing_tandem([unit.symbol for unit in level.units], self._max_period)
        if repeat is None:
            return None
        period, copies = repeat
        unit = level.units[-period:]
        firsts = level.units[-period::-period][: min(copies, OBSERVED_COPIES)]
        symbols = tuple([part.symbol for part in unit])
        starts = tuple([part.start + self._window.shift for part in firsts])
        lexeme = first_leaf(unit[0].node).lexeme
        return Hit("statement", level.container, period, copies, symbols, 0, "code", starts, lexeme)
