import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.loading import ModelFiles, resolve
from strategies.errors import ModelLoadError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with everything in it, as far as loading looks."""
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    save_file({"a": np.zeros((4, 4), np.float16), "b": np.zeros(3, np.float32)}, path / "model.safetensors")
    return path


def message(model: str, tmp_path: Path) -> str:
    with pytest.raises(ModelLoadError) as error:
        resolve(model, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_default_needs_neither_torch_nor_transformers_and_is_quick_when_warm() -> None:
    default = resolve(None)
    assert default.name == "smollm2-135m-instruct"
    assert resolve("smollm2-135m-instruct") == default
    program = (
        "import sys, time\n"
        "from models.loading import resolve\nfrom models.tokenizer import load_tokenizer\n"
        "started = time.process_time()\nload_tokenizer(resolve(None).folder)\n"
        "print(time.process_time() - started, sorted({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    seconds, imported = result.stdout.split(" ", 1)
    assert imported.strip() == "[]"
    assert float(seconds) < 1.0  # measured: 0.2


def test_a_folder_is_used_as_it_is(folder: Path, tmp_path: Path) -> None:
    assert resolve(str(folder), cache=tmp_path / "cache") == ModelFiles("my-model", str(folder.resolve()), folder)
    assert not (tmp_path / "cache").exists()


def test_sharded_weights_are_accepted_when_every_shard_is_there(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "model-00002-of-00002.safetensors is missing" in message(str(folder), tmp_path)
    save_file({"c": np.zeros(2, np.float16)}, folder / "model-00002-of-00002.safetensors")
    assert resolve(str(folder)).folder == folder


def test_what_a_folder_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "has no tokenizer.json" in message(str(folder), tmp_path)
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in message(str(folder), tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "only safetensors weights are read" in message(str(folder), tmp_path)
    (folder / "m.gguf").write_bytes(b"GGUF")
    assert f"pass the GGUF file itself: {folder / 'm.gguf'}" in message(str(folder), tmp_path)
    (folder / "config.json").unlink()
    assert "has no config.json" in message(str(folder), tmp_path)


def test_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    damaged = [b"", whole[:5], whole[:40], whole[:-1], whole + b"x", b"\xff" * 8 + whole[8:], whole[:8] + b"{" * length]
    for data in damaged:
        weights.write_bytes(data)
        assert "model.safetensors is corrupt or truncated" in message(str(folder), tmp_path)
    weights.write_bytes(whole)
    for text, expected in [("{", "not valid JSON"), ("[]", "no JSON object"), ("{}", "names no model_type")]:
        (folder / "config.json").write_text(text)
        assert expected in message(str(folder), tmp_path)


def test_what_is_neither_a_path_nor_an_id_is_said_to_be_so(tmp_path: Path) -> None:
    for model in [
        "no-such-model",
        "/no/such/folder",
        "./missing",
        "a/b/c",
        "models/missing.gguf",
        "bad name/x",
        "",
        "../x",
    ]:
        assert "neither a folder or GGUF file here nor a hub id" in message(model, tmp_path)
    other = tmp_path / "model.bin"
    other.write_bytes(b"something else")
    assert "is not a GGUF file" in message(str(other), tmp_path)


HUB = """
import sys
from models.loading import resolve
from strategies.errors import ModelLoadError
try:
    print(resolve("organisation/model").folder)
except ModelLoadError as error:
    print(error)
"""


def hub(tmp_path: Path, **variables: str) -> str:
    """What resolving a hub id prints in a process with an empty hub cache and an address that answers nothing."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9", **variables}
    root = Path(__file__).parents[2]
    started = time.monotonic()
    command = [sys.executable, "-c", HUB]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=True, timeout=90)
    assert time.monotonic() - started < 60
    assert result.stdout.count("\n") == 1
    return result.stdout.strip()


def test_an_unreachable_hub_is_one_line(tmp_path: Path) -> None:
    assert "the hub can't be reached" in hub(tmp_path)
    assert "HF_HUB_OFFLINE is set" in hub(tmp_path, HF_HUB_OFFLINE="1")


def test_a_cached_hub_model_is_served_offline(folder: Path, tmp_path: Path) -> None:
    commit = "0" * 40
    repository = tmp_path / "hub" / "hub" / "models--organisation--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    assert hub(tmp_path, HF_HUB_OFFLINE="1") == str(repository / "snapshots" / commit)
