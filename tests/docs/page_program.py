"""Runs the Python blocks of one document as one program: a JSON list of [name, first line, code] on standard input.

A block with `await` outside of a function runs on an event loop, as in a notebook; it lasts for the whole page.
"""

import ast
import asyncio
import inspect
import json
import sys
from typing import Any


def run(parts: list[tuple[str, int, str]]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for name, line, code in parts:
            compiled = compile("\n" * (line - 1) + code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if compiled.co_flags & inspect.CO_COROUTINE:
                runner.run(eval(compiled, names))
            else:
                exec(compiled, names)


if __name__ == "__main__":
    run(json.load(sys.stdin))
