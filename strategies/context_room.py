"""Whether a prompt, and what is asked behind it, fit the model's context."""

from strategies.errors import ContextLengthExceeded


def check_room(length: int, asked: int | None, limit: int) -> None:
    """length: tokens of the prompt. asked: `max_tokens`, None for as many as fit. limit: the model's context. Raises
    ContextLengthExceeded. A prompt that fills the context is only good for asking nothing (scoring)."""
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
