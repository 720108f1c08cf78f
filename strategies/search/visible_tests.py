"""The tests that a search for programs goes by: given in the request, found in the prompt, or written by the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from strategies.sandbox.checks import CallCheck, Check, check_assert, check_call, check_input, check_stdin
from strategies.sandbox.inside.work import Work
from strategies.search.prompt_examples import literal_calls, parse_examples
from strategies.search.vetting import Vetted, agree, vetted

Origin = Literal["given", "prompt", "generated"]
MAX_LINES = 64
"""Of asserts that are read in a reply: half as many tests are wanted at most."""
Text = Annotated[str, Field(max_length=16384)]


class AssertTest(BaseModel):
    """An assert statement that calls the function."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)

    statement: Text = Field(alias="assert")

    def check(self, entry_point: str, work: Work) -> Check:
        return check_assert(self.statement, entry_point, work)

    @property
    def source(self) -> str:
        return self.statement


class CallTest(BaseModel):
    """A call, and an expression for what it returns."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    call: Text
    expected: Text

    def check(self, entry_point: str, work: Work) -> Check:
        return check_call(self.call, self.expected, entry_point, work)

    @property
    def source(self) -> str:
        return f"assert ({self.call}) == ({self.expected})"


class ScriptTest(BaseModel):
    """Standard input of a script, and what it prints."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    stdin: Text
    stdout: Text

    def check(self, entry_point: str, work: Work) -> Check:
        return check_stdin(self.stdin, self.stdout)

    @property
    def source(self) -> str:
        return f"{self.stdin}\0{self.stdout}"


KEYS = {"AssertTest": ("assert", "statement"), "CallTest": ("call", "expected"), "ScriptTest": ("stdin", "stdout")}


def kind_of_test(given: object) -> str | None:
    """Which of the three a test is meant to be, by its keys; None for what is no test at all."""
    keys = given if isinstance(given, dict) else type(given).model_fields if isinstance(given, BaseModel) else ()
    return next((kind for kind, names in KEYS.items() if any(name in keys for name in names)), None)


GivenTest = Annotated[
    Annotated[AssertTest, Tag("AssertTest")]
    | Annotated[CallTest, Tag("CallTest")]
    | Annotated[ScriptTest, Tag("ScriptTest")],
    Discriminator(
        kind_of_test,
        custom_error_type="value",
        custom_error_message="must be an object with 'assert', 'call' and 'expected', or 'stdin' and 'stdout'",
    ),
]


@dataclass(frozen=True, slots=True)
class VisibleTest:
    """source: as the model is shown it."""

    source: str
    check: Check
    origin: Origin


def given_tests(tests: Sequence[GivenTest], entry_point: str, work: Work) -> list[VisibleTest]:
    """work: for the arguments of all. Raises ValueError for one that can't be used."""
    return [
        VisibleTest(
            f"input {test.stdin!r} must print {test.stdout!r}" if isinstance(test, ScriptTest) else test.source,
            test.check(entry_point, work),
            "given",
        )
        for test in tests
    ]


def prompt_tests(prompt: str, entry_point: str, known: Sequence[VisibleTest]) -> list[VisibleTest]:
    """The prompt's examples, but for calls that a given test makes: that one wins."""
    tests = []
    for call, expected in parse_examples(prompt, entry_point):
        try:
            check = check_call(call, expected, entry_point)
        except ValueError:
            continue
        tests.append(VisibleTest(f"assert {call} == {expected}", check, "prompt"))
    return [test for test in tests if call_of(test.check) not in {call_of(one.check) for one in known}]


def generated_tests(
    replies: Sequence[str],
    entry_point: str,
    known: Sequence[VisibleTest],
    most: int,
    read: dict[str, Vetted | None] | None = None,
) -> tuple[list[VisibleTest], int]:
    """At most `most` usable ones of the asserts in all of a model's replies, and how many were dropped: what is not
    `vetted`, repeats, makes the call of a known test, or stands behind a reply's first MAX_LINES. Of tests of one call,
    in whichever replies, the first is kept if they `agree`, else none. read: what is known of lines, to which it is
    added."""
    read = {} if read is None else read
    calls = {call_of(test.check) for test in known}
    found: dict[str, dict[str, Vetted]] = {}
    lines = [[line for line in reply.split("\n") if "assert" in line] for reply in replies]
    for line in (line for reply in lines for line in reply[:MAX_LINES]):
        statement = line[line.index("assert") :].strip().strip("`")
        if statement not in read:
            read[statement] = vetted(statement, entry_point)
        good = read[statement]
        if good is not None and (call := call_of(good.check)) is not None and call not in calls:
            found.setdefault(call, {}).setdefault(good.source, good)
    kept: list[VisibleTest] = []
    for versions in (list(of_call.values()) for of_call in found.values()):
        if len(kept) < most and (len(versions) == 1 or agree(versions)):
            kept.append(VisibleTest(versions[0].source, versions[0].check, "generated"))
    return kept, sum(map(len, lines)) - len(kept)


def inputs_of(texts: Sequence[str], entry_point: str, most: int) -> list[CallCheck]:
    """At most `most` calls with literal arguments from any texts: what programs are compared by where no test is."""
    found: dict[str, CallCheck] = {}
    for call in dict.fromkeys(call for text in texts for call in literal_calls(text, entry_point)):
        try:
            found[call] = check_input(call, entry_point)
        except ValueError:
            continue
    return list(found.values())[:most]


def call_of(check: Check) -> str | None:
    """Equal for tests that make one and the same call; None for tests of another kind."""
    return json.dumps(check.units[0]) if isinstance(check, CallCheck) and len(check.units) == 1 else None
