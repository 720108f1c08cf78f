"""What a run's numbers were made by: commit, versions, machine, date."""

import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from decoding_server import __version__
from decoding_server.bench import machine

PACKAGES = ("torch", "transformers", "tokenizers", "vllm", "math-verify")


def facts() -> dict[str, Any]:
    """For a row of runs.jsonl; `key` is the time."""
    return {
        "key": f"{time.time():.3f}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": machine.commit(),
        "versions": {"decoding-server": __version__, **versions()},
        "machine": machine.describe(),
    }


def versions() -> dict[str, str]:
    """Of the packages that compute or judge, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
