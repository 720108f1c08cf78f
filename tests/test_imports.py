"""Imports point one way: decoding_server -> models -> strategies; strategies knows neither HTTP nor model classes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "strategies": {"decoding_server", "models", "fastapi", "starlette", "uvicorn", "httpx", "transformers"},
    "models": {"decoding_server", "fastapi", "starlette", "uvicorn"},
    "decoding_server": {"torch", "transformers"},
}


def imported(source: str) -> Iterator[str]:
    """Top-level names of all modules that the source imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_direction(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    # The benchmark compares with other engines, so it alone may import them.
    offences = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        if "bench" not in file.relative_to(ROOT).parts
        for name in imported(file.read_text(encoding="utf-8"))
        if name in FORBIDDEN[package]
    ]
    assert offences == []


def test_the_check_sees_nested_imports() -> None:
    assert set(imported("def f():\n    import models.x\n    from decoding_server.y import z\n")) == {
        "models",
        "decoding_server",
    }
