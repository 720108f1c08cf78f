"""The incremental parser of answers: the part that all formats share.

A parser is a state machine over characters, written as a generator: it looks at the current character, and each `yield`
consumes that character and waits for the next. Where pushes begin and end therefore can't change the result. One
character of look-ahead is enough for every format, so nothing is ever scanned twice: the time is linear in the text.

What comes out, whatever the format:

- Text is content. Only what may still become the beginning of a call is held back.
- White space between calls, before the first and after the last one is part of the markup and dropped; between text and
  a call, what precedes the call is dropped, what precedes the text stays.
- A call is reported as soon as its name is known and its arguments begin. What is not a call after all (bad JSON, cut
  off) before that point comes out as content, character by character as it was written.
- Once reported, a call stays. If its arguments break off, they end there; text that does not belong to it is content.
- Arguments are the model's own text: only brackets and strings are followed in order to find their end. They are an
  object; where the model writes none (no such key, null, an empty string) they are `{}`, and an object inside a
  JSON string is taken out of it.
- A string may contain any marker: markers count only outside strings.
"""

import json
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator
from enum import Enum
from typing import TypeVar

from decoding_server.tools.events import CallArguments, CallStart, ContentText, Event

T = TypeVar("T")
Scan = Generator[None, None, T]

SPACE = frozenset(" \t\r\n")
NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_-.:/")
MAX_NAME = 128
"""Of a tool's name, in characters; OpenAI allows letters, digits, `_` and `-`, and 64 of them."""

ARGUMENT_KEYS = ("arguments", "parameters")
CALL_KEYS = ("name", *ARGUMENT_KEYS, "type", "id")
_SCALAR = frozenset(string.ascii_letters + string.digits + "+-.")
_CLOSER = {"{": "}", "[": "]"}


class Malformed(Exception):
    """The current character can't continue a call. It is not consumed."""


class _Sink(Enum):
    """Where consumed characters go: nowhere yet, to the content, or to the current call's arguments."""

    HELD = 0
    CONTENT = 1
    ARGUMENTS = 2


class ToolCallParser(ABC):
    """One answer's parser: any number of `push`, then `finish`. A whole answer is one push.

    new_id: gives each call its id. tool_names: the tools that the request offers; they decide only where a format has
    no marker of its own (llama3), elsewhere a call of an unknown tool is a call, since that is what the model wrote.
    parallel: if False, only the first call is reported and the others are dropped.
    """

    def __init__(self, new_id: Callable[[], str], tool_names: Collection[str], *, parallel: bool = True) -> None:
        self._new_id = new_id
        self._tool_names = frozenset(tool_names)
        self._parallel = parallel
        self._events: list[Event] = []
        self._char = ""  # the current character, not yet consumed; "" at the end of the text
        self._pending: list[str] = []  # consumed characters that are not in an event yet
        self._sink = _Sink.HELD
        self._calls_started = 0
        self._reported = False  # the current or last call was reported, and no content has come since
        self._cut_off = False
        self._line_start = True  # only white space since the last line break, or directly after a call
        self._scan = self._answer()

    @property
    def has_calls(self) -> bool:
        """Whether a call was reported."""
        return self._calls_started > 0

    @property
    def ends_in_calls(self) -> bool:
        """After `finish`: whether there are calls to run. The answer's finish_reason is then "tool_calls" where it
        would be "stop"; not so if the text ended, at a stop string, within a call's arguments."""
        return self.has_calls and not self._cut_off

    def push(self, text: str) -> list[Event]:
        """The events that are certain with this text."""
        for char in text:
            self._char = char
            next(self._scan)
            self._pending.append(char)
        return self._take_events()

    def finish(self) -> list[Event]:
        """The events that were held back, now that the text has ended."""
        self._char = ""
        next(self._scan, None)
        return self._take_events()

    @abstractmethod
    def _opens(self) -> bool:
        """Whether the current character may begin a call. If so, `_calls` must be able to consume it."""

    @abstractmethod
    def _calls(self) -> Scan[None]:
        """Consumes one or more calls with their markers, or raises Malformed."""

    def _answer(self) -> Scan[None]:
        while self._char:
            if self._char in SPACE:
                self._switch(_Sink.HELD)
                self._line_start = self._line_start or self._char == "\n"
                yield
            elif self._opens():
                self._switch(_Sink.HELD)
                try:
                    yield from self._calls()
                    self._line_start = True
                except Malformed:
                    self._abandon()
            else:
                self._release()
                yield
        self._abandon()

    # Events

    def _switch(self, sink: _Sink) -> None:
        if sink is not self._sink:
            self._emit()
            self._sink = sink

    def _release(self) -> None:
        """What is held, and the current character, are content."""
        self._switch(_Sink.CONTENT)
        self._reported = self._line_start = False

    def _abandon(self) -> None:
        """No call goes on here: what is held is content, unless the text ends within the markup of a reported call."""
        self._switch(_Sink.HELD)
        if self._reported and not self._char:
            self._pending.clear()
        else:
            self._release()

    def _emit(self) -> None:
        if self._sink is _Sink.HELD or not self._pending:
            return
        text = "".join(self._pending)
        self._pending.clear()
        if self._sink is _Sink.ARGUMENTS:
            self._add_arguments(text)
        elif self._events and isinstance(last := self._events[-1], ContentText):
            self._events[-1] = ContentText(last.text + text)
        else:
            self._events.append(ContentText(text))

    def _take_events(self) -> list[Event]:
        self._emit()
        events, self._events = self._events, []
        return events

    def _report(self, name: str) -> None:
        """The call is certain: its markup so far is no content."""
        self._pending.clear()
        self._reported = True
        self._calls_started += 1
        if self._parallel or self._calls_started == 1:
            self._events.append(CallStart(self._calls_started - 1, self._new_id(), name))

    def _add_arguments(self, text: str) -> None:
        if self._parallel or self._calls_started == 1:
            self._events.append(CallArguments(self._calls_started - 1, text))

    # Pieces of text

    def _space(self) -> Scan[None]:
        while self._char in SPACE:
            yield

    def _literal(self, text: str) -> Scan[None]:
        for expected in text:
            if self._char != expected:
                raise Malformed
            yield

    def _word(self, allowed: Collection[str] | None = None) -> Scan[str]:
        """A name: one of `allowed` if given, and Malformed at the first character that none of them has."""
        word = ""
        while self._char in NAME_CHARACTERS:
            word += self._char
            if len(word) > MAX_NAME or (
                allowed is not None and not any(candidate.startswith(word) for candidate in allowed)
            ):
                raise Malformed
            yield
        if not word or (allowed is not None and word not in allowed):
            raise Malformed
        return word

    def _quoted_word(self, allowed: Collection[str] | None = None) -> Scan[str]:
        yield from self._literal('"')
        word = yield from self._word(allowed)
        yield from self._literal('"')
        return word

    # JSON

    def _call_object(self, *, marked: bool) -> Scan[None]:
        """`{"name": ..., "arguments": ...}`, keys in any order. Without a marker before it (`marked`), an object is
        a call only if it has no key that is foreign to calls and names a known tool."""
        keys, names = (None, None) if marked else (CALL_KEYS, self._tool_names)
        if self._char == "{":
            self._reported = False
        yield from self._literal("{")
        name: str | None = None
        arguments: str | None = None  # complete, but the name is still unknown
        while True:
            yield from self._space()
            key = yield from self._quoted_word(keys)
            yield from self._space()
            yield from self._literal(":")
            yield from self._space()
            if key == "name" and name is None:
                name = yield from self._quoted_word(names)
                if arguments is not None:
                    self._report_whole(name, arguments)
            elif key not in ARGUMENT_KEYS or self._reported or arguments is not None:
                yield from self._value()
            elif name is not None and self._char == "{":
                yield from self._stream_arguments(name)
            else:
                first = len(self._pending)
                yield from self._value()
                arguments = _as_object("".join(self._pending[first:]))
                if name is not None:
                    self._report_whole(name, arguments)
            yield from self._space()
            if self._char == "}":
                break
            yield from self._literal(",")
        if name is None:
            raise Malformed
        if not self._reported:
            self._report_whole(name, "{}")
        yield
        self._pending.clear()

    def _stream_arguments(self, name: str) -> Scan[None]:
        """The arguments begin at the current character and go out as they come."""
        self._report(name)
        self._switch(_Sink.ARGUMENTS)
        try:
            yield from self._value()
        except Malformed:
            self._cut_off = not self._char and (self._parallel or self._calls_started == 1)
            raise
        self._switch(_Sink.HELD)

    def _report_whole(self, name: str, arguments: str) -> None:
        self._report(name)
        self._add_arguments(arguments)

    def _value(self) -> Scan[None]:
        if self._char == '"':
            yield from self._string()
        elif self._char in _CLOSER:
            yield from self._nested()
        elif self._char in _SCALAR:
            while self._char in _SCALAR:
                yield
        else:
            raise Malformed

    def _string(self) -> Scan[None]:
        yield from self._literal('"')
        while self._char and self._char != '"':
            if self._char == "\\":
                yield
                if not self._char:
                    break
            yield
        yield from self._literal('"')

    def _nested(self) -> Scan[None]:
        """An object or array, up to the bracket that closes it."""
        closers: list[str] = []
        while True:
            if self._char == '"':
                yield from self._string()
                continue
            if self._char in _CLOSER:
                closers.append(_CLOSER[self._char])
            elif not self._char or (self._char in _CLOSER.values() and self._char != closers.pop()):
                raise Malformed
            yield
            if not closers:
                return


def _as_object(arguments: str) -> str:
    """Arguments that the model did not write as an object, as the text of one where that is what they mean."""
    if arguments == "null":
        return "{}"
    if not arguments.startswith('"'):
        return arguments
    try:
        text = json.loads(arguments, strict=False)
        if not text.strip():
            return "{}"
        if isinstance(json.loads(text, strict=False), dict):
            text.encode()
            return str(text)
    except (ValueError, RecursionError):  # UnicodeEncodeError (half a surrogate pair) is a ValueError
        pass
    return arguments
