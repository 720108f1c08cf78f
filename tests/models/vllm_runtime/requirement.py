"""Whether vLLM is there, and what its absence means."""

import importlib.util
import os
from typing import NoReturn

import pytest

REQUIRED = os.environ.get("DECODING_SERVER_TEST_VLLM") == "required"


def missing() -> str:
    """Why vLLM can't be tested here, or nothing."""
    return "" if importlib.util.find_spec("vllm") is not None else "vllm is not installed (make test-vllm)"


def do_without(reason: str) -> NoReturn:
    """Skips, or fails where all is required."""
    if REQUIRED:
        pytest.fail(f"{reason}, and DECODING_SERVER_TEST_VLLM=required")
    pytest.skip(reason)
