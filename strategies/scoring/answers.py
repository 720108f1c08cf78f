"""Finding the answer in a solution's text.

Rules are tried in order and the first that finds something decides. By default: the last balanced \\boxed{...}; the
rest of the line after the last "####"; what follows the last "answer is" or "Answer:"; the last number. Two more are
for those who ask: a choice letter, and a pattern of one's own. Give them generated text only: a question that says "the
answer is" would answer itself. Every rule takes time linear in the text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from strategies.scoring.answer_pattern import AnswerPattern
from strategies.scoring.canonical import canonical, plain_characters

AnswerRule = Literal["boxed", "hash", "phrase", "last_number", "choice", "pattern"]
DEFAULT_RULES: tuple[AnswerRule, ...] = ("boxed", "hash", "phrase", "last_number")
MAX_PHRASE_CHARACTERS = 200
"""A longer "answer is ..." is an explanation."""

_BRACES = re.compile(r"\\boxed\s?\{|\\.|[{}]", re.S)
_PHRASE = re.compile(r"(?:\banswers?[\s*]{0,8}(?:is|are|:|=)|答案[\s*]{0,8}(?:是|为|:))[\s*:]{0,8}", re.I)
_SENTENCE_END = re.compile(r"\n|[.!;](?=\s|$|\*)|。|,?\s(?:because|since|which)\b", re.I)
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)\]}])-)?"
    r"(?:\\[dt]?frac\{[0-9]+\}\{[0-9]+\}"
    r"|(?:\\?[$€£¥₹]-?)?(?:(?<![0-9/.])[0-9]+/[0-9]+(?![0-9/])"
    r"|(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?<![0-9])(?=\.[0-9]))(?:\.[0-9]+)?))"
)
_CURRENCY = str.maketrans("", "", "$€£¥₹")
_LETTER_START = re.compile(
    r"(?:\s|[*:$(\[{]|\\(?:text|textbf|mathrm|boxed)\{|option\b|choice\b)*([A-Za-z])(?![A-Za-z0-9'’])(.{0,2})",
    re.I | re.S,
)
_LETTER_LINE = re.compile(r"^[*\s]{0,8}\(?([A-Za-z])[).:*]{0,4}[ \t]*$", re.M)
_LETTER_BRACKET = re.compile(r"\(([A-Za-z])\)")


@dataclass(frozen=True, slots=True)
class Answer:
    """raw: as written; rule: what found it; canonical: the form to count votes by. All None where nothing was found."""

    raw: str | None = None
    rule: AnswerRule | None = None
    canonical: str | None = None


def extract(
    text: str,
    rules: Sequence[AnswerRule] = DEFAULT_RULES,
    *,
    choices: str = "ABCDEFGHIJ",
    pattern: AnswerPattern | None = None,
) -> Answer:
    """The answer of a solution. choices: letters that the "choice" rule knows; pattern: what the "pattern" rule runs.

    Raises ValueError for the rule "pattern" without a pattern.
    """
    finders: dict[AnswerRule, Callable[[str], str | None]] = {
        "boxed": last_boxed,
        "hash": after_hash,
        "phrase": after_phrase,
        "last_number": last_number,
        "choice": lambda text: choice_letter(text, choices),
    }
    if pattern is not None:
        finders["pattern"] = pattern.last_match
    elif "pattern" in rules:
        raise ValueError('the rule "pattern" needs a pattern')
    for rule in rules:
        raw = finders[rule](text)
        form = canonical(raw)
        if form is not None:
            return Answer(raw, rule, form)
    return Answer()


def is_final_step(step: str, rules: Sequence[AnswerRule] = DEFAULT_RULES) -> bool:
    """Whether a step carries the final answer, by the rules that extraction uses: a box, a line that starts with
    "####", or the answer phrase; a choice may stand in a box or behind the phrase. (The end of the sequence makes any
    step final.)"""
    if "hash" in rules and any(line.lstrip().startswith("####") for line in step.splitlines()):
        return True
    if ("boxed" in rules or "choice" in rules) and last_boxed(step) is not None:
        return True
    return ("phrase" in rules or "choice" in rules) and after_phrase(step) is not None


def last_boxed(text: str) -> str | None:
    """Content of the last \\boxed{...} whose braces balance, escaped ones not counted; None for none or a blank one."""
    open_braces: list[int | None] = []  # where a box's content starts; None for other braces
    last: tuple[int, int] | None = None
    for mark in _BRACES.finditer(text):
        token = mark.group()
        if token == "{":
            open_braces.append(None)
        elif token.startswith("\\boxed"):
            open_braces.append(mark.end())
        elif token == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and (last is None or start > last[0]):
                last = (start, mark.start())
    return None if last is None else text[last[0] : last[1]].strip() or None


def after_hash(text: str) -> str | None:
    """The rest of the line after the last "####"."""
    _, mark, rest = text.rpartition("####")
    return _cleaned(rest.split("\n", 1)[0]) if mark else None


def after_phrase(text: str) -> str | None:
    """What the last "answer is ..." or "Answer: ..." says, to the end of its sentence."""
    start = None
    for match in _PHRASE.finditer(plain_characters(text)):
        start = match.end()
    if start is None:
        return None
    rest = text[start:].lstrip()
    end = _SENTENCE_END.search(rest)
    answer = _cleaned(rest if end is None else rest[: end.start()])
    return answer if answer is not None and len(answer) <= MAX_PHRASE_CHARACTERS else None


def last_number(text: str) -> str | None:
    """The last number: thousands separators, decimals, fractions and a sign belong to it, a currency does not."""
    found = None
    for match in _NUMBER.finditer(plain_characters(text)):
        found = match.group()
    if found is None:
        return None
    return found if "frac" in found else found.lstrip("\\").translate(_CURRENCY)


def choice_letter(text: str, choices: str = "ABCDEFGHIJ") -> str | None:
    """The letter chosen, in upper case: in a box, after "answer is", alone on a line, else the last one in brackets.

    "A" and "I" are also words: after "answer is", unbracketed, they count only where no word follows, and any small
    letter only where nothing does.
    """
    known = frozenset(choices.upper())
    box = last_boxed(text)
    if box is not None and (letter := _leading_letter(box, known)) is not None:
        return letter
    for match in reversed(list(_PHRASE.finditer(plain_characters(text)))):
        if (letter := _leading_letter(text[match.end() : match.end() + 40], known)) is not None:
            return letter
    for finder in (_LETTER_LINE, _LETTER_BRACKET):
        letters: list[str] = [letter.upper() for letter in finder.findall(text) if letter.upper() in known]
        if letters:
            return letters[-1]
    return None


def _leading_letter(text: str, known: frozenset[str]) -> str | None:
    match = _LETTER_START.match(text)
    if match is None or match.group(1).upper() not in known:
        return None
    letter, behind = match.groups()
    word_follows = len(behind) == 2 and behind[0].isspace() and behind[1].isalnum()
    if word_follows and (letter in "AI" or letter.islower()):
        return None
    return letter.upper()


def _cleaned(text: str) -> str | None:
    """Without emphasis, mathematics delimiters, a currency sign and a final full stop; None if nothing is left."""
    text = text.strip().strip("*").strip().removesuffix(".").strip()
    if text.startswith("$"):
        text = text[1:].strip()
        text = text.removesuffix("$").strip()
    return text.removesuffix(".").strip() or None
