"""HTTP/1.1 as uvicorn speaks it, but for two things: what is no HTTP gets our error body, and an offer of another
protocol is declined."""

import asyncio


def protocol_class() -> type[asyncio.Protocol]:
    """For `uvicorn.Config(http=...)`: on httptools (C) where it is installed, else on h11."""
    try:
        from decoding_server.wire.on_httptools import HttptoolsProtocol
    except ImportError:
        from decoding_server.wire.on_h11 import PlainProtocol

        return PlainProtocol
    return HttptoolsProtocol
