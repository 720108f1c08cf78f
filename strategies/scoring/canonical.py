"""Canonical forms of short answers, to count votes by: answers are equal if their forms are, which is transitive.

A numeric answer becomes an exact fraction ("0.75", "3/4" and "\\frac{6}{8}" are all "3/4"; "1,200" is "1200");
currency, percent signs (not divided by 100) and units are dropped. Anything else becomes LaTeX text in a normal form.
Nothing is evaluated: 10^3 is not 1000 here. Every step takes time linear in the answer.
"""

import re
import unicodedata
from fractions import Fraction

MAX_NUMBER_CHARACTERS = 400
"""Longer digit strings are text: converting them takes more than linear time."""
MAX_UNIT_WORDS = 4
MAX_ROUNDS = 6

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)"
_PLAIN = re.compile(rf"[+-]?{_DECIMAL}(?:[eE][+-]?[0-9]{{1,2}})?")
_FRACTION = re.compile(rf"([+-]?)(?:\\frac\{{([+-]?{_DECIMAL})\}}\{{([+-]?{_DECIMAL})\}}|({_DECIMAL})/({_DECIMAL}))")
_MIXED = re.compile(r"([+-]?)([0-9]+) ?(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|(?<= )([0-9]+)/([0-9]+))")
_CURRENCY = "$€£¥₹₩₽"
_LETTER_CHOICE = re.compile(r"\(?([A-Za-z])\)[.:]?")

_TEXT_GROUP = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\{([^{}]*)\}")
_UNIT_GROUP = re.compile(r"\\(?:text|textrm|mathrm|mbox)\{([^{}]*)\}(?:\^(?:[0-9]|\{[0-9]\}))?$")
_ATTACHED_UNIT = re.compile(
    r"(?<=[0-9])(?:[cmk]?m|[mk]?g|[mc]?l|ft|in|lbs?|oz|mi|hrs?|mins?|secs?|mph|kmh|km/h|m/s)(?:\^[0-9]|[²³])?$", re.I
)
_WORDS = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_CONNECTIVES = {"and", "or", "plus", "minus", "times", "to", "over", "of", "by", "than", "more", "less", "but", "not"}
_FUNCTIONS = {"pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "mod"}
_PARTS = {"half", "halves", "third", "thirds", "quarter", "quarters", "am", "pm"}
_MULTIPLES = {"dozen", "hundred", "thousand", "million", "billion", "trillion"}
_NO_UNIT = _CONNECTIVES | _FUNCTIONS | _PARTS | _MULTIPLES
_SPACING = re.compile(r"\\(?:[,;:! ]|quad(?![A-Za-z])|qquad(?![A-Za-z]))|~")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])")
_DEGREE = re.compile(r"\^\{?\\circ\}?|\\degree(?![A-Za-z])|°")
_SHORT_FRACTION = re.compile(r"\\frac ?([0-9]) ?([0-9])")
_MIXED_BRACES = re.compile(r"\\frac(?:\{([^{}]*)\} ?([0-9])|([0-9]) ?\{([^{}]*)\})")
_SHORT_ROOT = re.compile(r"\\sqrt ?([0-9A-Za-z])")
_SINGLE_SCRIPT = re.compile(r"([\^_])\{([0-9A-Za-z])\}")
_SPACE = re.compile(r"\s+")
_MARKS = '*$`"“” '
_WRAPPERS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"), ("**", "**"), ("`", "`"), ('"', '"'), ("“", "”"))


def canonical(answer: str | None) -> str | None:
    """The canonical form; None for no answer, or one without content."""
    if answer is None:
        return None
    form = plain_characters(answer)
    for _ in range(MAX_ROUNDS):  # what one round uncovers, \text{(B)} say, the next one brings into form
        before, form = form, _form(form)
        if form == before:
            break
    return form or None


def _form(answer: str) -> str:
    text = _unwrapped(answer)
    value = number(text)
    if value is not None:
        return str(value)
    choice = _LETTER_CHOICE.fullmatch(text)
    return choice.group(1).lower() if choice else _text_form(text)


def answers_equal(a: str | None, b: str | None) -> bool:
    """Whether two answers have the same canonical form; no answer equals nothing."""
    form = canonical(a)
    return form is not None and form == canonical(b)


def number(text: str) -> Fraction | None:
    """The exact value of a numeric answer, currency, percent sign and unit dropped; None for anything else."""
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    text = _without_unit(_SIZES.sub("", _SPACING.sub(" ", _latex(text))).strip())
    text = _without_marks(text)
    if _PLAIN.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if match := _FRACTION.fullmatch(text):
        sign, a, b, c, d = match.groups()
        return _ratio(sign, a or c, b or d)
    if match := _MIXED.fullmatch(text):
        sign, whole, a, b, c, d = match.groups()
        part = _ratio("", a or c, b or d)
        return None if part is None else (Fraction(whole) + part) * (-1 if sign == "-" else 1)
    return None


def plain_characters(text: str) -> str:
    """ASCII for the digits of any script, full-width forms and minus signs; every character stays one character."""
    return text if text.isascii() else "".join(map(_plain_character, text))


def _plain_character(character: str) -> str:
    code = ord(character)
    if character in "−﹣":
        return "-"
    if 0xFF01 <= code <= 0xFF5E:
        return chr(code - 0xFEE0)
    return str(unicodedata.decimal(character)) if code > 0x7F and character.isdecimal() else character


def _ratio(sign: str, numerator: str, denominator: str) -> Fraction | None:
    top, bottom = Fraction(numerator.replace(",", "")), Fraction(denominator.replace(",", ""))
    return None if bottom == 0 else top / bottom * (-1 if sign == "-" else 1)


def _unwrapped(text: str) -> str:
    """Without the marks around the whole: mathematics delimiters, emphasis, quotes, a final full stop."""
    before = None
    while text != before:
        before = text
        text = text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for opening, closing in _WRAPPERS:
            inside = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inside and opening not in inside:
                text = inside
    return text.strip(_MARKS)


def _latex(text: str) -> str:
    """LaTeX spellings made one: {,} in numbers, \\dfrac, fractions and roots without braces, degrees dropped."""
    text = text.replace("{,}", ",").replace(",\\!", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _MIXED_BRACES.sub(lambda m: f"\\frac{{{m[1] or m[3] or ''}}}{{{m[2] or m[4] or ''}}}", text)
    return _DEGREE.sub("", _SHORT_ROOT.sub(r"\\sqrt{\1}", text))


def _without_unit(text: str) -> str:
    """Without a unit after a number: \\text{ cm}, up to four words that are no mathematics, or cm right behind it."""
    group = _UNIT_GROUP.search(text)
    if group and group.start() > 0 and _is_unit(group.group(1)):
        return text[: group.start()].rstrip()
    head, space, tail = text.partition(" ")
    while space and head[-1:] in "+-":  # "- 5 apples"
        more, space, tail = tail.partition(" ")
        head += more
    if space and any(character.isdigit() for character in head) and _is_unit(tail, shortest=2):
        return head
    return _ATTACHED_UNIT.sub("", text)


def _is_unit(words: str, shortest: int = 1) -> bool:
    parts = words.strip(" .").split()
    return len(parts) <= MAX_UNIT_WORDS and all(
        len(part) >= shortest and _WORDS.fullmatch(part) is not None and part.lower() not in _NO_UNIT for part in parts
    )


def _without_marks(text: str) -> str:
    """Without a percent sign or a currency before or after the number; a sign may stand on either side of it."""
    text = text.replace("\\%", "%").replace("\\$", "$").removesuffix("%").rstrip()
    sign = text[:1] if text[:1] in ("+", "-") else ""
    body = text[len(sign) :].strip()
    if body[:1] and body[0] in _CURRENCY:
        body = body[1:].lstrip()
    elif body[-1:] and body[-1] in _CURRENCY:
        body = body[:-1].rstrip()
    return sign + body


def _text_form(text: str) -> str:
    """LaTeX text without what doesn't change its meaning; case-folded if there are letters only."""
    text = _SPACING.sub(" ", _SIZES.sub("", _latex(text)))
    text = _TEXT_GROUP.sub(r"\1", text)
    text = _SINGLE_SCRIPT.sub(r"\1\2", text).replace("\\%", "%").replace("\\$", "$").replace("$", "")
    text = _squeezed(text.strip().strip(".").strip())
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(text) <= MAX_NUMBER_CHARACTERS:
        text = text[0] + ",".join(map(_element, text[1:-1].split(","))) + text[-1]
    return text.casefold() if all(part.isalpha() for part in text.split()) else text


def _element(text: str) -> str:
    """One coordinate of a tuple, or one end of an interval."""
    value = number(text)
    return text if value is None else str(value)


def _squeezed(text: str) -> str:
    """Without spaces but those that hold two words, two numbers or a LaTeX command and what follows apart."""
    joined: list[str] = []
    for part in _SPACE.split(text):
        last, first = joined[-1][-1:] if joined else "", part[:1]
        variable = part[:1].isalpha() and not part[1:2].isalnum()  # 3 x is 3x, but 3 and 5 stays
        if last.isalnum() and first.isalnum() and not (last.isdigit() and variable):
            joined.append(" ")
        joined.append(part)
    return "".join(joined)
