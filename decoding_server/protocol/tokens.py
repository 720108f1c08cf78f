"""POST /tokenize and /detokenize, in vLLM's shapes."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from decoding_server.protocol.chat import ChatMessage
from decoding_server.protocol.sampling import invalid


class TokenizeRequest(BaseModel):
    """Either `prompt` or `messages`. Special tokens are added to a prompt, not to a rendered conversation,
    unless `add_special_tokens` says otherwise: just as the generating endpoints do."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise invalid("exactly one of 'prompt' and 'messages' is needed", "prompt")
        return self


class TokenizeResponse(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


class DetokenizeResponse(TypedDict):
    prompt: str


class TokenizerInfo(TypedDict):
    """eos_token: the one that the tokenizer itself names, where a model has several ends."""

    tokenizer_class: str
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None
