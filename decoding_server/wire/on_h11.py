"""The protocol on h11, a parser in Python. It ignores offers of other protocols by itself."""

import sys
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from decoding_server.wire.patience import Patience
from decoding_server.wire.refusal import HEAD_TOO_LARGE, MALFORMED, MAX_HEAD_BYTES, refuse


class PlainProtocol(Patience, H11Protocol):
    """Replaces uvicorn's plain-text 400."""

    def __init__(self, config: Config, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self.conn = h11.Connection(h11.SERVER, MAX_HEAD_BYTES)

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this while it handles the parser's error, which says whether the head was too large."""
        error = sys.exc_info()[1]
        too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            unfinished = self.cycle if self.conn.our_state is h11.SEND_RESPONSE else None
            refuse(self.transport, HEAD_TOO_LARGE if too_large else MALFORMED, unfinished)
        else:  # the answer has begun, so it can only be cut off
            self.transport.close()
