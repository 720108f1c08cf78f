"""Examples of a function that stand in the text of a task, as calls and literal results; and the function's name."""

import ast
import builtins
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from strategies.search.source_text import expression_of, is_literal, source_of, tree_of

RESULT = re.compile(r"^(?:==|=>|->|➞|→|should\s+return|returns?)\s*(.+)$")
DEF = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+([A-Za-z_]\w*)[ \t]*\(", re.MULTILINE)
MAX_EXAMPLES = 32
MAX_LINE = 1000
MAX_LINES = 500
MAX_CALLS = 4
MAX_BRACKETS = 32
"""Of a line's calls, and of closing brackets that may be a call's last: the prompt may be hostile."""


def parse_examples(prompt: str, entry_point: str) -> list[tuple[str, str]]:
    """(call, result) as source text in normal form, in order, without repeats: doctests, and a call followed by ==, =>,
    ->, an arrow or "returns". Both sides must be literal."""
    found: dict[str, str] = {}
    lines = prompt.split("\n")
    mentions = [
        pair
        for pair in zip(lines, [*lines[1:], ""], strict=True)
        if entry_point in pair[0] and len(pair[0]) <= MAX_LINE
    ]
    for line, following in mentions[:MAX_LINES]:
        example = example_of(line, following, entry_point)
        if example is not None:
            found.setdefault(*example)
    return list(found.items())[:MAX_EXAMPLES]


def example_of(line: str, following: str, entry_point: str) -> tuple[str, str] | None:
    for call, rest in calls_in(line, entry_point):
        stated = RESULT.match(rest.strip())
        if stated is not None:
            result = leading_literal(stated[1])
        elif line.lstrip().startswith(">>>") and not rest.strip():
            result = literal(following.strip())
        else:
            result = None
        if result is not None:
            return call, result
    return None


def literal_calls(text: str, entry_point: str) -> list[str]:
    """Calls with literal arguments, in normal form and order, without repeats, whatever stands around them."""
    lines = [line for line in text.split("\n") if entry_point in line and len(line) <= MAX_LINE]
    found = dict.fromkeys(call for line in lines[:MAX_LINES] for call, _ in calls_in(line, entry_point))
    return list(found)[:MAX_EXAMPLES]


def calls_in(line: str, entry_point: str) -> Iterator[tuple[str, str]]:
    """A line's calls with literal arguments, in normal form, each with what follows it."""
    starts = re.finditer(rf"(?<![\w.]){re.escape(entry_point)}\(", line)
    for start in islice(starts, MAX_CALLS):
        call, rest = leading_call(line[start.start() :])
        if call is not None:
            yield call, rest


def leading_call(text: str) -> tuple[str | None, str]:
    """The call with literal arguments that a text begins with, in normal form, and what follows it."""
    for end in islice(re.finditer(r"\)", text), MAX_BRACKETS):
        expression = expression_of(text[: end.end()])
        if expression is None:
            continue
        if not isinstance(expression, ast.Call):
            return None, text
        arguments = [*expression.args, *(keyword.value for keyword in expression.keywords)]
        if all(is_literal(argument) for argument in arguments):
            return source_of(expression), text[end.end() :]
        return None, text
    return None, text


def leading_literal(text: str) -> str | None:
    """The literal that a text consists of, or begins with before a comment, a sentence's end or more words."""
    text = text.strip()
    ends = [len(text), *(match.start() for match in reversed(list(re.finditer(r"[\s.,;#]", text))))]
    return next(
        (found for end in ends[:40] if (found := literal(text[:end].strip().rstrip(".,;:`"))) is not None), None
    )


def literal(text: str) -> str | None:
    """A literal in normal form, None for anything else."""
    expression = expression_of(text)
    return source_of(expression) if expression is not None and is_literal(expression) else None


def entry_point_of(prompt: str, tests: Sequence[str]) -> str | None:
    """The function that is asked for: the last one that the prompt begins to define and all given tests use; else the
    name that all tests call, those in the prompt if none are given. None if there is no such name."""
    called = [called_names(test) for test in tests]
    for name in reversed(DEF.findall(prompt)):
        if all(name in names for names in called):
            return str(name)
    stated = re.findall(r"^[ \t>]*(assert\b.+)$", prompt, re.MULTILINE)
    called = called or [names for line in stated if (names := called_names(line))]
    shared = [name for name in (called[0] if called else []) if all(name in names for names in called)]
    return shared[0] if shared else None


def called_names(test: str) -> list[str]:
    """Names that a statement calls, outermost first, built-in functions aside."""
    tree = tree_of(test.strip())
    if tree is None:
        return []
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [name for name in calls if name not in BUILT_IN]


BUILT_IN = frozenset(dir(builtins))
