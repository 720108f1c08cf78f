"""The `openai` npm package on Node.js: chat, stream, usage, helper, models, an aborted stream, errors."""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from running_server import Server

PACKAGE = "openai@6.49.0"  # runs on Node.js 20 and later
SCRIPT = Path(__file__).with_name("openai_npm.mjs")


@pytest.fixture(scope="module")
def node_folder(
    offline: Mapping[str, str], missing: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the package and the script beside it, where Node.js finds it."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            missing(program)
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        missing(f"{PACKAGE} ({' '.join(done.stderr.split())[:300]})")
    shutil.copy(SCRIPT, folder)
    return folder


@pytest.fixture(scope="module")
def reply(server: Server, offline: Mapping[str, str], node_folder: Path) -> dict[str, Any]:
    """What the script saw."""
    environment = dict(offline) | {"BASE_URL": server.base_url, "MODEL": server.model}
    done = subprocess.run(
        ["node", SCRIPT.name], cwd=node_folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_a_chat_has_text_and_usage(reply: dict[str, Any], server: Server) -> None:
    chat = reply["chat"]
    assert "Paris" in chat["choices"][0]["message"]["content"]
    assert chat["model"] == server.model
    usage = chat["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert reply["requestId"]


def test_a_stream_adds_up_and_ends_with_usage(reply: dict[str, Any]) -> None:
    chat, streamed = reply["chat"], reply["streamed"]
    assert streamed["text"] == chat["choices"][0]["message"]["content"]
    assert streamed["finishReasons"] == ["stop"]
    assert len(streamed["ids"]) == 1
    assert streamed["chunks"] > 5
    assert streamed["usage"]["completion_tokens"] == chat["usage"]["completion_tokens"]


def test_the_stream_helper_accumulates(reply: dict[str, Any]) -> None:
    content = reply["chat"]["choices"][0]["message"]["content"]
    assert reply["helped"] == content
    assert reply["final"]["choices"][0]["message"]["content"] == content
    assert reply["final"]["usage"]["completion_tokens"] == reply["chat"]["usage"]["completion_tokens"]


def test_a_completion_has_text_and_logprobs(reply: dict[str, Any]) -> None:
    choice = reply["completion"]["choices"][0]
    assert " seven" in choice["text"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def test_models_are_listed(reply: dict[str, Any], server: Server) -> None:
    assert reply["models"][0] == server.model


def test_failures_have_the_right_classes_and_fields(reply: dict[str, Any]) -> None:
    failures = reply["failures"]
    for name in ("badRequest", "badStream"):
        seen = failures[name]
        assert (seen["name"], seen["status"], seen["param"]) == ("BadRequestError", 400, "temperature")
        assert (seen["type"], seen["code"]) == ("invalid_request_error", "invalid_value")
        assert seen["requestID"]
    assert (failures["notFound"]["name"], failures["notFound"]["code"]) == ("NotFoundError", "model_not_found")
    assert (failures["wrongKey"]["name"], failures["wrongKey"]["code"]) == ("AuthenticationError", "invalid_api_key")
    assert failures["timeout"]["name"] == "APIConnectionTimeoutError"


def test_aborted_and_timed_out_requests_free_the_server(reply: dict[str, Any], server: Server) -> None:
    server.wait_until_idle()
