"""Responses that clients may read, delete and continue: in memory, per process, bounded, lost on restart."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ENTRY_OVERHEAD = 512
"""Bytes that an entry takes besides its text: keys, links, object headers."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A finished response, and the items of the whole conversation up to its end."""

    response: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]


class ResponseStore:
    """At most `max_entries` responses and `max_bytes` bytes; beyond that the least recently used ones are forgotten.

    Entries are kept as JSON text, so that their size is known and nobody can change them. Used on the event loop only.
    A response can be found only by the owner that it was put for. `max_entries` 0 keeps nothing.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def enabled(self) -> bool:
        return self.max_entries > 0

    def put(self, owner: str, response_id: str, stored: StoredResponse) -> bool:
        """False if the response alone is larger than the store."""
        text = json.dumps([stored.response, stored.items], separators=(",", ":"), ensure_ascii=False).encode()
        if not self.enabled or _size(text) > self.max_bytes:
            return False
        self.delete(owner, response_id)
        self._entries[owner, response_id] = text
        self.bytes += _size(text)
        while len(self._entries) > self.max_entries or self.bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= _size(oldest)
        return True

    def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The response, which becomes the most recently used one."""
        text = self._entries.get((owner, response_id))
        if text is None:
            return None
        self._entries.move_to_end((owner, response_id))
        return StoredResponse(*json.loads(text))

    def delete(self, owner: str, response_id: str) -> bool:
        """Whether it was there."""
        text = self._entries.pop((owner, response_id), None)
        if text is None:
            return False
        self.bytes -= _size(text)
        return True


def _size(text: bytes) -> int:
    return len(text) + ENTRY_OVERHEAD


def owner_of(authorization: str | None) -> str:
    """The owner that an Authorization header stands for: a digest, since the store needs to know no keys."""
    scheme, _, credential = (authorization or "").partition(" ")
    return hashlib.sha256(f"{scheme.lower()} {credential.strip()}".encode()).hexdigest()
