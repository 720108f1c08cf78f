"""What no runtime can run is refused before it is queued."""

from strategies.context_room import check_room
from strategies.errors import InvalidRequest
from strategies.runtime import Generation, ModelInfo


def check_generation(generation: Generation, info: ModelInfo) -> None:
    """Raises ContextLengthExceeded or InvalidRequest for what doesn't fit the model's context or vocabulary."""
    length = len(generation.prompt) + len(generation.answer)
    if length == 0:
        raise InvalidRequest("the prompt has no tokens", "prompt")
    check_room(length, generation.stopping.max_tokens, info.max_model_len)
    size = info.vocab_size
    if any(not 0 <= token < size for token in generation.tokens):
        raise InvalidRequest(f"the prompt holds a token id outside the vocabulary of {size}", "prompt")
    for transform in generation.sampling.transforms:
        if any(not 0 <= token < size for token in transform.token_ids()):
            raise InvalidRequest(f"a token id lies outside the vocabulary of {size}", transform.name)
    if any(not 0 <= token < size for token in generation.stopping.stop_token_ids):
        raise InvalidRequest(f"a token id lies outside the vocabulary of {size}", "stop_token_ids")
