"""POST /tokenize and /detokenize, GET /tokenizer_info: what the generating endpoints would make of a text, in vLLM's
shapes."""

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
    TokenizerInfo,
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


@router.get("/tokenizer_info", response_model=TokenizerInfo)
async def tokenizer_info(request: Request) -> JSONResponse:
    """The special tokens and the chat template, for clients that prepare prompts themselves."""
    tokenizer = service_of(request).runtime.tokenizer
    names = {token: text for text, token in tokenizer.special_token_ids.items()}
    ends = sorted(tokenizer.eos_token_ids)
    info: TokenizerInfo = {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "bos_token": None if tokenizer.bos_token_id is None else names.get(tokenizer.bos_token_id),
        "eos_token": tokenizer.eos_token or (names.get(ends[0]) if ends else None),
        "chat_template": tokenizer.chat_template,
    }
    return JSONResponse(info)
