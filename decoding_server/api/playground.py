"""GET /: the playground, a static page over this server's own API. Its files need no key; what they ask for does."""

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

PAGE, FOLDER = "/", "/playground/"
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'none'",
        # Text can become markup nowhere: the browser refuses innerHTML and its like.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


class File:
    """One file of the page, with its headers."""

    def __init__(self, name: str, body: bytes) -> None:
        self.body = body
        self.etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self.headers: Mapping[str, str] = {
            "content-type": f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8",
            "cache-control": "no-cache",
            "etag": self.etag,
            "content-security-policy": POLICY,
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    def response(self, known: str) -> Response:
        """known: the request's `if-none-match`."""
        if any(tag.strip().removeprefix("W/") in (self.etag, "*") for tag in known.split(",")):
            return Response(status_code=304, headers={k: v for k, v in self.headers.items() if k != "content-type"})
        return Response(self.body, headers=dict(self.headers))


def read_files() -> dict[str, File]:
    """By path: those of the package's folder, and the page itself at /."""
    found = {
        FOLDER + entry.name: File(entry.name, entry.read_bytes())
        for entry in files("decoding_server").joinpath("playground").iterdir()
        if entry.name.rpartition(".")[2] in TYPES
    }
    return {PAGE: found.pop(FOLDER + "index.html"), **found}


FILES = read_files()
PATHS = frozenset(FILES)

router = APIRouter()


async def serve_file(request: Request) -> Response:
    return FILES[request.scope["path"]].response(request.headers.get("if-none-match", ""))


for path in sorted(PATHS):
    router.add_route(path, serve_file)  # no part of the API, so not in its description
