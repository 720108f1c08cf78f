"""One real server with the embedded model, for real clients. It asks for a key, so every client must send it.

A client that is not installed is skipped, or a failure where DECODING_SERVER_TEST_CLIENTS=required (continuous
integration): there a missing install step must not look like success.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from running_server import Server, running_server

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "passive",
}
"""What keeps the clients from asking anyone but our server."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def offline(server: Server) -> Iterator[Mapping[str, str]]:
    """The environment of this process and of those that it starts: no hub, no telemetry, our key as OpenAI's."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (OFFLINE | {"OPENAI_API_KEY": server.api_key}).items():
            patch.setenv(name, value)
        yield os.environ


@pytest.fixture(scope="session")
def missing() -> Callable[[str], None]:
    """missing(what): skips the test, or fails it where every client is required."""

    def missing(what: str) -> None:
        if os.environ.get("DECODING_SERVER_TEST_CLIENTS") == "required":
            pytest.fail(f"{what} is missing, and DECODING_SERVER_TEST_CLIENTS=required")
        pytest.skip(f"{what} is missing")

    return missing


@pytest.fixture(scope="module")
def client_package(offline: Mapping[str, str], missing: Callable[[str], None]) -> Callable[[str], Any]:
    """client_package(name): the module, imported only now, when the environment keeps it from calling home."""

    def load(name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0]:
                raise
            missing(f"the package {error.name} (extra 'clients')")

    return load
