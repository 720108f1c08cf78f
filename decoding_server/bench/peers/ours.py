"""Our own server, as a user runs it: `decoding-server serve` over HTTP."""

import sys
from importlib.metadata import PackageNotFoundError, version

import httpx

from decoding_server import __version__
from decoding_server.bench.peers.engine import EngineError, HttpEngine, Settings
from decoding_server.bench.workloads import Prompt


class DecodingServer(HttpEngine):
    """Started by `--server-command` (default: this package's `serve`), or already running at `--url`.

    A server at a URL is neither paused nor measured for memory and start-up.
    """

    name = "decoding-server"
    restarts_are_measured = True
    has_strategies = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.restarts_are_measured = settings.url is None
        self.description = settings.url or "decoding-server serve, defaults, over HTTP"

    def command(self, port: int) -> list[str]:
        command = self.settings.server_command or (sys.executable, "-m", "decoding_server", "serve")
        model = [] if self.settings.model is None else [self.settings.model]
        return [*command, *model, "--host", "127.0.0.1", "--port", str(port)]

    async def start(self, prompt: Prompt, limit: float) -> float:
        if self.settings.url is None:
            return await super().start(prompt, limit)
        self.url = self.settings.url.rstrip("/").removesuffix("/v1")
        await self._wait_until_healthy(min(limit, 60.0))
        async with self._client(limit) as client:
            try:
                self.model = (await client.get("/v1/models")).json()["data"][0]["id"]
            except (httpx.HTTPError, ValueError, LookupError) as error:
                raise EngineError(f"{self.url} lists no model: {error}") from error
        return 0.0

    def versions(self) -> dict[str, str]:
        versions = {"decoding-server": __version__}
        for package in ("torch", "transformers"):
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
        return versions
