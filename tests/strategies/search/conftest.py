"""One sandbox for all tests of a module that run programs."""

import asyncio
from collections.abc import Iterator

import pytest
from program_bench import BENCH, opened


@pytest.fixture(scope="module")
def program_bench() -> Iterator[None]:
    """Opens the sandbox of `BENCH`; skips where none works."""
    runner = asyncio.Runner()
    BENCH.runner = runner
    BENCH.sandbox = runner.run(opened())
    yield
    runner.run(BENCH.sandbox.close())
    runner.close()
