"""What no runtime can run is refused before it is queued."""

from strategies.errors import ContextLengthExceeded, InvalidRequest
from strategies.runtime import Generation, ModelInfo


def check_generation(generation: Generation, info: ModelInfo) -> None:
    """Raises ContextLengthExceeded or InvalidRequest for what doesn't fit the model's context or vocabulary."""
    length, limit = len(generation.prompt) + len(generation.answer), info.max_model_len
    asked = generation.stopping.max_tokens
    if length == 0:
        raise InvalidRequest("the prompt has no tokens", "prompt")
    if length > limit or (length == limit and asked != 0):
        raise ContextLengthExceeded(
            f"this model's maximum context length is {limit} tokens; the prompt has {length}, which leaves no room "
            "to generate",
            "prompt",
        )
    if asked is not None and length + asked > limit:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {limit} tokens; {length} in the prompt and max_tokens {asked} "
            "exceed it",
            "max_tokens",
        )
    size = info.vocab_size
    if any(not 0 <= token < size for token in generation.tokens):
        raise InvalidRequest(f"the prompt holds a token id outside the vocabulary of {size}", "prompt")
    for transform in generation.sampling.transforms:
        if any(not 0 <= token < size for token in transform.token_ids()):
            raise InvalidRequest(f"a token id lies outside the vocabulary of {size}", transform.name)
    if any(not 0 <= token < size for token in generation.stopping.stop_token_ids):
        raise InvalidRequest(f"a token id lies outside the vocabulary of {size}", "stop_token_ids")
