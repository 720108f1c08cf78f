"""docs/plug-ins.md from its first block to its answer: the package as the page has it, installed, served and asked."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from markdown_blocks import ROOT, Block, blocks

PAGE = "docs/plug-ins.md"
PACKAGE = "decoding-server-longest"


def marked(mark: str) -> list[Block]:
    return [block for block in blocks(PAGE) if block.mark == mark]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, installed by the page's command; into a folder of their own."""
    work, target = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("site")
    (work / PACKAGE).mkdir()
    for block in marked("same as"):
        (work / PACKAGE / Path(block.about).name).write_text(block.text)
    command = next(block for block in marked("checked by") if block.language == "sh").text.splitlines()[0]
    program, *arguments = command.split()
    assert program == "pip"
    pip = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-build-isolation", "--target", str(target)]
    subprocess.run(pip, cwd=work, check=True, timeout=240)
    return target


@pytest.fixture(scope="module")
def server(installed: Path) -> Iterator[str]:
    """The scripted model under the embedded one's name, in a process that has the package."""
    program = ROOT / "tests/decoding_server/scripted_server.py"
    paths = os.pathsep.join([str(ROOT), str(installed)])
    command = [sys.executable, str(program), "port=0", "served_model_name=smollm2-135m-instruct"]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield listening(process)
        finally:
            process.terminate()
            process.communicate(timeout=60)


def listening(process: "subprocess.Popen[str]") -> str:
    """The address that the server's log names, once it is ready."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "http://127.0.0.1:" in line:
            url = "http://127.0.0.1:" + line.partition("http://127.0.0.1:")[2].split()[0].strip("/.,;)")
            for _ in range(600):
                if httpx.get(f"{url}/health", timeout=30).status_code == 200:
                    return url
                time.sleep(0.1)
    raise AssertionError("the server did not start:\n" + "".join(said))


def test_its_request_is_answered_by_the_plug_in(server: str) -> None:
    request = next(json.loads(block.text) for block in marked("checked by") if block.language == "json")
    for decoding in (request["decoding"], "longest"):
        reply = httpx.post(f"{server}/v1/chat/completions", json={**request, "decoding": decoding}, timeout=60)
        assert reply.status_code == 200, reply.text
        assert reply.json()["decoding"]["search"]["type"] == "longest"
        assert reply.json()["choices"][0]["message"]["content"] == request["messages"][0]["content"]


def test_the_server_lists_it(server: str) -> None:
    listed = {one["id"]: one for one in httpx.get(f"{server}/v1/strategies", timeout=60).json()["data"]}
    assert listed["longest"]["slot"] == "search"
    assert listed["longest"]["parameters"]["properties"]["samples"]["default"] == 4
