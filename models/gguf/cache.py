"""The user's cache of converted GGUF files: each is converted once, whatever is interrupted or runs at the same time.

<cache>/models/<name>-<first 16 digits of the GGUF's SHA-256>/   the folder, with complete.json written last
<cache>/hashes/<hash of the path>.json                          SHA-256 of a local file, by size and time of change
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strategies.errors import ModelLoadError

# Kept apart from convert.py, which a warm start does not import. Raise it whenever a conversion's output changes:
# folders written by another version are converted again.
CONVERTER_VERSION = 1

MARKER = "complete.json"

log = logging.getLogger(__name__)


def default_cache() -> Path:
    """DECODING_SERVER_CACHE, else decoding-server in the XDG cache home (~/.cache)."""
    chosen = os.environ.get("DECODING_SERVER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "decoding-server"


def file_hash(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_hash(path: Path, cache: Path) -> str:
    """As `file_hash`, computed again only when the path, size or modification time has changed."""
    resolved = path.resolve()
    status = resolved.stat()
    key = [str(resolved), status.st_size, status.st_mtime_ns]
    record = cache / "hashes" / f"{hashlib.sha256(str(resolved).encode()).hexdigest()[:32]}.json"
    known = _read_json(record)
    if known is not None and known.get("key") == key and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    digest = file_hash(resolved)
    record.parent.mkdir(parents=True, exist_ok=True)
    _replace_json(record, {"key": key, "sha256": digest})
    return digest


def converted(name: str, sha256: str, cache: Path, obtain: Callable[[Path], Path]) -> Path:
    """The folder with the converted model; makes it if it is absent, incomplete, damaged or of another version.

    obtain: given a scratch folder, returns the path of the GGUF file, called only when a conversion is needed. The
    folder appears under its name in one step, with everything in it. Raises ModelLoadError.
    """
    label = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "model"
    folder = cache / "models" / f"{label}-{sha256[:16]}"
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock")):
            if not is_complete(folder):  # another process may have made it meanwhile
                _convert(folder, obtain)
    except OSError as fault:
        raise ModelLoadError(
            f"the model cache {cache} can't be written ({fault}); free space there, or set DECODING_SERVER_CACHE"
        ) from fault
    return folder


def is_complete(folder: Path) -> bool:
    """Whether a conversion of this version ended well and its files still have the sizes they had then."""
    marker = _read_json(folder / MARKER)
    if marker is None or marker.get("converter") != CONVERTER_VERSION or not isinstance(marker.get("files"), dict):
        return False
    try:
        return all((folder / name).stat().st_size == size for name, size in marker["files"].items())
    except OSError:
        return False


def _convert(folder: Path, obtain: Callable[[Path], Path]) -> None:
    for abandoned in folder.parent.glob(f"{folder.name}.*.tmp"):  # we hold the lock: whoever made it is gone
        shutil.rmtree(abandoned, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        download, output = scratch / "download", scratch / "output"
        download.mkdir()
        output.mkdir()
        source = obtain(download)
        from models.gguf.convert import convert  # imports the tokenizers and numpy machinery only when it is needed

        log.info("converting %s to %s (once)", source.name, folder)
        started = time.monotonic()
        convert(source, output)
        sizes = {path.name: path.stat().st_size for path in output.iterdir()}
        _replace_json(output / MARKER, {"converter": CONVERTER_VERSION, "files": sizes})
        if folder.exists():
            log.info("replacing the incomplete or outdated %s", folder)
            folder.rename(scratch / "outdated")
        output.rename(folder)
        log.info("converted in %.1f s", time.monotonic() - started)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock that ends with the process, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that prepares the same model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        contents = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return contents if isinstance(contents, dict) else None


def _replace_json(path: Path, contents: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(contents))
    partial.replace(path)
