"""The authors' released decoder: what it penalises at each step, on prompt and output together, for Python.

Reimplemented from a description of its behaviour (their code has no licence). It has no grammar: pieces of the
SentencePiece alphabet are typed one by one, cut at newline pieces, and the last lines are compared with those before.
Documented oddities are kept: the structural exponent is always 1 and replaces the verbatim one, a period of k lines is
seen only where k divides the number of lines, and the penalised piece may be the indentation.
"""

import keyword
from array import array

import numpy as np

NEWLINE = "\n"
BLANK = "▁"
KEYWORDS = frozenset(keyword.kwlist) | {"print", "test"}
START_WORDS = frozenset(
    {"assert", "if", "elif", "else", "print", "def", "#", "try", "while", "import", "from", "for", "class"}
    | {"'''", '"""', NEWLINE}
)
COMMENT, LIST, STRING, NAME, NUMBER = "<comment>", "<list>", "<string>", "<name>", "<number>"


def piece_of(data: bytes) -> str:
    """A token's bytes in the SentencePiece alphabet."""
    return data.decode("utf-8", "replace").replace(" ", BLANK)


class PieceLines:
    """Typed pieces, cut into lines.

    lines: one number per complete line, equal for equal lines. starts: index of each line's first piece; one more than
    lines, the last being that of the unfinished line.
    """

    __slots__ = ("_ids", "_line", "_open", "_quotes", "_word", "count", "lines", "starts")

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.starts = [0]
        self.count = 0
        self._ids: dict[tuple[str, ...], int] = {}
        self._line: list[str] = []
        self._open: str | None = None  # what ends the stretch that is swallowed now
        self._quotes = 0  # quote pieces in a row
        self._word: str | None = None  # type of the last piece if the next can continue it

    def push(self, piece: str) -> None:
        """Types the next piece."""
        self.count += 1
        if self._open is not None and self._swallow(piece):
            return
        if piece == NEWLINE:
            self.lines.append(self._ids.setdefault(tuple(self._line), len(self._ids)))
            self.starts.append(self.count)
            self._line, self._word, self._quotes = [], None, 0
            return
        core = piece.lstrip(BLANK)
        quote = next((char for char in core if char in "\"'"), "")
        if quote:
            self._begin_string(core, quote)
            return
        self._quotes = 0
        if core.startswith("#"):
            self._start(COMMENT, NEWLINE)
        elif "[" in core:
            self._start(LIST, None if "]" in core else "]")
        else:
            self._plain(piece, core)

    def fork(self) -> "PieceLines":
        """An independent copy."""
        copy = PieceLines()
        copy.lines, copy.starts, copy.count = self.lines.copy(), self.starts.copy(), self.count
        copy._ids, copy._line = self._ids, self._line.copy()
        copy._open, copy._quotes, copy._word = self._open, self._quotes, self._word
        return copy

    def _swallow(self, piece: str) -> bool:
        """Goes on inside a comment, list or string; False for the newline that ends a comment."""
        closer = self._open
        assert closer is not None
        if closer == NEWLINE:
            if piece != NEWLINE:
                return True
            self._open = None
            return False
        if len(closer) == 3:
            core = piece.lstrip(BLANK)
            self._quotes = self._quotes + 1 if core == closer[0] else 0
            if closer in core or self._quotes == 3:
                self._open, self._quotes = None, 0
            return True
        if closer in piece:
            self._quotes += 1
            self._open = None
        else:
            self._quotes = 0
        return True

    def _begin_string(self, core: str, quote: str) -> None:
        if quote * 3 in core:
            self._start(COMMENT, None if core.count(quote * 3) > 1 else quote * 3)
        elif self._quotes == 2 and core.startswith(quote) and self._line[-1:] == [STRING]:
            self._line.pop()  # two quotes were no empty string but began a triple quote
            self._start(COMMENT, quote * 3)
            self._quotes = 0
        else:
            self._start(STRING, None if core.count(quote) > 1 else quote)
            self._quotes = 1 if core == quote else 0

    def _start(self, symbol: str, closer: str | None) -> None:
        self._line.append(symbol)
        self._open, self._word = closer, None

    def _plain(self, piece: str, core: str) -> None:
        continues = not piece.startswith(BLANK)
        wordlike = bool(core) and all(char.isalnum() or char == "_" for char in core)
        if continues and wordlike and self._word in (NAME, "keyword"):
            self._line[-1] = self._word = NAME
        elif core.isdigit():
            if not (continues and self._word == NUMBER):
                self._line.append(NUMBER)
            self._word = NUMBER
        elif core in KEYWORDS:
            self._line.append(piece)
            self._word = "keyword"
        elif wordlike:
            self._line.append(NAME)
            self._word = NAME
        else:
            self._line.append(piece)
            self._word = None


class ReleasedDetector:
    """What the released decoder penalises after the tokens so far."""

    __slots__ = ("_ids", "_pieces")

    def __init__(self) -> None:
        self._ids = array("q")
        self._pieces = PieceLines()

    def push(self, token: int, piece: str) -> None:
        """Appends the next token and its piece."""
        self._ids.append(token)
        self._pieces.push(piece)

    def exponents(self) -> dict[int, int]:
        """Token id -> exponent of the factor on its raw logit. The last key is the one that may raise the EOS logit."""
        found: dict[int, int] = {}
        content = self._content()
        if content is not None:
            found[content[0]] = content[1]
        structure = self._structure()
        if structure is not None:
            found[structure] = 1
        return found

    def fork(self) -> "ReleasedDetector":
        """An independent copy."""
        copy = ReleasedDetector()
        copy._ids, copy._pieces = self._ids[:], self._pieces.fork()
        return copy

    def _content(self) -> tuple[int, int] | None:
        """(first id of the unit, copies - 1) of the verbatim repeat at the end with the shortest period."""
        ids = np.frombuffer(self._ids, dtype=np.int64)
        count = len(ids)
        longest = count // 2 - 1
        if longest < 1:
            return None
        before = ids[count - 1 - longest : count - 1][::-1]  # before[L - 1]: the id that a period of L compares with
        for index in np.flatnonzero(before == ids[-1]):
            period = int(index) + 1
            unit = ids[count - period :]
            copies = 1
            while (copies + 1) * period <= count and np.array_equal(
                ids[count - (copies + 1) * period : count - copies * period], unit
            ):
                copies += 1
            if copies > 1:
                return int(unit[0]), copies - 1
        return None

    def _structure(self) -> int | None:
        """First id of the last unit of lines, where its length divides the number of lines. Only after a newline."""
        pieces = self._pieces
        lines = pieces.lines
        count = len(lines)
        if not count or pieces.starts[-1] != pieces.count:
            return None
        for period in range(1, count // 2 + 1):
            if (
                count % period == 0
                and lines[-1] == lines[-1 - period]
                and lines[-period:] == lines[-2 * period : -period]
            ):
                return self._ids[pieces.starts[count - period]]
        return None
