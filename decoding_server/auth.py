"""The API key guard: a middleware over every path, so that no route can be forgotten."""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from decoding_server.api_keys import ApiKey, KeyRing
from decoding_server.errors import unauthorized

OPEN_PATHS = frozenset({"/health", "/ping", "/version"})
"""The paths that need no key: they tell a load balancer's probe nothing about the model or its users."""


class ApiKeyGuard:
    """Answers 401 unless the request carries `Authorization: Bearer KEY` with one of the keys, which it leaves in
    `scope["state"]["api_key"]`."""

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: Collection[str] = OPEN_PATHS) -> None:
        self.app = app
        self.open_paths = open_paths
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths:
            key = self._key(scope)
            if key is None:
                await unauthorized().response()(scope, receive, send)
                return
            scope.setdefault("state", {})["api_key"] = key
        await self.app(scope, receive, send)

    def _key(self, scope: Scope) -> ApiKey | None:
        given = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, credential = value.partition(b" ")
                if scheme.lower() == b"bearer":
                    given = credential.strip()
        return self.keys.find(given)
