"""A chat in the terminal against a running server, streaming, with its decoding switched by commands."""

import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx

from decoding_server.terminal_decoding import ChoiceError, DecodingChoice

PROMPT = "> "
HELP = """\
/strategy NAME [JSON]  decode by this strategy or preset, with these parameters; those of different slots add up
/strategy off          plain decoding again; without a name: what there is, and what is chosen
/budget UNIT LIMIT     limit every answer: forward_tokens, output_tokens, flops, seconds; /budget off
/history               the conversation so far
/reset                 forget it
/help                  these lines
/quit                  leave, as Ctrl-D does; Ctrl-C stops an answer
//text                 say /text"""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal would obey. A model's text must move no cursor and set no title."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
"""What UTF-8 can't hold, though JSON can: half a character."""
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading JSON of another shape raises."""


class ChatError(Exception):
    """The server can't be reached, it refused, or what it sent is no answer; the message is one line."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one chunk of a stream tells."""

    text: str
    usage: Mapping[str, Any]
    warnings: list[str]


class TerminalChat:
    """One conversation: reads lines from stdin, writes answers to stdout as they come.

    With a terminal it also says what each answer cost, and what commands did; else stdout has the answers alone.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        system: str | None = None,
        decoding: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """decoding: a strategy's or preset's name, or a JSON object, to begin with."""
        self.base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.options = {"model": model, **(options or {})}
        self.beginning = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self.beginning)
        self.first = decoding
        self.interactive = sys.stdin.isatty()
        self.usage: Mapping[str, Any] = {}
        self.warnings: list[str] = []
        self._choice: DecodingChoice | None = None
        # As bytes: a key that is no ASCII is for the server to refuse.
        headers = {b"authorization": f"Bearer {api_key}".encode(errors="replace")} if api_key else {}
        # No read timeout: the first token of a long conversation may take its time.
        self.client = httpx.Client(headers=headers, timeout=httpx.Timeout(None, connect=10))

    def run(self) -> int:
        """Until /quit or the end of input. Exit code 1 when input was not a terminal's and something failed, or when
        the decoding to begin with can't be had."""
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a character that the locale lacks ends no conversation
        try:
            return self.converse()
        except BrokenPipeError:  # whoever reads the answers wants no more; nor is there a place for what is buffered
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1

    def converse(self) -> int:
        with self.client:
            if self.first is not None and not self.attempt(self.begin):
                return 1
            if self.interactive and importlib.util.find_spec("readline"):
                importlib.import_module("readline")  # input() then edits its line and remembers the earlier ones
            while True:
                try:
                    line = input(PROMPT if self.interactive else "").strip()
                except (EOFError, KeyboardInterrupt):
                    print()
                    return 0
                if line == "/quit":
                    return 0
                if line and not self.heed(line) and not self.interactive:
                    return 1

    def heed(self, line: str) -> bool:
        """Obeys a command, or answers. Whether that went well."""
        if line.startswith("//"):
            return self.answer(line[1:])
        return self.command(line) if line.startswith("/") else self.answer(line)

    def command(self, line: str) -> bool:
        """False if it failed, which was said."""
        name, _, rest = line.partition(" ")
        if name == "/reset":
            self.messages = list(self.beginning)
            return True
        if name == "/help":
            self.say(*HELP.splitlines())
            return True
        if name == "/history":
            self.say(*(f"{message['role']}: {message['content']}" for message in self.messages))
            return True
        if name == "/strategy":
            return self.attempt(lambda: self.strategy(rest.strip()))
        if name == "/budget":
            return self.attempt(lambda: self.budget(rest.split()))
        print(f"error: there is no command {name}; /help lists them", file=sys.stderr)
        return False

    def strategy(self, text: str) -> None:
        name, _, parameters = text.partition(" ")
        if name:
            self.choice.choose(name, parameters.strip())
        else:
            self.say(*self.choice.listed())
        self.say(*self.choice.lines())

    def budget(self, words: list[str]) -> None:
        self.choice.limit(words)
        self.say(*self.choice.lines())

    def begin(self) -> None:
        """Chooses what the command line asks for."""
        assert self.first is not None
        text = self.first.strip()
        if text.startswith("{"):
            try:
                self.choice.take(json.loads(text))
            except ValueError as error:
                raise ChoiceError(f"--decoding is no JSON: {error}") from None
        else:
            self.choice.choose(text)

    @property
    def choice(self) -> DecodingChoice:
        """What the server has is asked for when it is first needed. Raises ChatError, httpx.HTTPError."""
        if self._choice is None:
            response = self.client.get(f"{self.base}/strategies")
            if response.status_code != 200:
                raise ChatError(error_message(response.content, response.status_code))
            try:
                found = response.json()
                slots = {str(one["id"]): str(one["slot"]) for one in found["data"]}
                self._choice = DecodingChoice(slots, dict(found["presets"]))
            except MALFORMED:
                raise ChatError(
                    f"the server at {self.base} doesn't list its strategies as this chat knows it"
                ) from None
        return self._choice

    def attempt(self, action: Callable[[], None]) -> bool:
        """Whether it succeeded; what went wrong is said on stderr, in one line."""
        try:
            action()
        except (ChatError, ChoiceError, httpx.HTTPError, httpx.InvalidURL, KeyboardInterrupt) as error:
            print(f"error: {shown(' '.join(self.reason(error).split()))}", file=sys.stderr)
            return False
        return True

    def reason(self, error: BaseException) -> str:
        if isinstance(error, KeyboardInterrupt):
            return "stopped"
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return f"no server at {self.base}: {str(error) or type(error).__name__}"
        return str(error) or type(error).__name__

    def answer(self, text: str) -> bool:
        """One turn. False if the server failed; the turn is then forgotten, so that it can be tried again."""
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        self.usage, self.warnings = {}, []

        def write() -> None:
            try:
                with closing(self.pieces()) as stream:  # so that Ctrl-C closes the connection, and the server stops
                    for piece in stream:
                        pieces.append(piece)  # first: what Ctrl-C leaves on the screen is in the conversation
                        print(shown(piece) if sys.stdout.isatty() else piece, end="", flush=True)
            except KeyboardInterrupt:
                if not self.interactive:  # whoever reads the pipe must not take it for an answer
                    print(end="\n" if pieces else "")
                    raise
                print(" [stopped]", end="")
            except (ChatError, httpx.HTTPError):
                print(end="\n" if pieces else "")  # the error begins a line
                raise

        if not self.attempt(write):
            self.messages.pop()
            return False
        print()
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        self.say(*(f"note: {warning}" for warning in self.warnings))
        if self.usage:
            try:
                self.say(cost_line(self.usage, self._choice.budget if self._choice else {}))
            except MALFORMED:
                self.say("note: the server tells the cost in a form that this chat doesn't know")
        return True

    def say(self, *lines: str) -> None:
        """What is no answer: for a reader at a terminal."""
        for line in lines if self.interactive else ():
            print(shown(line))

    def pieces(self) -> Generator[str, None, None]:
        """The answer's text as it is streamed. Raises ChatError, httpx.HTTPError."""
        decoding = self._choice.body() if self._choice else None
        fields = {**self.options, "decoding": decoding, "stream_options": {"include_usage": True}}
        given = {name: value for name, value in fields.items() if value is not None}
        body = {"messages": self.messages, "stream": True, **given}
        with self.client.stream("POST", f"{self.base}/chat/completions", json=body) as response:
            if response.status_code != 200:
                message = error_message(response.read(), response.status_code)
                wait = response.headers.get("retry-after")
                raise ChatError(f"{message} (try again in {wait} s)" if wait else message)
            began = False
            for data in events(response.iter_bytes()):
                if data == b"[DONE]":
                    return
                began = True
                chunk = read_chunk(data)
                self.usage = chunk.usage or self.usage
                self.warnings += chunk.warnings
                yield chunk.text
            raise ChatError(
                "the connection ended before the answer did"
                if began
                else f"the server at {self.base} sent no stream of events"
            )


def events(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The data of each event of a stream; comments and blank lines are none.

    A line ends with a line feed alone: httpx's own lines end with every character that Unicode has for that, also
    inside of JSON texts.
    """
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def read_chunk(data: bytes) -> Chunk:
    """Raises ChatError for an error in the stream, and for what is no chunk of an answer."""
    try:
        chunk = json.loads(data)
        failed = chunk.get("error")
        texts = [] if failed else [choice["delta"].get("content") or "" for choice in chunk["choices"]]
        text = SURROGATE.sub("\ufffd", "".join(texts))
        found = Chunk(text, dict(chunk.get("usage") or {}), [str(one) for one in chunk.get("warnings") or ()])
    except MALFORMED:
        raise ChatError(
            f"the server sent what is no chunk of an answer: {data[:80].decode(errors='replace')}"
        ) from None
    if failed:
        raise ChatError(str(failed.get("message", failed) if isinstance(failed, dict) else failed))
    return found


def shown(text: str) -> str:
    """As a terminal may have it."""
    return CONTROL.sub("\ufffd", text)


def cost_line(usage: Mapping[str, Any], budget: Mapping[str, float]) -> str:
    """What an answer cost, in one line; and how much of each limit is spent."""
    spend = usage.get("decoding")
    parts = [f"{usage['completion_tokens']} tokens"]
    if spend is not None:
        drafted = f" + {spend['draft_tokens']} by a draft" if spend["draft_tokens"] else ""
        parts.append(f"{spend['target_tokens']} computed{drafted}, {spend['cached_tokens']} cached")
        if spend["rounds"]:
            parts.append(f"{spend['accepted_tokens']} of {spend['drafted_tokens']} drafts accepted")
        if "search" in spend and "nodes" in spend["search"]:
            parts.append(f"{spend['search']['nodes']} nodes")
        parts += [f"{spend['forward_passes']} passes", operations(spend["flops"]), f"{spend['seconds']:.1f} s"]
        forward = spend["target_tokens"] + spend["draft_tokens"] + spend["scorer_tokens"]
        spent = {**spend, "forward_tokens": forward}
        for unit, limit in budget.items():
            over = ", which ended it" if spend["budget_exhausted"] == unit else ""
            parts.append(f"budget {unit} {spent[unit] / limit:.0%}{over}")
    return f"[{' · '.join(parts)}]"


def operations(flops: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"


def error_message(body: bytes, status: int) -> str:
    """The message of an error body, or the status if it is not one of ours."""
    try:
        return str(json.loads(body)["error"]["message"])
    except MALFORMED:
        return f"the server answered {status}"
