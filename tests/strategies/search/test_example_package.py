"""The example package, installed as a user would install it, is found by its entry point alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

CHECK = """
import json
from strategies import registry
from strategies.search.search import Search
search = registry.find("search", "longest", "decoding.search.type")
assert issubclass(search, Search)
print(json.dumps(search(samples=2).model_dump()))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "package"
    subprocess.run(["cp", "-r", str(ROOT / "examples/decoding-server-longest"), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, timeout=240)
    return target


def test_its_search_is_registered(installed: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(installed)])
    found = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {"trace": "none", "samples": 2}


def test_it_answers(installed: Path) -> None:
    check = f"""
import asyncio, sys
sys.path.insert(0, {str(installed)!r})
from decoding_server_longest import Longest
from models.scripted import ByteTokenizer, scripted_runtime
from strategies.runtime import Generation, StopConditions
from strategies.search.run import SearchRun
import torch
tokenizer = ByteTokenizer()
def distribution(context):
    logits = torch.full((tokenizer.vocab_size,), -30.0)
    logits[97] = logits[256] = 0.0
    return logits
async def main():
    runtime = scripted_runtime(distribution, tokenizer)
    generation = Generation([98], stopping=StopConditions(max_tokens=30))
    run = SearchRun(Longest(samples=6), runtime, generation, n=6)
    texts = ["".join([delta.text async for delta in stream]) for stream in run.streams]
    runtime.close()
    assert texts == sorted(texts, key=len, reverse=True) and len(texts[0]) > len(texts[-1]), texts
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def test_the_tutorial_is_a_search_of_at_most_forty_lines() -> None:
    page = (ROOT / "docs/strategies/writing-a-search.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    check = (
        code
        + """
import asyncio
from models.scripted import ByteTokenizer, play, scripted_runtime
from strategies.runtime import Generation, StopConditions
from strategies.search.run import SearchRun
tokenizer = ByteTokenizer()
async def main():
    runtime = scripted_runtime(play(list(b"Answer: 7"), tokenizer.vocab_size, 1), tokenizer)
    run = SearchRun(SelfConsistency(samples=3), runtime, Generation([98], stopping=StopConditions(max_tokens=30)))
    print("".join([delta.text async for delta in run.streams[0]]))
    runtime.close()
asyncio.run(main())
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout) == (0, "Answer: 7\n"), done.stderr
