"""GET /v1/models and /v1/models/{id}."""

from fastapi import APIRouter
from starlette.requests import Request

from decoding_server.api.endpoint import service_of
from decoding_server.protocol.models import Model, ModelList
from decoding_server.service import Service

router = APIRouter()


def _model(service: Service, name: str) -> Model:
    info = service.runtime.info
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "decoding-server",
        "root": info.name,
        "parent": None,
        "max_model_len": info.max_model_len,
    }


@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """The served names, the default one first, then that one with each preset."""
    service = service_of(request)
    return {"object": "list", "data": [_model(service, name) for name in service.listed_names]}


@router.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> Model:
    """One served name, alone or with a preset; names may contain slashes."""
    service = service_of(request)
    if model not in service.listed_names:
        raise service.no_such_model(model)
    return _model(service, model)
