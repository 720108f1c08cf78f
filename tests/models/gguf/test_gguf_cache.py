import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.gguf import cache as cache_module
from models.gguf.cache import MARKER, converted, default_cache, file_hash, is_complete, remembered_hash
from models.loading import resolve
from strategies.errors import ModelLoadError

Write = Callable[..., Path]


def test_a_gguf_file_is_converted_once(
    write_tiny_llama: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_tiny_llama("my model.gguf")
    caplog.set_level(logging.INFO)
    first = resolve(str(source), cache=tmp_path / "cache")
    assert first.name == "my model"
    assert first.source == str(source)
    assert "converting my model.gguf" in caplog.text
    caplog.clear()
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns

    second = resolve(str(source), cache=tmp_path / "cache")

    assert second == first
    assert "converting" not in caplog.text
    assert (second.folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert not list((tmp_path / "cache" / "models").glob("*.tmp"))


def test_changed_contents_are_another_model_even_at_the_same_path_and_size(
    write_tiny_llama: Write, tmp_path: Path
) -> None:
    source = write_tiny_llama()
    first = resolve(str(source), cache=tmp_path / "cache")
    data = bytearray(source.read_bytes())
    middle = len(data) - 20000  # inside the weights: neither the head nor the tail of the file changes
    data[middle] ^= 1
    source.write_bytes(data)
    assert resolve(str(source), cache=tmp_path / "cache").folder != first.folder


@pytest.mark.parametrize("damage", ["no marker", "old version", "short file", "missing file"])
def test_an_interrupted_or_outdated_conversion_is_redone(damage: str, write_tiny_llama: Write, tmp_path: Path) -> None:
    source = write_tiny_llama()
    folder = resolve(str(source), cache=tmp_path / "cache").folder
    whole = (folder / "model.safetensors").read_bytes()
    if damage == "no marker":
        (folder / MARKER).unlink()
    elif damage == "old version":
        marker = json.loads((folder / MARKER).read_text())
        (folder / MARKER).write_text(json.dumps({**marker, "converter": 0}))
    elif damage == "short file":
        (folder / "model.safetensors").write_bytes(whole[:-1])
    else:
        (folder / "tokenizer.json").unlink()
    assert not is_complete(folder)

    again = resolve(str(source), cache=tmp_path / "cache").folder

    assert again == folder
    assert is_complete(folder)
    assert (folder / "model.safetensors").read_bytes() == whole


def test_a_failed_conversion_leaves_nothing_behind(write_tiny_llama: Write, tmp_path: Path) -> None:
    source = write_tiny_llama()
    source.write_bytes(source.read_bytes()[:-3000])
    with pytest.raises(ModelLoadError, match="corrupt or truncated"):
        resolve(str(source), cache=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_two_processes_at_once_convert_once(write_tiny_llama: Write, tmp_path: Path) -> None:
    source = write_tiny_llama()
    program = (
        "import logging, sys; from pathlib import Path; logging.basicConfig(level=logging.INFO)\n"
        "from models.loading import resolve; print(resolve(sys.argv[1], cache=Path(sys.argv[2])).folder)"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(Path(cache_module.__file__).parents[2])}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    assert len({output for output, _ in results}) == 1
    assert sum("converted in" in errors for _, errors in results) == 1


def test_an_unwritable_cache_says_what_to_do(write_tiny_llama: Write, tmp_path: Path) -> None:
    source = write_tiny_llama()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ModelLoadError, match="DECODING_SERVER_CACHE"):
        converted("m", file_hash(source), blocked, lambda _: source)


def test_the_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert remembered_hash(path, tmp_path) == file_hash(path)
    (record,) = (tmp_path / "hashes").iterdir()
    known = json.loads(record.read_text())
    record.write_text(json.dumps({**known, "sha256": "remembered"}))
    assert remembered_hash(path, tmp_path) == "remembered"
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert remembered_hash(path, tmp_path) == file_hash(path)


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("DECODING_SERVER_CACHE", raising=False)
    assert default_cache() == Path("/somewhere/decoding-server")
    monkeypatch.setenv("DECODING_SERVER_CACHE", "/elsewhere")
    assert default_cache() == Path("/elsewhere")
