"""GET /health, /ping and /version: open to load balancers' probes, whatever key is set."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from decoding_server import __version__
from decoding_server.api.endpoint import service_of

router = APIRouter()


@router.get("/health", response_model=None)
@router.get("/ping", response_model=None, operation_id="ping")
async def health(request: Request) -> JSONResponse:
    """200 while requests are served; 503 while the model loads, the server drains, or after the engine has died."""
    status = service_of(request).runtime.status()
    body = {"status": status.state, "detail": status.detail, "running": status.running, "waiting": status.waiting}
    return JSONResponse(body, status_code=200 if status.state == "ready" else 503)


@router.get("/version")
async def version() -> dict[str, str]:
    """The server's version."""
    return {"version": __version__}
