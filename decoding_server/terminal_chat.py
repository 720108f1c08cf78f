"""A chat in the terminal against a running server, streaming."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

PROMPT = "> "


class ChatError(Exception):
    """The server can't be reached, or it refused; the message is one line."""


class TerminalChat:
    """One conversation: reads lines from stdin, writes answers to stdout as they come."""

    def __init__(
        self,
        *,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self.options = {"model": model, **(options or {})}
        self.beginning = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self.beginning)
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # No read timeout: the first token of a long conversation may take its time.
        self.client = httpx.Client(headers=headers, timeout=httpx.Timeout(None, connect=10))

    def run(self) -> int:
        """Until /quit or the end of input. Exit code 1 when input was not a terminal's and the server failed."""
        failed = False
        with self.client:
            while True:
                try:
                    line = input(PROMPT if sys.stdin.isatty() else "").strip()
                except (EOFError, KeyboardInterrupt):
                    print()
                    break
                if line == "/quit":
                    break
                if line == "/reset":
                    self.messages = list(self.beginning)
                elif line:
                    failed = not self.answer(line)
                    if failed and not sys.stdin.isatty():
                        return 1
        return 0

    def answer(self, text: str) -> bool:
        """One turn. False if the server failed; the turn is then forgotten, so that it can be tried again."""
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            for piece in self.pieces():
                print(piece, end="", flush=True)
                pieces.append(piece)
        except KeyboardInterrupt:  # what was said so far stays part of the conversation
            print(" [stopped]", end="")
        except (ChatError, httpx.HTTPError) as error:
            self.messages.pop()
            print(f"error: {error or type(error).__name__}", file=sys.stderr)
            return False
        print()
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        return True

    def pieces(self) -> Iterator[str]:
        """The answer's text as it is streamed. Raises ChatError, httpx.HTTPError."""
        given = {name: value for name, value in self.options.items() if value is not None}
        body = {"messages": self.messages, "stream": True, **given}
        with self.client.stream("POST", self.url, json=body) as response:
            if response.status_code != 200:
                raise ChatError(error_message(response.read(), response.status_code))
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data == line or data == "[DONE]":  # blank lines, comments, the end
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise ChatError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content") or ""


def error_message(body: bytes, status: int) -> str:
    """The message of an error body, or the status if it is not one of ours."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status}"
