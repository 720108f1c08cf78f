"""What a run's numbers were made by: commit, versions, machine, date."""

import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import httpx

from decoding_server import __version__
from decoding_server.bench import machine

if TYPE_CHECKING:
    from decoding_server.bench.endpoint import Endpoint

PACKAGES = ("torch", "transformers", "tokenizers", "vllm", "math-verify")


def facts() -> dict[str, Any]:
    """For a row of runs.jsonl; `key` is the time. All of it is of this process."""
    return {
        "key": f"{time.time():.3f}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": machine.commit(),
        "versions": {"decoding-server": __version__, **versions()},
        "machine": machine.describe(),
    }


async def facts_of(endpoint: "Endpoint") -> dict[str, Any]:
    """`facts`; where a server runs the model, also its `server_version`, None where it is none of this project's."""
    if endpoint.app is not None:
        return facts()
    return {**facts(), "server_version": await version_of(endpoint) if endpoint.extended else None}


async def version_of(endpoint: "Endpoint") -> str | None:
    """None where the server does not say."""
    try:
        reply = await endpoint.client.get("/version")
        return str(reply.json()["version"]) if reply.status_code == 200 else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


def told(run: Mapping[str, Any]) -> str:
    """Commit, date and machine of a run's facts, and whose they are: where a server ran the model, its own are not
    known."""
    commits = ", ".join(run.get("commits") or [run["commit"]])
    made = f"{commits}, {run['date']}; {run['machine']['processor']}, {run['machine']['cores']} cores"
    if "server_version" not in run:
        return f"Commit {made}"
    version = run["server_version"]
    server = "a server of another kind" if version is None else f"a server of this project's version {version}"
    return f"Asked over HTTP: {server}, whose machine is not known. Of the benchmark itself: commit {made}"


def versions() -> dict[str, str]:
    """Of the packages that compute or judge, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
