"""What the searches for programs ask the model. An operator can replace any of these texts."""

import string
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from strategies.sandbox.outcome import Outcome, Result

CODER = (
    "Write Python 3. Reply with one fenced code block holding the complete definition of `{entry_point}` and the "
    "imports it needs."
)
SCRIPTER = "Write Python 3. Reply with one fenced code block holding a complete program that reads standard input."
SHOWN = 5
"""Failed tests, and passed ones, that the model sees."""
MAX_SHOWN = 400
MAX_QUOTED = 100
"""Characters of a text of the program's that stand in a prompt."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Templates, in pairs of a system's and a user's text. {fields} are filled in; a literal brace is doubled.

    coder, scripter: the system's text whenever code is asked for, for a function and for a script.
    """

    coder: str = CODER
    scripter: str = SCRIPTER
    seed: str = "{task}"
    themed_seed: str = "{task}\n\n{theme}"
    tests_system: str = "You check Python functions by example."
    tests: str = (
        "Task:\n{task}\n\nGive {n} one-line checks of `{entry_point}`, each like `assert {entry_point}(…) == …`, with "
        "inputs small enough to work out by hand, covering usual and edge cases. Reply with one fenced block."
    )
    inputs_system: str = "You try Python functions out."
    inputs: str = (
        "Task:\n{task}\n\nGive {n} calls of `{entry_point}`, one a line, each like `{entry_point}(…)`, with literal "
        "arguments that are small and cover usual and edge cases. Do not say what they return. Reply with one fenced "
        "block."
    )
    directions_system: str = "You review a failing program and plan repairs."
    directions: str = (
        "Task:\n{task}\n\nProgram:\n```python\n{program}```\n\nResults:\n{results}\n\nLessons so far:\n{lessons}\n\n"
        "First one short diagnosis. Then {m} repairs that differ in approach, each one line, starting `Direction 1:`, "
        "`Direction 2:` and so on. No code."
    )
    apply: str = (
        "Task:\n{task}\n\nProgram:\n```python\n{program}```\n\nResults:\n{results}\n\n"
        "Carry out this change and nothing else: {direction}"
    )
    lessons_system: str = "You keep a short list of lessons for a team that repairs programs."
    lessons: str = (
        "Task:\n{task}\n\n{outcomes}\n\nOld lessons:\n{lessons}\n\nRewrite the list: at most 8 lines, general, not "
        "about this program alone. First line `Lessons:`."
    )
    outcome: str = (
        "A program:\n```python\n{program}```\nIts results:\n{results}\n\nThe change: {direction}\n\n"
        "The new program:\n```python\n{new_program}```\nIts results:\n{new_results}\n\nThe score went from {score} to "
        "{new_score}."
    )
    reflection_system: str = "You review a failing program."
    reflection: str = (
        "Task:\n{task}\n\nProgram:\n```python\n{program}```\n\nResults:\n{results}\n\n"
        "In at most four sentences say what is wrong. No code."
    )
    rewrite: str = (
        "Task:\n{task}\n\nProgram:\n```python\n{program}```\n\nResults:\n{results}\n\n{reflection}\n\n{order}"
    )

    @classmethod
    def load(cls, path: Path) -> "Prompts":
        """From a TOML file with some of the names above. Raises ValueError that names what is wrong."""
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None
        own = cls()
        known = {one.name for one in fields(cls)}
        for name, text in given.items():
            if name not in known:
                raise ValueError(f"{path}: no prompt is called {name!r}; there are: {', '.join(sorted(known))}")
            if not isinstance(text, str):
                raise ValueError(f"{path}: {name} must be a text")
            unknown = placeholders(text, path, name) - placeholders(getattr(own, name), path, name) - {"entry_point"}
            if unknown:
                raise ValueError(f"{path}: {name} has no field {{{sorted(unknown)[0]}}}")
        return cls(**given)


def placeholders(text: str, path: Path, name: str) -> set[str]:
    try:
        return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as error:
        raise ValueError(f"{path}: {name}: {error}; write a literal brace twice") from None


REPAIR = "Write the whole program again, repaired."
STOCK = (
    "Find the first failed check, trace it by hand, and repair the line that makes it go wrong.",
    "Solve the task in another way than this program does, step by step and as simply as possible.",
    "Go through the cases that the task mentions and through empty, single and repeated inputs, and handle each.",
    "Compare the results' types and form with what the checks expect, and return exactly that.",
)
"""For models that propose nothing in the form asked for."""

INSTRUCTION = (
    "Prefer plain loops and simple conditions.",
    "Prefer built-in functions and comprehensions.",
    "Split the work into small functions.",
    "Handle special cases first and return early.",
    "Think about a recursive solution.",
    "Choose the data structure first: a dictionary, a set, a heap or a queue may make it simple.",
    "Aim for the least running time on large inputs.",
    "Follow the words of the task literally, sentence by sentence.",
    "Sort or otherwise arrange the input first where that helps.",
    "Use the standard library where it does the work.",
)
ROLE = (
    "You are a careful teacher who writes for beginners.",
    "You are a programmer of games who likes tricks that are fast.",
    "You are a mathematician who looks for a formula first.",
    "You are a tester who distrusts every input.",
    "You are a functional programmer who avoids changing state.",
    "You are an engineer of embedded systems who wastes no memory.",
    "You are a data analyst who thinks in tables and groups.",
    "You are a competitor in programming contests.",
    "You are a maintainer of an old library who likes boring code.",
    "You are a writer of compilers who thinks in grammars and states.",
    "You are a scientist who writes down the cases before the code.",
    "You are a reviewer who has seen every off-by-one error.",
)
THEMES = {"instruction": INSTRUCTION, "role": ROLE, "none": ()}


def feedback(tests: list[str], results: list[Result], *, printed: bool = False) -> str:
    """What the model sees of a run: failed tests first. Texts of the program's are quoted and cut, since they could be
    meant for the model. printed: results are output, not values."""
    rows = list(zip(tests, results, strict=True))
    failed = [row for row in rows if not row[1].passed]
    passed = [row for row in rows if row[1].passed]
    lines = [f"failed: {shown(test)}: {what_happened(result, printed=printed)}" for test, result in failed[:SHOWN]]
    lines += [f"passed: {shown(test)}" for test, _ in passed[:SHOWN]]
    return "\n".join(lines) or "no checks were run"


def shown(test: str) -> str:
    return test if len(test) <= MAX_SHOWN else test[: MAX_SHOWN - 1] + "…"


def quoted(text: str) -> str:
    """On one line, so that it can't pass for the prompt's own words."""
    return repr(text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…")


def what_happened(result: Result, *, printed: bool = False) -> str:
    match result.outcome:
        case Outcome.WRONG_VALUE | Outcome.OPAQUE_VALUE:
            if printed:
                return f"got {quoted(result.got)}"
            if not result.got:
                return f"got nothing that compares ({quoted(result.message)})"
            # A value is in quotes where it is a text; a line break is the name's of a class that the program made.
            return f"got {quoted(result.got) if chr(10) in result.got else result.got}"
        case Outcome.TIMEOUT:
            return "TIMEOUT"
        case Outcome.EXCEPTION | Outcome.SYNTAX_ERROR:
            name = result.error or str(result.outcome)
            error = name if name.isidentifier() else quoted(name)
            place = f" in line {result.line}" if result.line else ""
            return f"{error}{f': {quoted(result.message)}' if result.message else ''}{place}"
    return str(result.outcome).replace("_", " ")
