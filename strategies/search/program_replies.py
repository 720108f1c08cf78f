"""What a model's replies hold: a program, directions, lessons, reflections. Small models ignore formats, so each parser
takes what is there, and says so when nothing is."""

import re

from strategies.search.source_text import source_of, tree_of

FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*(\w*)[^\n]*$", re.MULTILINE)
FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
DEFINITION = re.compile(r"^(?:from\s|import\s|def\s|async\s+def\s|class\s|@)", re.MULTILINE)
PYTHON = {"python", "python3", "py"}
NUMBERED = re.compile(r"^[\s\-*#>]*(?:direction|idea|repair|option)\s*#?\d+\**\s*[:.)\-]+\**\s*", re.IGNORECASE)
LISTED = re.compile(r"^\s{0,3}\d+[.)]\s+")
LESSONS = re.compile(r"^[\s*#]*(?:updated\s+)?(?:lessons|insights)\b[^:\n]*:?\**[ \t]*", re.IGNORECASE | re.MULTILINE)
MAX_LESSONS = 2000
MAX_DIRECTION = 600


def program_of(reply: str, *, cut: bool = False) -> str | None:
    """The first Python block, else the first block without another language, else the first definitions outside of
    blocks. cut: the reply ends at its length limit, so a block that is not closed is not complete and counts as none,
    as do definitions outside of blocks."""
    blocks = fenced(reply)
    for wanted in (PYTHON, {""}):
        for language, text, closed in blocks:
            if language in wanted and text.strip() and (closed or not cut):
                return text.strip("\n") + "\n"
    return None if blocks or cut else bare_program(reply)


def fenced(reply: str) -> list[tuple[str, str, bool]]:
    """(language in lower case, text, whether it is closed) of each fenced block."""
    blocks: list[tuple[str, str, bool]] = []
    opening: re.Match[str] | None = None
    for fence in FENCE.finditer(reply):
        if opening is None:
            opening = fence
        elif not fence[1]:
            blocks.append((opening[1].lower(), reply[opening.end() + 1 : fence.start()], True))
            opening = None
    if opening is not None:
        blocks.append((opening[1].lower(), reply[opening.end() + 1 :], False))
    return blocks


def bare_program(reply: str) -> str | None:
    """Definitions that stand in the text itself: from the first to where a line begins that belongs to none."""
    start = DEFINITION.search(reply)
    if start is None:
        return None
    kept: list[str] = []
    for line in reply[start.start() :].split("\n"):
        if line and line[0] not in " \t)]}#" and DEFINITION.match(line) is None:
            break
        kept.append(line)
    text = "\n".join(kept).strip("\n") + "\n"
    return text if "def " in text or "class " in text else None


def directions_of(reply: str, m: int) -> list[str]:
    """At most m directions, numbered lines with their continuations; of those that differ in case, punctuation or
    white space only, the first. Without the word, the entries of a plain numbered list outside of code blocks."""
    return _numbered(reply, NUMBERED, m) or _numbered(FENCED.sub("", reply), LISTED, m)


def _numbered(reply: str, heading: re.Pattern[str], m: int) -> list[str]:
    found: list[str] = []
    current: list[str] | None = None
    for line in [*reply.split("\n"), ""]:
        head = heading.match(line)
        if current is not None and (head is not None or not line.strip()):
            found.append(" ".join(current)[:MAX_DIRECTION].strip())
            current = None
        if head is not None:
            current = [line[head.end() :].strip()]
        elif current is not None:
            current.append(line.strip())
    distinct: dict[str, str] = {}
    for text in found:
        if key := same_words(text):
            distinct.setdefault(key, text)
    return list(distinct.values())[:m]


def same_words(text: str) -> str:
    """Equal for texts that say the same in the same words."""
    return re.sub(r"[\W_]+", "", text).lower()


def lessons_of(reply: str) -> str | None:
    """The lines behind the heading, or the whole reply where the heading is missing; None for nothing, or too much."""
    heading = LESSONS.search(reply)
    text = reply[heading.end() :] if heading else reply
    text = "\n".join(line.rstrip() for line in text.strip().split("\n") if line.strip())
    return text if 0 < len(text) <= MAX_LESSONS else None


def normal_form(program: str) -> str | None:
    """Equal for programs that differ in white space and comments only; None for what does not parse."""
    tree = tree_of(program)
    return None if tree is None else source_of(tree)
