"""How runs are classified, on every backend, confining or not."""

import asyncio

import psutil
import pytest
from attacking import LIMITS, outcome, returned

from strategies.sandbox.checks import Check, check_assert, check_call, check_stdin
from strategies.sandbox.outcome import Limits, Outcome, Program
from strategies.sandbox.sandbox import Sandbox

QUICK = Limits(test_s=1, memory_mb=256, output_kb=64)


async def outcomes(
    sandbox: Sandbox, source: str, *checks: Check, setup: str = "", limits: Limits = LIMITS
) -> list[str]:
    results = await sandbox.run(Program(source, "f", setup), checks, limits)
    return [str(result.outcome) for result in results]


def calls(*numbers: int) -> list[Check]:
    """Tests f(n) == n + 1."""
    return [check_assert(f"assert f({n}) == {n + 1}", "f") for n in numbers]


async def test_pass_and_wrong_value(any_sandbox: Sandbox) -> None:
    source = "def f(x):\n    return x + 1 if x != 2 else None\n"
    results = await any_sandbox.run(Program(source, "f"), calls(1, 2, 3))
    assert [result.outcome for result in results] == [Outcome.PASS, Outcome.WRONG_VALUE, Outcome.PASS]
    assert [result.got for result in results] == ["2", "None", "4"]
    assert [result.passed for result in results] == [True, False, True]


async def test_each_test_has_a_fresh_program(any_sandbox: Sandbox) -> None:
    source = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)\n"
    assert [r.got for r in await any_sandbox.run(Program(source, "f"), calls(1, 2, 3))] == ["1", "1", "1"]


async def test_exceptions(any_sandbox: Sandbox) -> None:
    source = (
        "def f(x):\n    if x == 1:\n        return {}[x]\n    raise SystemExit(0) if x == 2 else KeyboardInterrupt\n"
    )
    first, second, third = await any_sandbox.run(Program(source, "f"), calls(1, 2, 3))
    assert (first.outcome, first.error, first.message, first.line) == (Outcome.EXCEPTION, "KeyError", "1", 3)
    assert (second.outcome, second.error) == (Outcome.EXCEPTION, "SystemExit")
    assert (third.outcome, third.error) == (Outcome.EXCEPTION, "KeyboardInterrupt")


async def test_a_program_of_its_own_asserts(any_sandbox: Sandbox) -> None:
    """AssertionError from the program, in a test judged outside, is an exception like any other."""
    assert await outcomes(any_sandbox, "def f(x):\n    assert False\n", *calls(1)) == ["exception"]


async def test_syntax_and_entry_point(any_sandbox: Sandbox) -> None:
    results = await any_sandbox.run(Program("def f(x):\n  return )\n", "f"), calls(1, 2))
    assert [(r.outcome, r.line) for r in results] == [(Outcome.SYNTAX_ERROR, 2)] * 2
    assert await outcomes(any_sandbox, "a = '\0'", *calls(1)) == ["syntax_error"]
    assert await outcomes(any_sandbox, "'\ud800'", *calls(1)) == ["syntax_error"]
    assert await outcomes(any_sandbox, "def g(x):\n    return x\n", *calls(1)) == ["missing_entry_point"]
    assert await outcomes(any_sandbox, "f = 3\n", *calls(1)) == ["missing_entry_point"]
    assert await outcomes(any_sandbox, "raise ValueError('top')\n", *calls(1)) == ["exception"]
    assert await outcomes(any_sandbox, "", *calls(1)) == ["missing_entry_point"]


async def test_fatal_tests_end_alone(any_sandbox: Sandbox) -> None:
    source = """
import os, sys, time
def f(x):
    if x == 1:
        os._exit(0)
    if x == 3:
        while True:
            pass
    if x == 4:
        time.sleep(100)
    if x == 6:
        import ctypes
        ctypes.string_at(0)
    if x == 7:
        os._exit(7)
    return x + 1
"""
    results = await any_sandbox.run(Program(source, "f"), calls(1, 2, 3, 4, 5, 6, 7, 8), QUICK)
    assert [str(r.outcome) for r in results] == [
        *("exit", "pass", "timeout", "timeout", "pass", "crash", "exit", "pass")
    ]
    assert results[5].message == "signal 11"
    assert results[6].message == "exit code 7"


@pytest.mark.parametrize(
    "body",
    [
        "buffers = []\n    while True:\n        buffers.append(bytearray(10_000_000))",
        "return 'a' * 10**10",
        "return [0] * 10**9",
        "return 1 << 10**10",
        "return list(range(10**9))",
    ],
)
async def test_memory(body: str, any_sandbox: Sandbox) -> None:
    result = await outcome(any_sandbox, f"def f(x):\n    {body}\n", Limits(test_s=10, memory_mb=256))
    assert result.outcome is Outcome.OOM, result


async def test_memory_of_the_machine_stays(any_sandbox: Sandbox) -> None:
    """What a memory bomb adds to all the processes below this one, watched from outside while it runs."""
    peak = 0

    def held_now() -> int:
        held = 0
        for process in psutil.Process().children(recursive=True):
            try:
                held += process.memory_full_info().uss
            except psutil.Error:
                continue
        return held

    source = """
import time
def f(n):
    blocks = []
    try:
        while True:
            blocks.append(b"x" * 1_000_000 + bytes(1))
    except MemoryError:
        time.sleep(0.5)
        return len(blocks)
"""
    before = held_now()  # other tests' servers may live below this process too
    running = asyncio.create_task(returned(any_sandbox, source, 1, limits=Limits(test_s=20, memory_mb=256)))
    while not running.done():
        await asyncio.sleep(0.02)
        peak = max(peak, held_now() - before)
    assert 100 < await running < 256
    assert 100 << 20 < peak < (256 + 32) << 20


async def test_output(any_sandbox: Sandbox) -> None:
    for body in (
        "print('x' * 1_000_000)",
        "import os; os.write(2, b'x' * 4096)",
        "sys.stdout.buffer.write(b'\\0\\xff')",
    ):
        source = f"import sys\ndef f(x):\n    while True:\n        {body}\n"
        assert (await outcome(any_sandbox, source)).outcome is Outcome.OUTPUT_LIMIT
    source = "import sys\ndef f(x):\n    print('é\\0' * 999)\n    sys.stdout.buffer.write(b'\\xff')\n    return x + 1\n"
    assert await outcomes(any_sandbox, source, *calls(1, 2)) == ["pass"] * 2


@pytest.mark.parametrize(("printed", "expected"), [(4095, "pass"), (4096, "output_limit"), (30_000, "output_limit")])
async def test_output_counts_before_the_result(printed: int, expected: str, any_sandbox: Sandbox) -> None:
    """Even if all of it is in the pipe when the result is."""
    source = f"def f(x):\n    print('x' * {printed}, end='')\n    return x + 1\n"
    for _ in range(3):
        assert await outcomes(any_sandbox, source, *calls(1), limits=Limits(10, 256, 4)) == [expected]


async def test_results_too_large(any_sandbox: Sandbox) -> None:
    for value in ("'x' * 2_000_000", "[0] * 200_000", "{i: i for i in range(100_000)}", "1 << 10_000_000"):
        assert (await outcome(any_sandbox, f"def f(x):\n    return {value}\n", Limits(10, 512))).outcome is (
            Outcome.OPAQUE_VALUE
        )
    assert await returned(any_sandbox, "def f(x):\n    return 'x' * x\n", 900_000) == "x" * 900_000


async def test_recursion(any_sandbox: Sandbox) -> None:
    plain = await outcome(any_sandbox, "def f(x):\n    return f(x)\n")
    assert (plain.outcome, plain.error) == (Outcome.EXCEPTION, "RecursionError")
    raised = "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return {}\n"
    for body in ("f(x)", "sorted([x, x], key=f)"):  # through Python's frames, through C's
        endless = await outcome(any_sandbox, raised.format(body), Limits(test_s=10, memory_mb=96))
        assert endless.outcome in (Outcome.OOM, Outcome.TIMEOUT, Outcome.CRASH), endless


async def test_hopeless_regular_expression(any_sandbox: Sandbox) -> None:
    source = "import re\ndef f(x):\n    return re.match('(a+)+$', 'a' * 50 + 'b')\n"
    assert (await outcome(any_sandbox, source, QUICK)).outcome is Outcome.TIMEOUT


async def test_a_large_program(any_sandbox: Sandbox) -> None:
    source = "def f(x):\n    return x + 1\n" + "# " + "é" * 500_000 + "\n" + "y = 1\n" * 5_000
    assert await outcomes(any_sandbox, source, *calls(1, 2), limits=Limits(20, 512)) == ["pass"] * 2
    deep = "x = " + "(" * 100_000
    assert await outcomes(any_sandbox, deep, *calls(1), limits=Limits(20, 512)) == ["syntax_error"]
    deep = "x = " + "-" * 1_000_000 + "1"
    [result] = await outcomes(any_sandbox, deep, *calls(1), limits=Limits(20, 512))
    assert result in ("oom", "exception", "crash", "syntax_error")


async def test_statements_and_setup(any_sandbox: Sandbox) -> None:
    source = "class P:\n    def __init__(self, x):\n        self.x = x\ndef f(p):\n    return p.x\n"
    checks = [check_assert(f"assert f(make(1)) == {n}", "f") for n in (1, 2)]
    results = await any_sandbox.run(Program(source, "f", setup="def make(x):\n    return P(x)\n"), checks)
    assert [str(r.outcome) for r in results] == ["pass", "assert_fail"]
    assert [r.spoofable for r in results] == [True, True]


async def test_scripts(any_sandbox: Sandbox) -> None:
    source = (
        "import sys\nn = int(input())\nrest = sys.stdin.read()\nprint('noise', file=sys.stderr)\nprint(n + 1, rest)\n"
    )
    ending = "\nimport os\nsys.stdout.flush()\nos._exit({})\n"
    checks = [check_stdin("1\nab c", "2 ab c\n"), check_stdin("2\n", "4\n"), check_stdin("x\n", "")]
    assert await outcomes(any_sandbox, source, *checks) == ["pass", "wrong_value", "exception"]
    assert await outcomes(any_sandbox, source + "sys.exit(0)", *checks[:1]) == ["pass"]
    assert await outcomes(any_sandbox, source + "exit()", *checks[:1]) == ["pass"]
    assert await outcomes(any_sandbox, source + "sys.exit(1)", *checks[:1]) == ["exception"]
    assert await outcomes(any_sandbox, source + ending.format(0), *checks[:1]) == ["pass"]
    assert await outcomes(any_sandbox, source + ending.format(3), *checks[:1]) == ["exit"]
    main = "if __name__ == '__main__':\n    import os\n    os.write(1, os.read(0, 100))\n"
    assert await outcomes(any_sandbox, main, check_stdin("é\n", "é")) == ["pass"]
    assert await outcomes(any_sandbox, "while True:\n    print(1)\n", *checks[:1]) == ["output_limit"]
    assert await outcomes(any_sandbox, "while True:\n    pass\n", *checks[:1], limits=QUICK) == ["timeout"]
    wrapped = "import io, sys\nsys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))\nprint(input())\n"
    assert await outcomes(any_sandbox, wrapped, check_stdin("a b", "a b")) == ["pass"]
    assert await outcomes(
        any_sandbox, "import sys\nprint(1, flush=True)\nsys.stdout = None\n", check_stdin("", "1")
    ) == ["pass"]
    long = "print('x' * 60000)"
    assert await outcomes(any_sandbox, long, check_stdin("", "x" * 16000)) == ["wrong_value"]


async def test_all_kinds_of_tests_together(any_sandbox: Sandbox) -> None:
    source = "def f(x):\n    return x * 2\nif __name__ == '__main__':\n    print(f(input()))\n"
    checks = [check_stdin("a", "aa"), check_call("f(2)", "4", "f"), check_assert("assert f(f(1)) == 4", "f")]
    assert await outcomes(any_sandbox, source, *checks, *checks) == ["pass"] * 6
    assert await any_sandbox.run(Program(source, "f"), []) == []


async def test_values_of_all_types(any_sandbox: Sandbox) -> None:
    value = [None, True, 10**5000, -1.5, 2j, "é\0\ud800", b"\xff", (1, (2,)), {1, 2}, frozenset({3}), {"a": {1: [()]}}]
    assert await returned(any_sandbox, "def f(x):\n    return x\n", value) == value


@pytest.mark.parametrize(
    "body",
    [
        "yield from (3, 1)",
        "return range(3, 0, -2)",
        "return map(int, '31')",
        "return deque((3, 1))",
        "return {3: 0, 1: 0}.keys()",
        "return {0: 3, 2: 1}.values()",
        "return Pair(3, 1)",
        "return Items()",
        "return [3, 1]",
        "return Counter((3, 3, 1))",
    ],
)
async def test_results_of_which_only_the_items_count(any_sandbox: Sandbox, body: str) -> None:
    source = (
        "from collections import Counter, deque, namedtuple\nPair = namedtuple('Pair', 'x y')\n"
        "class Items:\n    def __getitem__(self, i):\n        return (3, 1)[i]\n"
        "    def __len__(self):\n        return 2\n"
        f"def f(x):\n    {body}\n"
    )
    expressions = ["list(f(1)) == [3, 1]", "tuple(f(1)) == (3, 1)", "sorted(f(1)) == [1, 3]", "set(f(1)) == {1, 3}"]
    expressions += ["frozenset(f(1)) == {1, 3}", "sum(f(1)) == 4", "min(f(1)) == 1", "max(f(1)) == 3", "all(f(1))"]
    expressions += ["any(f(1))", "list(f(1)) == sorted(f(2), reverse=True)"]
    checks = [check_assert(f"assert {expression}", "f") for expression in expressions]
    assert await outcomes(any_sandbox, source, *checks) == ["pass"] * len(checks)
    wrong = [
        check_assert(f"assert {form}", "f") for form in ("list(f(1)) == [1, 3]", "list(f(1)) == [3]", "sum(f(1))<4")
    ]
    assert await outcomes(any_sandbox, source, *wrong) == ["wrong_value"] * 3
    # A length is asked only of what has one, and only items are taken for it: the value itself is none that crosses.
    built_in = "[" in body or "Counter" in body
    sized = [check_assert("assert len(f(1)) == 2", "f"), check_assert("assert f(1) == 7", "f")]
    assert await outcomes(any_sandbox, source, *sized) == [
        "opaque_value" if "yield" in body or "map" in body else "pass",
        "wrong_value" if built_in else "opaque_value",
    ]


async def test_a_length_is_that_of_the_value(any_sandbox: Sandbox) -> None:
    """`len` is not the number of items where `__len__` says otherwise, and raises what `__len__` raises."""
    checks = [check_assert(f"assert len(f(1)) == {number}", "f") for number in (1, 3)]
    for body, expected in (("3", "opaque_value"), ("1", "pass"), ("1 << 70", "exception"), ("-1", "exception")):
        source = (
            f"class Items:\n    def __len__(self):\n        return {body}\n    def __iter__(self):\n        yield 1\n"
            "def f(x):\n    return Items()\n"
        )
        wrong = "wrong_value" if expected == "pass" else expected
        assert await outcomes(any_sandbox, source, *checks) == [expected, wrong], body


async def test_collecting_items_ends_as_a_call_does(any_sandbox: Sandbox) -> None:
    check = check_assert("assert list(f(1)) == [1]", "f")
    for body, expected in (
        ("while True:\n        yield 1", "opaque_value"),  # too large
        ("yield from [1] * 65_534", "wrong_value"),
        ("yield from [1] * 65_536", "opaque_value"),
        ("while True:\n        yield 'x' * (1 << 20)", "oom"),
        ("while True:\n        pass\n    yield 1", "timeout"),
        ("yield 1\n    raise ValueError", "exception"),
        ("yield object()", "opaque_value"),
        ("return object()", "opaque_value"),
        ("return 1", "wrong_value"),
    ):
        assert await outcomes(any_sandbox, f"def f(x):\n    {body}\n", check, limits=QUICK) == [expected], body


async def test_sets_have_the_same_order_in_each_process(any_sandbox: Sandbox) -> None:
    source = "def f(x):\n    return list({str(i) for i in range(50)})\n"
    assert await returned(any_sandbox, source, 1) == await returned(any_sandbox, source, 1)


async def test_limits_can_only_be_lowered(any_sandbox: Sandbox) -> None:
    for field, limits in (
        ("test_s", Limits(test_s=61)),
        ("memory_mb", Limits(memory_mb=2048)),
        ("output_kb", Limits(output_kb=2048)),
    ):
        with pytest.raises(ValueError, match=field):
            await any_sandbox.run(Program("", "f"), [], limits)
