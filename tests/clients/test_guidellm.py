"""guidellm's command line: a few streamed requests of synthetic text through both endpoints."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from running_server import Server

REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 4, 24, 6


@pytest.fixture(scope="module")
def guidellm(
    server: Server, offline: Mapping[str, str], missing: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """guidellm(profile, **backend): the only benchmark of the JSON report of one run."""
    if importlib.util.find_spec("guidellm") is None:
        missing("the package guidellm (extra 'clients')")

    def run(profile: str, **backend: str) -> Any:
        report = tmp_path_factory.mktemp("guidellm") / "report.json"
        given = {"kind": "openai_http", "target": server.url, "api_key": server.api_key} | backend
        command = [sys.executable, "-m", "guidellm", "run", "--disable-console-interactive"]
        command += ["--backend", ",".join(f"{key}={value}" for key, value in given.items())]
        command += ["--profile", profile, "--constraint", f"kind=max_requests,count={REQUESTS}"]
        command += ["--tokenizer", f"kind=huggingface_auto,model={server.folder}"]
        tokens = f"prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"
        command += ["--data", f"kind=synthetic_text,{tokens}", "--output", f"kind=json,path={report}"]
        environment = dict(offline) | {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}  # each imports everything again
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        (benchmark,) = json.loads(Path(report).read_text())["benchmarks"]
        return benchmark

    return run


@pytest.mark.parametrize(
    ("profile", "backend"),
    [
        ("kind=concurrent,streams=2", {"request_format": "/v1/chat/completions"}),
        ("kind=synchronous", {"request_format": "/v1/completions"}),
    ],
    ids=["chat", "completion"],
)
def test_every_request_succeeds_and_has_the_tokens_that_were_asked_for(
    guidellm: Callable[..., Any], server: Server, profile: str, backend: dict[str, str]
) -> None:
    benchmark = guidellm(profile, **backend)
    requests = benchmark["requests"]
    assert (len(requests["successful"]), requests["errored"]) == (REQUESTS, [])
    for request in requests["successful"]:
        assert request["output_metrics"]["text_tokens"] == OUTPUT_TOKENS
        assert request["input_metrics"]["text_tokens"] >= PROMPT_TOKENS - 1
    server.wait_until_idle()
