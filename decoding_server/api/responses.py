"""POST /v1/responses, and GET and DELETE of one that was stored.

Stored responses live in the memory of this process: they are lost on restart, and the least recently used ones make
room for new ones. Each can be reached only with the API key that made it. A response is stored when it is finished; one
that failed, or whose client went away, is not.
"""

from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from decoding_server.api.chat import TEMPLATE_VARIABLES, chat_prompt
from decoding_server.api.endpoint import documented, read_request, service_of
from decoding_server.conversation import chat_request, own_field_names
from decoding_server.errors import Failure, InvalidField
from decoding_server.observability import observer_of
from decoding_server.protocol.response_items import InputItem
from decoding_server.protocol.responses import DeletedResponse, ResponseObject, ResponsesRequest
from decoding_server.response_store import ResponseStore, StoredResponse, owner_of
from decoding_server.responses_writer import ResponseEventStream, ResponsesWriter
from decoding_server.service import Scoring, Service
from decoding_server.streaming import unless_disconnected
from decoding_server.structure import structure_of
from decoding_server.tools.choice import ToolPlan, plan_tools

router = APIRouter()


def store_of(request: Request) -> ResponseStore:
    return cast(ResponseStore, request.app.state.response_store)


def requester(request: Request) -> str:
    return owner_of(request.headers.get("authorization"))


@router.post("/v1/responses", response_model=ResponseObject, openapi_extra=documented(ResponsesRequest))
async def create_response(request: Request) -> Response:
    """Answers a conversation, whose turns the server can keep."""
    service, store, owner = service_of(request), store_of(request), requester(request)
    wanted, warnings = await read_request(request, ResponsesRequest)
    model = service.model_name(wanted.model)
    _check(wanted, service, store)
    earlier: list[InputItem] = []
    if wanted.previous_response_id is not None:
        previous = store.get(owner, wanted.previous_response_id)
        if previous is None:
            return _not_found(wanted.previous_response_id, "previous_response_id").response()
        earlier = [InputItem.model_validate(item) for item in previous.items]
    with own_field_names():
        chat = chat_request(wanted, earlier)
        tools = plan_tools(chat.tools, chat.tool_choice, chat.parallel_tool_calls, service.tool_format)
        _check_logprobs(wanted, tools)
        prompt = await chat_prompt(service, chat, tools)
        structure = await structure_of(service, chat, tools)
        sampling = service.sampling(chat, structure)
        prompts = await service.prepare(chat, [prompt], prompt_field="messages")
        running = service.submit(
            chat,
            prompts,
            Scoring(chat.top_logprobs),
            prompt_field="messages",
            observer=observer_of(request),
            structure=structure,
            visible_special_tokens=service.tool_markers if tools.parser_format is not None else frozenset(),
            parsed="tools" if tools.parser_format is not None else None,
        )

    def save(response: ResponseObject) -> bool:
        given = [item.model_dump(exclude_none=True) for item in (*earlier, *wanted.input)]
        return store.put(owner, response["id"], StoredResponse(response, [*given, *response["output"]]))

    stored = store.enabled and wanted.store is not False
    writer = ResponsesWriter(
        service,
        wanted,
        running,
        model=model,
        sampling=sampling,
        warnings=warnings,
        tools=tools,
        save=save if stored else None,
    )
    if wanted.stream:
        return ResponseEventStream(writer.events(), running.cancel, service.config.sse_keep_alive)
    try:
        response = await unless_disconnected(request.receive, writer.response())
    finally:
        running.cancel()
    return Response(status_code=499) if response is None else JSONResponse(response)


@router.get("/v1/responses/{response_id}", response_model=ResponseObject)
async def read_response(request: Request, response_id: str) -> Response:
    """A stored response, as it was first sent."""
    for name in ("stream", "starting_after"):
        if request.query_params.get(name, "false") != "false":
            raise InvalidField(f"'{name}' is not supported by this server.", name, "unsupported_parameter")
    stored = store_of(request).get(requester(request), response_id)
    return _not_found(response_id, "response_id").response() if stored is None else JSONResponse(stored.response)


@router.delete("/v1/responses/{response_id}", response_model=DeletedResponse)
async def delete_response(request: Request, response_id: str) -> Response:
    """Forgets a stored response. Those that went on from it keep the conversation."""
    if not store_of(request).delete(requester(request), response_id):
        return _not_found(response_id, "response_id").response()
    deleted: DeletedResponse = {"id": response_id, "object": "response", "deleted": True}
    return JSONResponse(deleted)


def _not_found(response_id: str, param: str) -> Failure:
    message = f"There is no stored response '{response_id[:100]}': it may have been deleted or evicted."
    return Failure(404, message, "invalid_request_error", param, "response_not_found")


def _check(wanted: ResponsesRequest, service: Service, store: ResponseStore) -> None:
    if (wanted.top_logprobs or 0) > service.config.max_logprobs:
        raise InvalidField(f"'top_logprobs' must be at most {service.config.max_logprobs}.", "top_logprobs")
    for name in wanted.chat_template_kwargs or ():
        if name in TEMPLATE_VARIABLES:
            message = f"'chat_template_kwargs' must not hold {name!r}, which the server sets."
            raise InvalidField(message, f"chat_template_kwargs.{name}")
    if wanted.store and not store.enabled:
        raise InvalidField("'store' is off on this server.", "store", "unsupported_parameter")


def _check_logprobs(wanted: ResponsesRequest, tools: ToolPlan) -> None:
    if wanted.logprobs and tools.parser_format is not None:
        message = "'include': log-probabilities of the text can't be combined with tools."
        raise InvalidField(message, "include", "unsupported_parameter")
