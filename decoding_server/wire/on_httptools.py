"""The protocol on httptools, a parser in C.

Java's HttpClient and `curl --http2` offer HTTP/2 in the headers of their first request. RFC 9110 (7.8) lets a server
ignore that, but httptools would hand what follows the head, which is the body, to the other protocol.
"""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from decoding_server.wire.patience import Patience
from decoding_server.wire.refusal import HEAD_TOO_LARGE, MALFORMED, MAX_HEAD_BYTES, refuse

OFFER = frozenset({b"upgrade", b"http2-settings"})
"""Headers that make the offer, named in the header Connection."""


class HeadTooLarge(Exception):
    """A request's head is past the limit. The parser wraps it where it is raised in one of its callbacks."""


class HttptoolsProtocol(Patience, HttpToolsProtocol):
    """Replaces uvicorn's plain-text 400, limits the head of a request, and parses one again that offers an upgrade."""

    in_head = False
    head_bytes = 0
    offers_upgrade = False

    def data_received(self, data: bytes) -> None:
        head_went_on = self.in_head
        self._unset_keepalive_if_required()
        try:
            self._parse(memoryview(data))
            if head_went_on and self.in_head:  # the parser keeps an unfinished header, however long, to itself
                self._count(len(data))
        except (httptools.HttpParserError, HeadTooLarge):
            self.send_400_response("")
        self.heard()

    def _parse(self, data: memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
            head = self._head_without_offer()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head, self.head_bytes, self.offers_upgrade = True, 0, False

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        self.in_head = False
        # CONNECT is no offer but an order; its target is no URL, which is the fault that gets found.
        self.offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self.offers_upgrade:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.offers_upgrade:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Whatever was wrong: `msg` is ignored."""
        failure = HEAD_TOO_LARGE if self.head_bytes > MAX_HEAD_BYTES else MALFORMED
        cycle = self.cycle
        if self.transport.is_closing():
            return
        if cycle is None or cycle.response_complete:
            refuse(self.transport, failure)
        elif cycle.more_body and not cycle.response_started and not self.pipeline:
            refuse(self.transport, failure, cycle)
        elif self.pipeline or cycle.more_body:  # an answer has begun, so it can only be cut off
            self.transport.close()
        else:  # a whole request is being answered, and what came after it is lost
            cycle.keep_alive = False

    def _count(self, size: int) -> None:
        """Adds to the head's size. Raises HeadTooLarge."""
        self.head_bytes += size
        if self.head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge

    def _head_without_offer(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(option for option in value.split(b",") if option.strip().lower() not in OFFER)
            if name not in OFFER:
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join([*lines, b"", b""])
