"""POST /tokenize and /detokenize: what the generating endpoints would make of a text, in vLLM's shapes."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from decoding_server.api.endpoint import documented, read_request, service_of, tokenize
from decoding_server.logprobs import token_text
from decoding_server.protocol.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)

router = APIRouter()


@router.post("/tokenize", response_model=TokenizeResponse, openapi_extra=documented(TokenizeRequest))
async def tokenize_text(request: Request) -> JSONResponse:
    """The token ids of a prompt or of a conversation."""
    service = service_of(request)
    body, _ = await read_request(request, TokenizeRequest)
    service.model_name(body.model)
    tokenizer = service.runtime.tokenizer
    if body.messages is None:
        text, special = body.prompt or "", True
    else:
        messages = [message.for_template() for message in body.messages]
        text = tokenizer.render_chat(messages, add_generation_prompt=body.add_generation_prompt is not False)
        special = False
    if body.add_special_tokens is not None:
        special = body.add_special_tokens
    tokens = await tokenize(tokenizer, text, add_special_tokens=special)
    response: TokenizeResponse = {
        "count": len(tokens),
        "max_model_len": service.runtime.info.max_model_len,
        "tokens": tokens,
        "token_strs": [token_text(tokenizer, token) for token in tokens] if body.return_token_strs else None,
    }
    return JSONResponse(response)


@router.post("/detokenize", response_model=DetokenizeResponse, openapi_extra=documented(DetokenizeRequest))
async def detokenize(request: Request) -> JSONResponse:
    """The text of token ids, special tokens included."""
    service = service_of(request)
    body, _ = await read_request(request, DetokenizeRequest)
    service.model_name(body.model)
    service.check_tokens(body.tokens, "tokens")
    response: DetokenizeResponse = {
        "prompt": service.runtime.tokenizer.decode(body.tokens, skip_special_tokens=False),
    }
    return JSONResponse(response)
