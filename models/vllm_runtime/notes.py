"""What a processor reports about a request besides its tokens, through a pipe between the two processes on one machine:
log-probabilities of the distribution drawn from, hidden states, faults. vLLM's own outputs have no room for these.

A note is written before vLLM sends the token that it belongs to, so whoever has the token finds the note in the pipe.
"""

import contextlib
import fcntl
import logging
import os
import struct
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

VARIABLE = "DECODING_SERVER_VLLM_NOTES"
"""Environment variable that tells processors the pipe's path: vLLM keys its cache of compiled code by its whole
configuration, which a path of its own for every start would spoil."""
HEADER = struct.Struct("<QBIII")  # key, kind, position, number of ids, number of values (bytes of a message)
CHUNK = 1 << 16


class Kind(IntEnum):
    LOGPROBS = 1
    HIDDEN = 2
    FAULT = 3


@dataclass(frozen=True, slots=True)
class Note:
    """key: of the request. position: tokens before the one that was drawn. ids int32 and values float32: tokens and
    their log-probabilities, the drawn one first; or a hidden state in values. message: of a fault."""

    key: int
    kind: Kind
    position: int
    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    message: str = ""


class NoteReader:
    """The end of the one who serves: makes the pipe, and collects what arrives by request.

    There may be notes without a token: vLLM samples after every chunk of a prompt, and drops all but the last sample.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="decoding-server-")
        self.path = Path(self._folder.name) / "notes"
        os.mkfifo(self.path, 0o600)
        # Both directions, so that the pipe has no end before a processor opens it, nor when one closes it.
        self._pipe = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self._buffer = bytearray()
        self._notes: dict[int, dict[tuple[Kind, int], Note]] = {}
        self._faults: dict[int, str] = {}

    def expect(self, key: int) -> None:
        """Notes of this request are kept, until `forget`."""
        self._notes[key] = {}

    def receive(self) -> None:
        """Reads whatever the pipe holds. There may be notes of requests that are over: vLLM computes ahead."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, CHUNK):
                self._buffer += data
        while (note := self._next()) is not None:
            if note.key not in self._notes:
                continue
            if note.kind is Kind.FAULT:
                self._faults.setdefault(note.key, note.message)
            else:
                self._notes[note.key][note.kind, note.position] = note

    def take(self, key: int, kind: Kind, position: int) -> Note | None:
        """The note of a token, once."""
        return self._notes[key].pop((kind, position), None)

    def fault(self, key: int) -> str | None:
        """Why a request can't go on, if it can't."""
        return self._faults.get(key)

    def forget(self, key: int) -> None:
        """Drops what is left of a request."""
        self._notes.pop(key, None)
        self._faults.pop(key, None)

    def close(self) -> None:
        os.close(self._pipe)
        self._folder.cleanup()

    def _next(self) -> Note | None:
        if len(self._buffer) < HEADER.size:
            return None
        key, kind, position, ids, values = HEADER.unpack_from(self._buffer)
        text = kind == Kind.FAULT
        end = HEADER.size + (values if text else 4 * (ids + values))
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        if text:
            message = body.decode(errors="replace")
            return Note(key, Kind.FAULT, position, np.empty(0, np.int32), np.empty(0, np.float32), message)
        numbers = np.frombuffer(body, np.float32, values, 4 * ids)
        return Note(key, Kind(kind), position, np.frombuffer(body, np.int32, ids), numbers)


class NoteWriter:
    """The end of a processor. Without a path (a rank that has nothing to report) it writes nothing, and on another
    machine, where the path isn't, it can't: what has to be told is an exception there."""

    def __init__(self, path: str | None) -> None:
        self._pipe: int | None = None
        self._elsewhere = path is not None and not os.path.exists(path)
        if self._elsewhere:
            log.warning("this worker is not on the server's machine: no processed log-probabilities, no hidden states")
        elif path is not None:
            self._pipe = os.open(path, os.O_WRONLY)

    def logprobs(self, key: int, position: int, ids: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        head = HEADER.pack(key, Kind.LOGPROBS, position, len(ids), len(values))
        self._write(head + ids.tobytes() + values.tobytes())

    def hidden(self, key: int, position: int, values: NDArray[np.float32]) -> None:
        self._write(HEADER.pack(key, Kind.HIDDEN, position, 0, len(values)) + values.tobytes())

    def fault(self, key: int, message: str) -> None:
        """Raises RuntimeError where nobody would learn of it: a wrong token would pass for a right one."""
        if self._elsewhere:
            raise RuntimeError(f"request {key} can't go on: {message}")
        text = message.encode()[:1000]
        self._write(HEADER.pack(key, Kind.FAULT, 0, 0, len(text)) + text)

    def _write(self, data: bytes) -> None:
        if self._pipe is None:
            return
        fcntl.flock(self._pipe, fcntl.LOCK_EX)  # a long note is written in pieces, and there may be several engines
        try:
            while data:
                data = data[os.write(self._pipe, data) :]
        except BrokenPipeError:
            log.warning("nobody reads what the processor reports")
        finally:
            fcntl.flock(self._pipe, fcntl.LOCK_UN)
