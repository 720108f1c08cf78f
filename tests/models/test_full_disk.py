"""A cache folder on a full disk: a file system of 64 KiB, in a mount namespace of the test's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOUNT = 'mount -t tmpfs -o size=64k none "$0" && exec "$@"'

KERNELS = """
import logging, sys
from pathlib import Path
import models.torch_runtime.native as native
from strategies import native as build
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s", level="INFO")
cache = Path(sys.argv[1])
(cache / "filler").write_bytes(b"x" * 60_000)
source = Path(native.__file__).with_name("kernels.c")
assert build.load(source, lambda path: path, cache=cache) is None
assert [path.name for path in cache.iterdir()] == ["filler"], list(cache.iterdir())
"""

CONVERSION = """
import sys
from pathlib import Path
from models.gguf.cache import converted, remembered_hash
from models.loading import resolve
from strategies.errors import ModelLoadError
cache = Path(sys.argv[1])
(cache / "filler").write_bytes(b"x" * 57_344)

def obtain(folder):
    (folder / "model.gguf").write_bytes(b"x" * 1_000_000)
    raise AssertionError("the disk was not full")

def refused(call):
    try:
        call()
    except ModelLoadError as error:
        assert "\\n" not in str(error)
        assert "No space left" in str(error), error
    else:
        raise AssertionError("it went well")

refused(lambda: converted("tiny", "0" * 64, cache, obtain))
try:
    with (cache / "filler").open("ab", buffering=0) as rest:
        while True:
            rest.write(b"x" * 4096)
except OSError:
    pass
refused(lambda: resolve(sys.argv[2], cache=cache))
left = [str(path) for path in cache.rglob("*") if path.is_file() and path.stat().st_size and path.name != "filler"]
assert not left, left
"""


def on_full_disk(tmp_path: Path, code: str, *arguments: str) -> str:
    folder = tmp_path / "disk"
    folder.mkdir()
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    command = [*prefix, sys.executable, "-c", code, str(folder), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_kernels_that_can_not_be_kept_are_done_without(tmp_path: Path) -> None:
    log = on_full_disk(tmp_path, KERNELS)
    assert log.count("WARNING") == 1
    assert "torch operations take their place" in log


def test_a_model_that_can_not_be_kept_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF" + b"\0" * 100_000)
    on_full_disk(tmp_path, CONVERSION, str(model))
