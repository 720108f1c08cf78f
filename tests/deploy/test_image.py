"""The image's steps, as far as they go without a container engine: its installation script in a folder of its own, then
the server from there, as the image's user, with the image's environment and without privileges.

Takes minutes and 2 GB of disk, so it is part of `make check-deploy` only.
"""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
FOLDER = "/opt/decoding-server"
CACHE = "/var/cache/decoding-server"
USER = 10001

pytestmark = [
    pytest.mark.skipif(os.environ.get("DECODING_SERVER_TEST_DEPLOY") != "required", reason="make check-deploy"),
    pytest.mark.timeout(1800),
]


def others_can_use(path):
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in [Path(path).resolve(), *Path(path).resolve().parents])


def usable_python():
    """A Python that can make environments which the image's user can run, and whether there is one."""
    own = os.path.join(sys.base_prefix, "bin", "python3")
    for candidate in (own, "/usr/local/bin/python3", "/usr/bin/python3"):
        works = [candidate, "-c", "import ensurepip"]
        if (
            os.path.exists(candidate)
            and others_can_use(candidate)
            and not subprocess.run(works, capture_output=True).returncode
        ):
            return candidate, True
    return own, False


PYTHON, FOR_OTHERS = usable_python()


def image_environment(folder, cache):
    """The image's ENV lines, for folders of the test's own."""
    variables = dict(
        re.findall(r"\b([A-Z_]+)=(/\S+|[a-z0-9.]+)", DOCKERFILE[DOCKERFILE.index("\nENV ") :].replace("\\\n", " "))
    )
    kept = {name: value for name, value in variables.items() if name.startswith(("DECODING_SERVER_", "H"))}
    assert {"HOME", "HF_HOME", "DECODING_SERVER_CACHE", "DECODING_SERVER_HOST"} <= set(kept)
    kept |= {"DECODING_SERVER_DEVICE": "cpu", "DECODING_SERVER_HOST": "127.0.0.1"}
    moved = {name: value.replace(CACHE, str(cache)) for name, value in kept.items()}
    return moved | {"PATH": f"{folder}/bin:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What the build stage makes, by the commands that its RUN lines hold, in a copy of what is sent to the builder."""
    work = tmp_path_factory.mktemp("image")
    work.chmod(0o755)
    for parent in work.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    source, folder = work / "src", work / "decoding-server"
    source.mkdir()
    build = DOCKERFILE[: DOCKERFILE.index(" AS runtime")].replace("\\\n", " ")
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", build, re.MULTILINE) for word in line.split()]
    for name in (word.rstrip("/") for word in copied):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy2(ROOT / name, target)
    torch = re.search(r'^ARG TORCH="(.*)"$', build, re.MULTILINE)[1]
    environment = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "PATH", "HOME", "SSL"))}
    commands = re.findall(r"deploy/image/install\.sh (\w+) /opt/decoding-server$", build, re.MULTILINE)
    assert commands == ["dependencies", "package"]
    for step in commands:
        subprocess.run(
            ["deploy/image/install.sh", step, str(folder)],
            cwd=source,
            env=environment | {"TORCH": torch, "TORCH_INDEX": "", "PYTHON": PYTHON},
            check=True,
            timeout=1500,
        )
    shutil.copy2(ROOT / "deploy" / "image" / "healthcheck.py", folder)
    return folder


def test_what_it_holds(installed):
    size = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"\n{size / 2**20:.0f} MiB in {FOLDER}")
    names = {path.name for path in (installed / "bin").iterdir()}
    assert "decoding-server" in names
    assert not any(name.startswith(("pytest", "mypy", "ruff")) for name in names)
    (site,) = (installed / "lib").glob("python3.*/site-packages")
    assert not (site / "torch" / "include").exists()
    assert (site / "models" / "torch_runtime" / "kernels.c").exists()
    assert not (site / "tests").exists()


def test_it_serves_as_an_ordinary_user_without_capabilities(installed, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    for folder in (cache, *(parent for parent in cache.parents if parent.name.startswith("pytest-"))):
        folder.chmod(0o755)
    dropped = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    if FOR_OTHERS:
        os.chown(cache, USER, USER)
        dropped += [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = image_environment(installed, cache) | {"DECODING_SERVER_PORT": port}
    environment |= {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))
    }  # for the model
    prefix = dropped if os.getuid() == 0 and shutil.which("setpriv") else []
    log = cache.parent / "image-server.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [*prefix, str(installed / "bin" / "decoding-server"), "serve", "--max-model-len", "256"],
            env=environment,
            cwd="/",
            stderr=sink,
        )
    check = [*prefix, str(installed / "bin" / "python"), "-I", str(installed / "healthcheck.py")]
    url = f"http://127.0.0.1:{port}"
    try:
        unhealthy = subprocess.run(check, env=environment).returncode
        assert unhealthy == 1  # it is loading
        deadline = time.monotonic() + 300
        while subprocess.run(check, env=environment).returncode:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        body = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        answer = httpx.post(url + "/v1/completions", json=body, timeout=60)
        assert "Paris" in answer.json()["choices"][0]["text"]
        while (sandbox := httpx.get(url + "/v1/strategies", timeout=60).json()["sandbox"])["state"] == "opening":
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert (sandbox["state"], sandbox["confines"]) == ("ready", True)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0
    text = log.read_text()
    assert "built with" in text, text  # the kernels were compiled, into the cache
    assert list((cache / "kernels").glob("*.so"))
    assert "Traceback" not in text
