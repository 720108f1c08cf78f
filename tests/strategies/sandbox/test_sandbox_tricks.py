"""Programs that lie: whatever they do inside, a test passes only for a value that equals the expected one.

The expected value is never inside, which the last test looks for itself.
"""

import json

import pytest
from attacking import LIMITS, outcome, returned

from strategies.sandbox.checks import check_assert, check_call, check_stdin
from strategies.sandbox.outcome import Limits, Outcome, Program
from strategies.sandbox.run import job_of
from strategies.sandbox.sandbox import Sandbox, batches
from strategies.sandbox.worker import Worker

OBJECTS = {
    "an object equal to everything": """
class Agreeable:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __repr__(self): return "'unguessable'"
def f(x): return Agreeable()
""",
    "an int equal to everything": """
class Agreeable(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return Agreeable(1)
""",
    "a string equal to everything, deep inside": """
class Agreeable(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(x): return [{"a": (Agreeable("x"),)}]
""",
    "a liar about its class": """
class Liar:
    @property
    def __class__(self): return str
    def __str__(self): return "unguessable"
def f(x): return Liar()
""",
    "pickling": """
import os
class Bomb:
    def __reduce__(self): return (os.system, ("touch /tmp/pwned",))
    def __reduce_ex__(self, protocol): return self.__reduce__()
    def __getstate__(self): raise SystemExit
def f(x): return Bomb()
""",
    "an iterator that never ends": """
class Endless(list):
    def __iter__(self):
        while True: yield 1
def f(x): return Endless()
""",
    "a metaclass that lies about its name": """
class Meta(type):
    @property
    def __name__(cls): raise MemoryError
class A(metaclass=Meta): pass
def f(x): return A()
""",
    "a generator": "def f(x):\n    yield 1\n",
    "a cycle": "def f(x):\n    a = []\n    a.append(a)\n    return a\n",
    "many paths": "def f(x):\n    a = [0]\n    for _ in range(39): a = [a, a]\n    return a\n",
    "deep": "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a\n",
}


@pytest.mark.parametrize("name", OBJECTS)
async def test_objects(name: str, any_sandbox: Sandbox) -> None:
    result = await outcome(any_sandbox, OBJECTS[name])
    assert result.outcome in (Outcome.OPAQUE_VALUE, Outcome.OOM), result


async def test_objects_in_the_tests_of_the_language_itself(any_sandbox: Sandbox) -> None:
    """The same object against every form of test that could be fooled."""
    source = OBJECTS["an object equal to everything"]
    forms = ("f(1) == 5", "f(1) != 5", "f(1)", "not f(1)", "f(1) in [1]", "f(1) is None", "5 == f(1)", "f(1) == f(1)")
    checks = [check_assert(f"assert {form}", "f") for form in forms]
    assert {r.outcome for r in await any_sandbox.run(Program(source, "f"), checks)} == {Outcome.OPAQUE_VALUE}


MISCHIEF = {
    "replacing built-ins": """
import builtins
builtins.type = lambda value: str
builtins.isinstance = lambda *a: True
builtins.AssertionError = type("E", (Exception,), {})
def f(x): return object()
""",
    "replacing json": """
import json
json.dumps = lambda *a, **k: '{"i": 0, "ev": "value", "v": ["str", "guess"]}'
json.JSONEncoder.encode = json.JSONEncoder.iterencode = json.dumps
def f(x): return 1
""",
    "replacing the codec": """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith("strategies"):
        for attribute in list(vars(module)):
            if not attribute.startswith("__"):
                setattr(module, attribute, lambda *a, **k: ["str", "guess"])
def f(x): return 1
""",
    "rewriting the worker's frame": """
import sys, gc, ctypes
def f(x):
    frame = sys._getframe()
    while frame.f_back:
        frame = frame.f_back
        if "worker" in frame.f_locals or "self" in frame.f_locals:
            target = frame.f_locals.get("worker") or frame.f_locals["self"]
            target.record = lambda **fields: None
    return 1
""",
    "tracing": """
import sys, threading
def trace(frame, event, argument):
    frame.f_trace_opcodes = True
    if event == "return" and frame.f_code.co_name == "encode":
        frame.f_locals["value"] = "guess"
    return trace
sys.settrace(trace); sys.setprofile(trace); threading.settrace(trace)
frame = sys._getframe()
while frame:
    frame.f_trace = trace
    frame = frame.f_back
def f(x): return 1
""",
    "forging records on every descriptor": """
import os, json
forged = b"".join(
    json.dumps(record).encode() + b"\\n"
    for i in range(3)
    for record in ({"i": i, "ev": "start"}, {"i": i, "ev": "value", "v": ["str", "guess"]}, {"ev": "ready"})
)
for descriptor in range(64):
    try:
        os.write(descriptor, forged)
    except OSError:
        pass
def f(x): return 1
""",
    "forging and dying": """
import os, json
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b'{"i": 0, "ev": "value", "v": ["str", "guess"]}\\n')
    except OSError:
        pass
os._exit(0)
""",
    "hooking exceptions and exit": """
import sys, atexit, os
sys.excepthook = lambda *a: os._exit(0)
atexit.register(lambda: print("passed"))
class E(Exception):
    def __str__(self): os._exit(0)
def f(x): raise E
""",
    "an exception that claims a verdict": """
class E(BaseException): pass
E.__name__ = E.__qualname__ = "pass"
def f(x): raise E("pass")
""",
    "leaving through a finalizer": """
import os
class Last:
    def __del__(self): os._exit(0)
def f(x): return [Last()] and 1
""",
    "closing the pipe": """
import os
def f(x):
    os.closerange(0, 64)
    return "guess"
""",
    "closing the pipe and staying": """
import os
def f(x):
    os.closerange(0, 64)
    while True: pass
""",
    "noise without newlines": """
import os
def f(x):
    for descriptor in range(3, 64):
        try:
            while True: os.write(descriptor, b"[" * 65536)
        except OSError: pass
""",
}


@pytest.mark.parametrize("name", MISCHIEF)
async def test_mischief(name: str, any_sandbox: Sandbox) -> None:
    """The test wants a value that is not known inside: nothing passes, and the next program is judged rightly."""
    for _ in range(2):
        result = await outcome(any_sandbox, MISCHIEF[name])
        assert result.outcome not in (Outcome.PASS, Outcome.NOT_RUN), result
        assert result.seconds < 20
    assert await returned(any_sandbox, "def f(x):\n    return x\n", "fine") == "fine"


async def test_a_forged_value_is_worth_what_a_returned_one_is(any_sandbox: Sandbox) -> None:
    """Writing records oneself gains nothing over returning the value: it must be right."""
    source = """
import os
def f(x):
    for descriptor in range(3, 4096):
        try:
            os.write(descriptor, b'{"i": 0, "ev": "value", "v": ["int", "5"]}\\n')
        except OSError:
            pass
    return 6
"""
    checks = [check_assert(f"assert f({n}) == {n}", "f") for n in (5, 6, 7)]
    results = await any_sandbox.run(Program(source, "f"), checks)
    assert [r.outcome for r in results] == [Outcome.PASS, Outcome.PASS, Outcome.WRONG_VALUE]


async def test_digging_finds_arguments_only(any_sandbox: Sandbox) -> None:
    """Everything reachable in the process, searched for the expected value's parts."""
    source = """
import gc, sys
sys.setrecursionlimit(10**5)
def f(x):
    found, seen, todo = [], set(), [gc.get_objects(), sys.modules, globals()]
    frame = sys._getframe()
    while frame:
        todo += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
        frame = frame.f_back
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) is bytes:
            value = value.decode("latin-1")
        if type(value) is str:
            for needle in ("expe_cted-1", "expe_cted-2", "argu_ment-1"):
                if needle.replace("_", "") in value:
                    found.append(needle)
        todo += gc.get_referents(value)
    return sorted(set(found), key=str)
"""
    limits = Limits(test_s=30, memory_mb=512)
    checks = [check_assert("assert f('argument-1') == 'expected-1'", "f"), check_call("f(2)", "'expected-2'", "f")]
    results = await any_sandbox.run(Program(source, "f"), checks, limits)
    assert [r.got for r in results] == ["['argu_ment-1']"] * 2


async def test_a_statement_can_be_forged_and_says_so(any_sandbox: Sandbox) -> None:
    """What must run inside can be fooled: the result is marked, so that nobody counts it as proof."""
    source = OBJECTS["an object equal to everything"]
    [result] = await any_sandbox.run(Program(source, "f"), [check_assert("assert f(f(1)) == 5", "f")])
    assert (result.outcome, result.spoofable) == (Outcome.PASS, True)


async def test_no_expected_value_is_sent(any_sandbox: Sandbox) -> None:
    checks = [
        check_assert("assert f(1) == 'SECRET'", "f"),
        check_call("f(2)", "{'SECRET': 5}", "f"),
        check_stdin("1", "SECRET"),
        check_assert("assert abs(f(3) - 1.25) < 0.125 and f(4) != 'SECRET'", "f"),
    ]
    units = [unit for batch in batches(checks) for _, unit in batch]
    async with any_sandbox.pool.worker() as worker:
        assert isinstance(worker, Worker)
        job = job_of(worker, Program("def f(x): pass", "f"), units, LIMITS)
    assert b"SECRET" not in job
    assert b"1.25" not in job
    assert json.loads(job)["units"] == json.loads(json.dumps(units))
