"""The worker: gives up its rights, says `ready`, reads one job, runs the untrusted program, writes records.

Started with its setup, a JSON object, as only argument (see `strategies/sandbox/backends.py`). The job is one JSON
object on stdin:

    {"source": str, "setup": str, "entry_point": str | null, "units": [unit, ...], "limits": {...}}
    unit: {"call": [[encoded, ...], {name: encoded}]} | {"statement": str} | {"stdin": str}
          a call may have "collect": "iterable" or "sized", for a result of which only the items count

Records, one JSON object a line on the result pipe: {"ev": "ready"}, then for unit i {"i": i, "ev": "start"} and one of

    {"i": i, "ev": "value", "v": encoded}
    {"i": i, "ev": "exc", "type": str, "message": str, "line": int | null}
    {"i": i, "ev": "syntax", "message": str, "line": int | null}      the program does not compile
    {"i": i, "ev": "missing"}                                         it defines no such function

The program runs afresh, in a namespace of its own, for each unit. It shares this process, so it can write any record
it likes; that gains nothing, since no expected value is here to be found.
"""

import builtins
import gc
import json
import os
import sys
from itertools import islice
from typing import Any

from strategies.sandbox.inside import confine
from strategies.sandbox.inside.codec import CROSSING, decode, encode

PROGRAM = "<program>"
MAX_RECORD = 1 << 20
MAX_MESSAGE = 200
WARM = ("bisect", "collections", "copy", "functools", "heapq", "itertools", "math", "re", "string", "typing")
"""Imported before the job comes: what most programs import. The rest of the standard library stays readable, so they
can import it themselves; each module here costs every worker its time."""


class Worker:
    """One job's state. `reserve` is memory to report a MemoryError with."""

    def __init__(self, results: int) -> None:
        self.results = results
        self.reserve: bytearray | None = bytearray(1 << 20)
        self.stdout = sys.stdout

    def record(self, **fields: Any) -> None:
        line = json.dumps(fields).encode() + b"\n"
        if len(line) > MAX_RECORD:
            line = json.dumps({"i": fields["i"], "ev": "value", "v": ["opaque", "too large"]}).encode() + b"\n"
        while line:
            line = line[os.write(self.results, line) :]

    def flush(self) -> None:
        """Before a record, so that what was printed counts first. The program may have replaced or closed streams."""
        for stream in (self.stdout, sys.stdout):
            try:
                stream.flush()
            except Exception:
                continue

    def run(self, job: dict[str, Any]) -> None:
        code: list[Any] = []
        for index, unit in enumerate(job["units"]):
            self.record(i=index, ev="start")
            try:
                if not code:
                    code = [compile(job[part], PROGRAM, "exec", dont_inherit=True) for part in ("source", "setup")]
            except (SyntaxError, ValueError) as error:  # ValueError: a NUL byte
                message = getattr(error, "msg", None) or str(error)
                self.record(i=index, ev="syntax", message=message[:MAX_MESSAGE], line=getattr(error, "lineno", None))
                return
            except BaseException as error:
                self.failed(index, error)
                return
            try:
                self.run_unit(index, unit, code, job)
            except BaseException as error:
                self.failed(index, error)
            gc.collect()

    def run_unit(self, index: int, unit: dict[str, Any], code: list[Any], job: dict[str, Any]) -> None:
        stdin = unit.get("stdin")
        name = "__main__" if stdin is not None else "program"
        module = type(sys)(name)
        sys.modules[name] = module
        namespace = module.__dict__
        if stdin is not None:
            replace_stdin(stdin)
            try:
                for part in code:
                    exec(part, namespace)
            except SystemExit as leaving:
                if leaving.code not in (None, 0):
                    raise
            self.flush()
            self.record(i=index, ev="value", v=["none"])
            return
        for part in code:
            exec(part, namespace)
        if "statement" in unit:
            exec(compile(unit["statement"], "<test>", "exec", dont_inherit=True), namespace)
            self.record(i=index, ev="value", v=["none"])
            return
        function = namespace.get(job["entry_point"])
        if not callable(function):
            self.record(i=index, ev="missing")
            return
        positional, named = unit["call"]
        arguments = [decode(argument) for argument in positional]
        keywords = {key: decode(argument) for key, argument in named.items()}
        value = function(*arguments, **keywords)
        if "collect" in unit:
            value = collected(value, unit["collect"])
        self.flush()
        try:
            encoded = encode(value, MAX_RECORD)
        except MemoryError:
            raise
        except Exception:  # a container that changes while it is read
            encoded = ["opaque", "unreadable"]
        self.record(i=index, ev="value", v=encoded)

    def failed(self, index: int, error: BaseException) -> None:
        """Records an exception of the program: its class, its text, and its last line within the program."""
        line, frame = None, error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == PROGRAM:
                line = frame.tb_lineno
            frame = frame.tb_next
        error.__traceback__ = None
        # Where memory for a frame runs out, CPython 3.11 forgets to say so.
        lost = type(error) is SystemError and error.args == ("error return without exception set",)
        if type(error) is MemoryError or lost:
            # No formatting beyond this: there may be no memory left but the reserve.
            self.reserve = None
            number = b"null" if line is None else b"%d" % line
            fields = b'"i": %d, "ev": "exc", "type": "MemoryError", "message": "", "line": %s' % (index, number)
            os.write(self.results, b"{" + fields + b"}\n")
            return
        try:
            message = str(error)[:MAX_MESSAGE]
        except BaseException:
            message = ""
        self.record(i=index, ev="exc", type=str(type(error).__name__)[:100], message=message, line=line)


def collected(value: Any, kind: str) -> Any:
    """The items of a value that can't cross itself, as a list: of a generator, a range, a view, a deque, …

    kind: "sized" leaves alone what has no length, or one that isn't the number of its items. No more items than a
    record can hold, so an endless generator ends too, by being too large.
    """
    sized = kind == "sized"
    if type(value) in CROSSING or (sized and not hasattr(type(value), "__len__")):
        return value
    length = len(value) if sized else None
    try:
        iterator = iter(value)
    except TypeError:
        return value
    items = list(islice(iterator, MAX_RECORD // 16 + 1))
    return value if sized and length != len(items) else items


def replace_stdin(text: str) -> None:
    """Makes the text the standard input: a file of the sandbox's own directory, already without a name."""
    handle = os.open("stdin", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.unlink("stdin")
    data = text.encode("utf-8", "surrogatepass")
    while data:
        data = data[os.write(handle, data) :]
    os.lseek(handle, 0, os.SEEK_SET)
    os.dup2(handle, 0)
    os.close(handle)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    # Standard error is not part of a program's answer, and shares the pipe of standard output.
    silence = os.open("/dev/null", os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)


def read_job() -> bytes:
    chunks = []
    while chunk := os.read(0, 1 << 16):
        chunks.append(chunk)
    empty = os.open("/dev/null", os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return b"".join(chunks)


def confine_self(setup: dict[str, Any]) -> None:
    """Everything that does not depend on the job. Imports come first: afterwards files may be out of reach."""
    for module in WARM:
        __import__(module)
    if "tmpfs" in setup:
        confine.own_tmpfs(**setup["tmpfs"])
    if "user" in setup:
        confine.drop_user(*setup["user"])
    if "parent" in setup:
        confine.die_with(setup["parent"])
    confine.drop_capabilities()
    confine.no_new_privileges()
    if "landlock" in setup:
        confine.landlock(setup["landlock"]["ruleset"], setup["landlock"]["rules"])
    if "seccomp" in setup:
        confine.seccomp(bytes.fromhex(setup["seccomp"]))


def main() -> None:
    setup = json.loads(sys.argv[1])
    worker = Worker(setup["results"])
    confine_self(setup)
    sys.argv[:] = [PROGRAM]
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # of the module `site`, which is not loaded
    worker.record(ev="ready", python=".".join(map(str, sys.version_info[:3])))
    gc.freeze()
    data = read_job()
    if not data:
        os._exit(0)  # the server stopped without a job
    job = json.loads(data)
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    confine.limit_resources(**job["limits"])
    worker.run(job)
    os._exit(0)
