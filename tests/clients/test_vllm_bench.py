"""`vllm bench serve`, from the environment whose python DECODING_SERVER_TEST_VLLM names (it can't live in ours)."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from running_server import Server

PROMPTS, INPUT_TOKENS, OUTPUT_TOKENS = 4, 16, 8
BENCH_SERVE = """
import argparse
from vllm.entrypoints.cli.benchmark.serve import BenchmarkServingSubcommand as Command
parser = argparse.ArgumentParser()
Command.add_cli_args(parser)
Command.cmd(parser.parse_args())
"""
# What `vllm bench serve` runs. The command `vllm` itself asks for the distribution's version by the name "vllm", which
# the CPU builds do not have.


@pytest.fixture(scope="module")
def vllm_python(missing: Callable[[str], None]) -> str:
    python = os.environ.get("DECODING_SERVER_TEST_VLLM")
    if not python:
        pytest.skip("DECODING_SERVER_TEST_VLLM names no python with vllm")
    if not Path(python).exists():
        pytest.fail(f"DECODING_SERVER_TEST_VLLM={python} does not exist")
    return python


@pytest.mark.parametrize(
    ("backend", "endpoint"), [("openai-chat", "/v1/chat/completions"), ("openai", "/v1/completions")]
)
def test_every_request_succeeds_and_every_token_is_counted(
    server: Server, offline: Mapping[str, str], vllm_python: str, tmp_path: Path, backend: str, endpoint: str
) -> None:
    command = [vllm_python, "-c", BENCH_SERVE, "--backend", backend, "--endpoint", endpoint]
    command += ["--base-url", server.url, "--model", server.model, "--tokenizer", str(server.folder)]
    command += ["--dataset-name", "random", "--num-prompts", str(PROMPTS), "--random-input-len", str(INPUT_TOKENS)]
    command += ["--random-output-len", str(OUTPUT_TOKENS), "--ignore-eos", "--max-concurrency", "2", "--disable-tqdm"]
    command += ["--temperature", "0", "--repetition-penalty", "1.0", "--logprobs", "1"]
    command += ["--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "result.json"]
    done = subprocess.run(command, env=dict(offline), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result: dict[str, Any] = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (PROMPTS, 0)
    assert result["output_lens"] == [OUTPUT_TOKENS] * PROMPTS
    assert result["total_output_tokens"] == PROMPTS * OUTPUT_TOKENS
    # Every token had a chunk of its own, so the gaps between tokens were measured. In a chat the tool also counts the
    # chunk with the role, which comes with the first token, and the one with the finish reason.
    frame = 2 if backend == "openai-chat" else 0
    assert [len(gaps) for gaps in result["itls"]] == [OUTPUT_TOKENS - 1 + frame] * PROMPTS
    assert all(seconds > 0 for seconds in result["ttfts"])
    server.wait_until_idle()
