"""Every code block of README, docs and examples is executed, or says why it is not.

Python blocks of a document are one program, which talks to a real server with the embedded model. Shell commands run,
or are read by their own parsers. JSON is asked of a server, or read by what reads it in the product; YAML likewise.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from live_server import LiveServer, live_server
from markdown_blocks import ROOT, Block, all_blocks, blocks, documents, read_blocks
from runtime_server import RuntimeServer, serve_runtime
from shell_commands import ADDRESS, check, check_server_flags, split

from decoding_server.api_keys import read_key_file
from decoding_server.config import load_config
from decoding_server.decoding import expand
from decoding_server.features.routes import bodies
from decoding_server.request_body import validate
from decoding_server.verifier import checked
from models.loading import resolve
from models.torch_runtime.load import EngineOptions, load_runtime
from strategies import registry
from strategies.scoring.calibration import read_calibration

MODEL = "smollm2-135m-instruct"
EXECUTED = ("python", "sh", "json", "yaml")
PROSE = ("text",)
"""Layouts, formulas and transcripts: no code."""
CHAT = "/v1/chat/completions"
CLIENT_PAGE = "docs/quick-start.md"


def chosen(*languages: str, mark: str = "") -> list[Any]:
    found = [block for block in all_blocks() if block.language in languages and block.mark == mark]
    return [pytest.param(block, id=block.place) for block in found]


def marked(mark: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in all_blocks() if block.mark == mark]


@pytest.fixture(scope="module")
def server() -> Iterator[RuntimeServer]:
    """The embedded model, as the quick start serves it."""
    options = EngineOptions(max_num_seqs=8, max_model_len=1024, kv_cache_memory=64 << 20)
    with serve_runtime(load_runtime(resolve(None), options)) as live:
        yield live


@pytest.fixture(scope="module")
def scripted() -> Iterator[LiveServer]:
    """Answers at once, under the embedded model's name: for requests whose answer is of no interest."""
    with live_server({"served_model_name": MODEL}, max_model_len=2048) as live:
        yield live


def test_no_block_is_neither_executed_nor_marked() -> None:
    known = {*EXECUTED, *PROSE}
    assert [f"{one.place} {one.language!r}" for one in all_blocks() if not one.mark and one.language not in known] == []


def test_text_blocks_hold_no_commands() -> None:
    """Or else "text" would be a way around everything here."""
    starts = (
        "decoding-server ",
        "python ",
        "curl ",
        "pip ",
        "make ",
        "docker ",
        "kubectl ",
        "helm ",
        "import ",
        "from ",
    )
    texts = [block for block in all_blocks() if block.language in PROSE]
    assert [block.place for block in texts if any(line.startswith(starts) for line in block.text.splitlines())] == []


@pytest.mark.parametrize("block", marked("not run"))
def test_what_is_not_run_says_why(block: Block) -> None:
    assert len(block.about.split()) >= 4, "the reason is for the reader too"


@pytest.mark.parametrize("document", [one for one in documents() if any(b.language == "python" for b in blocks(one))])
def test_python(document: str, server: RuntimeServer) -> None:
    parts = [one for one in blocks(document) if one.language == "python" and not one.mark]
    program = [(one.document, one.line, one.text.replace(ADDRESS, server.url)) for one in parts]
    if any("client." in one.text for one in parts) and not any("client = " in one.text for one in parts):
        assert "quick-start.md#with-the-openai-client" in (ROOT / document).read_text(), "whose `client` is it?"
        first = next(one for one in blocks(CLIENT_PAGE) if one.language == "python")
        program.insert(0, (first.document, first.line, first.text.replace(ADDRESS, server.url)))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "page_program.py")],
        input=json.dumps(program),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    if "SandboxUnavailable: " in done.stderr:
        pytest.skip(done.stderr.rpartition("SandboxUnavailable: ")[2].strip())
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", chosen("sh"))
def test_commands(block: Block, server: RuntimeServer) -> None:
    for words in split(block.text):
        check(words, server.url)


def test_commands_in_the_text() -> None:
    """`decoding-server serve ... --flag` between the lines of a page."""
    texts = [(ROOT / document).read_text(encoding="utf-8") for document in documents()]
    found = [command for text in texts for command in re.findall(r"`(decoding-server serve [^`\n]*--[^`\n]*)`", text)]
    assert found
    for command in found:
        (words,) = split(command)
        check_server_flags(words[1:])


@pytest.mark.parametrize("block", chosen("json"))
def test_json(block: Block, scripted: LiveServer) -> None:
    """A request's body, or one strategy of it."""
    content = json.loads(block.text)
    if "messages" in content or "prompt" in content:
        path = CHAT if "messages" in content else "/v1/completions"
        reply = scripted.post(path, content)
        lacks_sandbox = reply.status_code == 503 and reply.json()["error"]["code"] == "sandbox_unavailable"
        assert reply.status_code == 200 or lacks_sandbox, reply.text
        assert "warnings" not in reply.json(), "a field that has no effect"
    else:
        slots = {"search": registry.registered("search"), "speculation": registry.registered("speculation")}
        slot = next((slot for slot, known in slots.items() if content.get("type") in known), None)
        assert slot is not None, "no request and no strategy: say what it is in a comment before the block"
        body = {"messages": [{"role": "user", "content": "a"}], "decoding": expand({slot: content}, {})}
        validate(bodies()[CHAT], body)


@pytest.mark.parametrize("block", marked("reply to"))
def test_replies(block: Block, scripted: LiveServer) -> None:
    method, path, request = block.about.split(" ", 2)
    reply = httpx.request(method, scripted.url + path, json=json.loads(request), timeout=60)
    assert reply.json() == json.loads(block.text)


@pytest.mark.parametrize("block", marked("content of"))
def test_contents(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(block.text)
    if block.about == "a calibration file":
        assert read_calibration(path)
    elif block.about == "a verifier's answer":
        content = json.loads(block.text)
        assert checked(content, len(content["values"]))
    elif block.about == "values of the chart":
        chart = ROOT / "deploy/helm/decoding-server"
        values = merged(yaml.safe_load((chart / "values.yaml").read_text()), yaml.safe_load(block.text))
        schema = json.loads((chart / "values.schema.json").read_text())
        jsonschema.Draft7Validator(schema).validate(values)
        path.write_text(json.dumps(values["config"]))
        runtime = "vllm" if values["image"]["target"] == "vllm" else "torch"
        load_config({"config": str(path)}, {"DECODING_SERVER_RUNTIME": runtime})  # as the images set it
    else:
        pytest.fail(f"nothing reads {block.about!r}")


def merged(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """As Helm lays a file of values over the chart's own."""
    inner = {
        name: merged(values[name], other)
        for name, other in others.items()
        if isinstance(other, dict) and isinstance(values.get(name), dict)
    }
    return {**values, **others, **inner}


@pytest.mark.parametrize("block", chosen("yaml"))
def test_yaml(block: Block, tmp_path: Path) -> None:
    """A configuration file, or a file of API keys."""
    path = tmp_path / "file.yaml"
    path.write_text(block.text)
    if isinstance(yaml.safe_load(block.text), list):
        assert read_key_file(str(path))
    else:
        load_config({"config": str(path)}, {})


@pytest.mark.parametrize("block", marked("same as"))
def test_copies(block: Block) -> None:
    assert block.text == (ROOT / block.about).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", marked("checked by"))
def test_blocks_with_a_test_of_their_own(block: Block) -> None:
    """The test at least reads the document."""
    assert block.document in (ROOT / block.about).read_text(encoding="utf-8")


DOCUMENT = """
<!-- not run: there is no such thing here -->
```sh
helm install
```

- in a list:

  ```json
  {}
  ```

text <!-- not run: no comment of its own -->

```python
x = 1
```

    indented
"""


def test_blocks_are_read_with_their_marks() -> None:
    found = read_blocks("d.md", DOCUMENT)
    assert [(one.language, one.mark, one.line) for one in found] == [
        ("sh", "not run", 4),
        ("json", "", 10),
        ("python", "", 16),
        ("indented", "", 19),
    ]
    assert found[0].about == "there is no such thing here"


@pytest.mark.parametrize(
    "command",
    [
        "decoding-server serve --no-such-flag 1",
        "decoding-server serve --port none",
        "decoding-server chat --no-such-flag",
        "decoding-server bench code --no-such-flag",
        "decoding-server bench code --dataset x --output y --strategy no-such-preset",
        "decoding-server bench quality --dataset x",
        "decoding-server bench quality --workload no-such-file.yaml --dataset x --output y",
        "decoding-server bench serve --output y",
        "python -m decoding_server.bench.throughput --no-such-flag",
        "make no-such-target",
        "pip install 'decoding-server[no-such-extra]'",
        "curl http://127.0.0.1:8000/no-such-route",
        "unknown-program",
    ],
)
def test_wrong_commands_are_found(command: str, server: RuntimeServer) -> None:
    with pytest.raises(Exception, match=r"."):
        check(split(command)[0], server.url)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/benchmarks/workloads").glob("*.yaml")), ids=lambda path: path.stem
)
def test_workload_files_say_a_command_that_reads_them(
    path: Path, server: RuntimeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    lines = [line.removeprefix("#   ") for line in path.read_text().splitlines() if line.startswith("#   ")]
    commands = split("\n".join(lines))
    assert commands
    assert all(f"docs/benchmarks/workloads/{path.name}" in command for command in commands)
    for command in commands:
        check(command, server.url)
    assert f"benchmarks/workloads/{path.name}" in (ROOT / "docs/benchmarks.md").read_text()


def test_commands_are_split_as_a_shell_would() -> None:
    text = "a b  # comment\n# whole line\nc \\\n  d\ne '{\n  \"x\": 1}'\n"
    assert split(text) == [["a", "b"], ["c", "d"], ["e", '{\n  "x": 1}']]
