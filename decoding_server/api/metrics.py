"""GET /metrics, for Prometheus. Behind the API key like every other route, unless the operator opens it."""

from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from decoding_server.observability import Observability

router = APIRouter()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """The server's metrics, in OpenMetrics or Prometheus' text format; `name[]` selects series."""
    observability = cast(Observability, request.app.state.observability)
    accept = ",".join(request.headers.getlist("accept"))
    body, content_type = await observability.exposition(accept, request.query_params.getlist("name[]"))
    return Response(body, headers={"content-type": content_type})
