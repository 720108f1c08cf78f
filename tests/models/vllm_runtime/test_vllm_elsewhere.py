"""These tests in another environment: DECODING_SERVER_TEST_VLLM=/path/to/python names one that has vLLM and what this
project needs (`make vllm-env`)."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMED = os.environ.get("DECODING_SERVER_TEST_VLLM", "required")


@pytest.mark.timeout(1800)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")
@pytest.mark.skipif(NAMED == "required", reason="DECODING_SERVER_TEST_VLLM names no interpreter")
def test_with_the_interpreter_that_has_vllm() -> None:
    environment = os.environ | {"DECODING_SERVER_TEST_VLLM": "required", "PYTHONPATH": str(ROOT)}
    command = [NAMED, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
