"""The one exception hierarchy: raised where the fault is known, mapped to HTTP in `decoding_server.errors` only."""


class DecodingError(Exception):
    """Base of every fault that a request or an operator can be told about in one line."""


class InvalidRequest(DecodingError):
    """The request can't be honoured as written. `param` names the offending field, in the request's own terms."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """Prompt (plus the tokens asked for) does not fit the model's context or the KV cache."""


class ModelNotFound(DecodingError):
    """No served model has the name that the request gives."""


class QueueFull(DecodingError):
    """The bounded queue of waiting sequences is full; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RuntimeUnavailable(DecodingError):
    """The runtime is loading, draining or dead."""


class ProgramsUnavailable(DecodingError):
    """No sandbox works here, or the one that did has failed: programs can't be run. The message says why."""


class RequestFailed(DecodingError):
    """A fault while running one request (not-a-number logits, a strategy's bug). Others are unaffected."""


class ModelLoadError(DecodingError):
    """The model can't be loaded. The message is one line that says what to do."""
