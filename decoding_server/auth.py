"""The API key guard: a middleware over every path, so that no route can be forgotten."""

import hmac
from collections.abc import Collection, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from decoding_server.errors import unauthorized

OPEN_PATHS = frozenset({"/health", "/ping", "/version"})
"""The paths that need no key: they tell a load balancer's probe nothing about the model or its users."""


class ApiKeyGuard:
    """Answers 401 unless the request carries `Authorization: Bearer KEY` with one of the keys."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: Collection[str] = OPEN_PATHS) -> None:
        self.app = app
        self.open_paths = open_paths
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths and not self._admits(scope):
            await unauthorized().response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        given = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, credential = value.partition(b" ")
                if scheme.lower() == b"bearer":
                    given = credential.strip()
        # All keys are compared, each in constant time, so that timing tells nothing about any of them.
        return any([hmac.compare_digest(given, key) for key in self.keys])  # noqa: C419
