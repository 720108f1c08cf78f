"""The terminal chat in a real terminal (a pty) and in a pipe, against a real server around the scripted model."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from live_server import LiveServer, live_server

from decoding_server.terminal_chat import ChatError, TerminalChat, cost_line, events, operations, read_chunk, shown
from decoding_server.terminal_decoding import ChoiceError, DecodingChoice

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TERM": "dumb", "COLUMNS": "300"}
WAIT_SECONDS = 60
"""For a machine that is busy; nothing here measures time."""
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server({"presets": {"careful": {"sampler": {"type": "min_p", "p": 0.1}}}}) as live:
        yield live


class Terminal:
    """A chat in a terminal of its own. said: everything on its screen that was not looked at yet."""

    def __init__(self, url: str, *flags: str) -> None:
        self.side, other = pty.openpty()
        command = [sys.executable, "-m", "decoding_server", "chat", "--url", url, *flags]
        # A shell's background job ignores SIGINT, and so would its children: a terminal's program doesn't.
        ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                command,
                stdin=other,
                stdout=other,
                stderr=other,
                env=ENVIRONMENT,
                start_new_session=True,
                close_fds=True,
            )
        finally:
            signal.signal(signal.SIGINT, ignored)
        os.close(other)
        self.said = ""
        self.until(r"> $")

    def type(self, line: str) -> None:
        os.write(self.side, line.encode() + b"\n")

    def interrupt(self) -> None:
        """What a terminal does for Ctrl-C."""
        os.killpg(self.process.pid, 2)

    def until(self, pattern: str) -> str:
        """What was shown up to the first match, which is taken off the screen."""
        end = time.monotonic() + WAIT_SECONDS
        while not (match := re.search(pattern, self.said)):
            assert time.monotonic() < end, f"{pattern!r} is not in {self.said!r}"
            if select.select([self.side], [], [], 1)[0]:
                text = os.read(self.side, 65536).decode(errors="replace")
                self.said = ANSI.sub("", self.said + text.replace("\r", ""))
        before, self.said = self.said[: match.end()], self.said[match.end() :]
        return before

    def ask(self, line: str) -> str:
        """Types a line, and gives what is shown until the next prompt, without the line's own echo."""
        self.type(line)
        self.until(re.escape(line) + r"\n")
        return self.until(r"(?:^|\n)> $").removesuffix("> ")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.side)


@pytest.fixture
def terminal(server: LiveServer) -> Iterator[Terminal]:
    one = Terminal(server.url)
    yield one
    one.close()


def test_an_answer_is_followed_by_its_cost(terminal: Terminal) -> None:
    answer, cost = terminal.ask("hello").splitlines()
    assert answer == "hello"
    assert re.fullmatch(r"\[6 tokens · \d+ computed, \d+ cached · \d+ passes · \S+ [MG]FLOP · \d+\.\d s\]", cost)


def test_strategies_are_switched_between_turns(terminal: Terminal) -> None:
    assert terminal.ask('/strategy majority {"samples": 3}') == "search majority: samples 3\n"
    assert "· 3 nodes ·" in terminal.ask("hello")
    assert terminal.ask("/strategy dry") == "search majority: samples 3\npenalty dry\n"
    assert terminal.ask("/strategy careful") == "sampler min_p: p 0.1\n"
    assert "nodes" not in terminal.ask("hello")
    assert terminal.ask("/strategy off") == "plain decoding, as the server is configured\n"
    listed = terminal.ask("/strategy")
    assert re.search(r"^sampler: bregman, ", listed, re.MULTILINE)
    assert "\npreset: careful\n" in listed


def test_a_budget_holds_and_is_shown(terminal: Terminal) -> None:
    assert terminal.ask("/budget output_tokens 3") == "budget: output_tokens 3\n"
    answer, cost = terminal.ask("hello").splitlines()
    assert answer == "hel"
    assert cost.endswith("· budget output_tokens 100%, which ended it]")
    assert terminal.ask("/budget off") == "plain decoding, as the server is configured\n"
    assert terminal.ask("hello").startswith("hello\n")


def test_mistakes_are_said_and_change_nothing(terminal: Terminal) -> None:
    assert terminal.ask("/strategy nonsense").startswith("error: 'nonsense' is unknown; there are: auto, ")
    assert terminal.ask("/strategy top_k {k: 1}").startswith("error: parameters must be a JSON object: ")
    assert terminal.ask("/budget tokens 3").startswith("error: say a unit and a limit, or off; units are: forward_")
    assert terminal.ask("/budget seconds soon") == "error: 'soon' is no limit in seconds\n"
    assert terminal.ask("/nonsense") == "error: there is no command /nonsense; /help lists them\n"
    assert terminal.ask("hello").startswith("hello\n")


def test_a_refusal_names_the_field_and_the_turn_is_forgotten(terminal: Terminal) -> None:
    terminal.ask('/strategy top_k {"k": 0}')
    assert terminal.ask("hello") == "error: 'decoding.sampler.k': input should be greater than or equal to 1\n"
    assert terminal.ask("/history") == ""
    terminal.ask("/strategy off")
    terminal.ask("good day")
    assert terminal.ask("/history") == "user: good day\nassistant: good day\n"
    terminal.ask("/reset")
    assert terminal.ask("/history") == ""


def test_help_names_every_command(terminal: Terminal) -> None:
    text = terminal.ask("/help")
    for name in ("strategy", "budget", "history", "reset", "help", "quit"):
        assert f"/{name}" in text
    assert terminal.ask("//help").startswith("/help\n")
    page = (ROOT / "docs/chat.md").read_text(encoding="utf-8")
    for name in re.findall(r"^/(\w+)", text, re.MULTILINE):
        assert f"`/{name}" in page


def test_ctrl_c_cancels_the_answer_at_the_server(terminal: Terminal, server: LiveServer) -> None:
    terminal.type("~")
    terminal.until("zzz")  # it is streamed: it would never end
    assert server.runtime.status().running == 1
    terminal.interrupt()
    terminal.until(r" \[stopped\]\n> $")
    for _ in range(200):
        if server.runtime.status().running == 0:
            break
        time.sleep(0.05)
    assert server.runtime.status().running == 0
    assert re.fullmatch(r"user: ~\nassistant: z{3,}\n", terminal.ask("/history"))
    assert terminal.ask("hello").startswith("hello\n")


def test_what_a_model_writes_does_not_reach_the_terminal_as_a_command(terminal: Terminal) -> None:
    os.write(terminal.side, b"a\x16\x1b]0;b\n")  # Ctrl-V: what follows is no key
    assert terminal.until(r"\na\ufffd]0;b\n").count("\x1b") == 0
    terminal.until(r"> $")


def test_it_ends_with_ctrl_d_and_with_quit(server: LiveServer) -> None:
    for line in (b"/quit\n", b"\x04"):
        terminal = Terminal(server.url)
        os.write(terminal.side, line)
        assert terminal.process.wait(timeout=WAIT_SECONDS) == 0
        terminal.close()


def chat(server: "LiveServer | OtherServer", text: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "decoding_server", "chat", "--url", server.url, *flags]
    return subprocess.run(command, input=text, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_SECONDS)


def test_a_pipe_gets_the_answers_alone(server: LiveServer) -> None:
    said = chat(server, "/strategy ngram\n/budget output_tokens 3\nhello\n/history\n/help\nhello\n")
    assert (said.returncode, said.stdout, said.stderr) == (0, "hel\nhel\n\n", "")


def test_a_pipe_ends_with_the_first_failure(server: LiveServer) -> None:
    said = chat(server, "/strategy nonsense\nhello\n")
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith("error: 'nonsense' is unknown")


@pytest.mark.parametrize(
    ("decoding", "fault"),
    [
        ("nonsense", "'nonsense' is unknown"),
        ("{", "--decoding is no JSON"),
        ('{"budget": 3}', "decoding must be a name"),
    ],
)
def test_a_decoding_to_begin_with_that_is_wrong_ends_it(server: LiveServer, decoding: str, fault: str) -> None:
    said = chat(server, "hello\n", "--decoding", decoding)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith(f"error: {fault}")


def test_a_decoding_to_begin_with(server: LiveServer) -> None:
    for decoding in ('{"budget": {"output_tokens": 2}}', '{"sampler": "min_p", "budget": {"output_tokens": 2}}'):
        said = chat(server, "hello\n", "--decoding", decoding)
        if "sampler" in decoding:
            assert said.stderr.startswith("error: 'decoding.sampler.p': field required"), said.stderr
        else:
            assert said.stdout == "he\n\n"


def test_an_unreachable_server_is_one_line() -> None:
    command = [sys.executable, "-m", "decoding_server", "chat", "--url", "http://127.0.0.1:9"]
    said = subprocess.run(command, input="hello\n", env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert said.returncode == 1
    assert said.stderr.startswith("error: no server at http://127.0.0.1:9/v1: ")
    assert said.stderr.count("\n") == 1


# Servers that are none, or not ours

HTML = b"<!doctype html><p>Welcome to the portal"


class OtherServer(ThreadingHTTPServer):
    """Answers GET with `strategies` and POST with `reply`, both with status 200. hangs: GET is never answered."""

    daemon_threads = True

    def __init__(self, reply: bytes = b"", strategies: bytes = HTML, hangs: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), OtherHandler)
        self.reply, self.strategies, self.hangs = reply, strategies, hangs
        self.asked = threading.Event()
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class OtherHandler(BaseHTTPRequestHandler):
    server: OtherServer

    def do_GET(self) -> None:
        self.server.asked.set()
        if self.server.hangs:
            self.server.ended.wait(WAIT_SECONDS)
        self.answer(self.server.strategies)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(self.server.reply)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)  # HTTP/1.0: the end of the connection is that of the body

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


NO_CHUNK = "error: the server sent what is no chunk of an answer: "


@pytest.mark.parametrize(
    ("reply", "said", "fault"),
    [
        (HTML, "", "error: the server at URL/v1 sent no stream of events\n"),
        (b"", "", "error: the server at URL/v1 sent no stream of events\n"),
        (chunk("half an ans"), "half an ans\n", "error: the connection ended before the answer did\n"),
        (chunk("half") + b"data: {\n\n", "half\n", NO_CHUNK + "{\n"),
        (b"data: []\n\n", "", NO_CHUNK + "[]\n"),
        (b'data: {"id": 1}\n\n', "", NO_CHUNK + '{"id": 1}\n'),
        (b'data: {"choices": [{"delta": {"content": 3}}]}\n\n', "", NO_CHUNK + '{"choices": [{"delta": {"con'),
        (b"data: \xff\n\n", "", NO_CHUNK + "\ufffd\n"),
        (b'data: {"error": {"message": "it\\nbroke"}}\n\n', "", "error: it broke\n"),
        (b'data: {"error": "it broke"}\n\n', "", "error: it broke\n"),
    ],
    ids=["html", "nothing", "cut", "no json", "a list", "no choices", "a number", "no utf-8", "error", "error text"],
)
def test_what_is_no_answer_is_one_line_and_a_failure(reply: bytes, said: str, fault: str) -> None:
    with OtherServer(reply) as other:
        found = chat(other, "hello\nhello\n")
        assert (found.returncode, found.stdout) == (1, said)
        assert found.stderr.startswith(fault.replace("URL", other.url))
        assert found.stderr.count("\n") == 1


def test_a_stream_of_another_server_is_an_answer() -> None:
    """Without a space after the colon, with carriage returns, without costs; half a character is none."""
    strange = {"choices": [{"delta": {"content": "l\u2028o\ud83d"}}], "usage": {"total": 3}, "error": None}
    text = json.dumps(strange).replace("\\u2028", "\u2028")
    reply = b": hello\r\n\r\n" + chunk("hel") + f"data:{text}\r\n\r\ndata:[DONE]\r\n\r\n".encode()
    with OtherServer(reply) as other:
        found = chat(other, "hello\nhello\n")
        assert (found.returncode, found.stdout, found.stderr) == (0, "hell\u2028o\ufffd\n" * 2 + "\n", "")
        terminal = Terminal(other.url)
        assert terminal.ask("hello").endswith(
            "\nnote: the server tells the cost in a form that this chat doesn't know\n"
        )
        terminal.close()


@pytest.mark.parametrize(
    "strategies", [HTML, b"[]", b'{"data": []}', b'{"data": [{}], "presets": {}}', b'{"data": [], "presets": 3}']
)
def test_a_server_that_lists_no_strategies_is_told_of_in_one_line(strategies: bytes) -> None:
    with OtherServer(strategies=strategies) as other:
        for line, flags in (("/strategy phi\n", ()), ("hello\n", ("--decoding", "phi"))):
            found = chat(other, line, *flags)
            assert (found.returncode, found.stdout) == (1, "")
            assert found.stderr == (
                f"error: the server at {other.url}/v1 doesn't list its strategies as this chat knows it\n"
            )


def test_ctrl_c_ends_a_command_and_not_the_chat() -> None:
    with OtherServer(chunk("well") + b"data: [DONE]\n\n", hangs=True) as other:
        terminal = Terminal(other.url)
        terminal.type("/strategy phi")
        assert other.asked.wait(WAIT_SECONDS)
        terminal.interrupt()
        terminal.until(r"error: stopped\n> $")
        assert terminal.ask("hello") == "well\n"
        terminal.close()


def test_an_answer_that_is_stopped_in_a_pipe_is_a_failure(server: LiveServer) -> None:
    command = [sys.executable, "-m", "decoding_server", "chat", "--url", server.url]
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
        )
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"~\nhello\n")
    process.stdin.flush()
    assert process.stdout.read(2) == b"zz"
    process.send_signal(signal.SIGINT)
    said, fault = process.communicate(timeout=WAIT_SECONDS)
    assert re.fullmatch(rb"z*\n", said)
    assert (process.returncode, fault) == (1, b"error: stopped\n")


def test_a_reader_that_leaves_ends_the_chat_without_a_word(server: LiveServer) -> None:
    command = [sys.executable, "-m", "decoding_server", "chat", "--url", server.url]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(b"~\n")
    process.stdin.flush()
    assert process.stdout.read(2) == b"zz"
    process.stdout.close()
    assert process.wait(WAIT_SECONDS) == 1
    assert process.stderr.read() == b""
    process.stdin.close()
    process.stderr.close()


def test_what_is_no_text_of_the_locale_is_replaced(server: LiveServer) -> None:
    command = [sys.executable, "-m", "decoding_server", "chat", "--url", server.url]
    for encoding, line, said in (("utf-8", b"a\xffb\n", "a\ufffdb\n\n".encode()), ("ascii", b"a\xffb\n", b"a?b\n\n")):
        environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
        found = subprocess.run(command, input=line, env=environment, capture_output=True, timeout=WAIT_SECONDS)
        assert (found.returncode, found.stdout, found.stderr) == (0, said, b"")


@pytest.mark.parametrize(("url", "flags"), [("http://[::1", ()), ("", ()), (None, ("--api-key", "k\u00e9\ny"))])
def test_an_address_or_a_key_that_can_not_be_is_one_line(
    server: LiveServer, url: str | None, flags: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "decoding_server", "chat", "--url", server.url if url is None else url, *flags]
    found = subprocess.run(command, input="hello\n", env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1


# What is decided without a terminal


def test_lines_end_where_the_stream_says() -> None:
    text = 'data: {"a": "\u2028\u0085"}\n\n: ping\ndata: b\r\n'.encode()
    expected = ['{"a": "\u2028\u0085"}'.encode(), b"b"]
    for size in (1, 7, 1000):
        pieces = (text[start : start + size] for start in range(0, len(text), size))
        assert list(events(pieces)) == expected


def test_a_chunk_may_tell_nothing() -> None:
    empty = read_chunk(b'{"choices": [], "usage": null, "warnings": null}')
    assert (empty.text, empty.usage, empty.warnings) == ("", {}, [])


class Breaking(TerminalChat):
    """Its server fails in the middle of an answer."""

    def pieces(self) -> Generator[str, None, None]:
        yield "half an ans"
        raise ChatError("the engine died")


def test_a_failure_in_the_middle_begins_a_line_and_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Breaking(url="http://127.0.0.1:9")
    assert not broken.answer("hello")
    assert capsys.readouterr() == ("half an ans\n", "error: the engine died\n")
    assert broken.messages == []


def test_a_models_text_moves_no_cursor() -> None:
    assert shown("a\x1b[2Jb\x07\x9bc\td\ne") == "a\ufffd[2Jb\ufffd\ufffdc\td\ne"


def test_choices_add_up_by_slot() -> None:
    choice = DecodingChoice(
        {"top_k": "sampler", "dry": "penalty"}, {"mild": "dry", "whole": {"strategy": "top_k", "k": 3}}
    )
    assert choice.body() is None
    choice.choose("top_k", '{"k": 5}')
    choice.choose("dry")
    choice.limit(["seconds", "2.5"])
    assert choice.body() == {
        "sampler": {"type": "top_k", "k": 5},
        "penalty": {"type": "dry"},
        "budget": {"seconds": 2.5},
    }
    choice.choose("off")
    choice.choose("whole")
    choice.limit(["off"])
    assert choice.body() == {"sampler": {"type": "top_k", "k": 3}}
    for words in (["seconds", "0"], ["seconds", "inf"], ["flops", "nan"], ["output_tokens", "2.5"], ["seconds"], []):
        with pytest.raises(ChoiceError):
            choice.limit(words)
    with pytest.raises(ChoiceError, match="takes no parameters"):
        choice.choose("mild", '{"a": 1}')


def test_a_preset_may_have_the_name_of_a_strategy_and_never_stands_for_itself() -> None:
    presets = {"top_k": {"strategy": "top_k", "k": 3}, "ring": "back", "back": "ring"}
    choice = DecodingChoice({"top_k": "sampler"}, presets)
    choice.choose("top_k")
    assert choice.body() == {"sampler": {"type": "top_k", "k": 3}}
    with pytest.raises(ChoiceError, match="'ring' is unknown"):
        choice.choose("ring")


def test_a_budget_in_a_decoding_has_numbers() -> None:
    choice = DecodingChoice({}, {})
    choice.take({"budget": {"seconds": None, "output_tokens": 3}})
    assert choice.lines() == ["budget: output_tokens 3"]
    for limit in ("soon", True, 0, -1, [3]):
        with pytest.raises(ChoiceError, match="is no limit"):
            choice.take({"budget": {"seconds": limit}})
    with pytest.raises(ChoiceError, match="is no limit"):
        choice.take({"budget": {"tokens": 3}})


SPEND = {
    **dict.fromkeys(("target_tokens", "draft_tokens", "cached_tokens", "drafted_tokens", "accepted_tokens"), 0),
    **dict.fromkeys(("rounds", "scorer_tokens", "forward_passes"), 0),
    "flops": 0.0,
    "seconds": 0.0,
    "budget_exhausted": None,
}


def test_the_cost_of_drafts_and_reward_models_is_in_the_line() -> None:
    counts = {"target_tokens": 10, "draft_tokens": 20, "scorer_tokens": 30, "rounds": 2, "drafted_tokens": 6}
    spend = {**SPEND, **counts, "accepted_tokens": 3, "flops": 2.5e12, "seconds": 1.24}
    line = cost_line({"completion_tokens": 4, "decoding": spend}, {"forward_tokens": 120})
    assert line == (
        "[4 tokens · 10 computed + 20 by a draft, 0 cached · 3 of 6 drafts accepted · 0 passes · 2.5 TFLOP · 1.2 s · "
        "budget forward_tokens 50%]"
    )
    assert cost_line({"completion_tokens": 4}, {}) == "[4 tokens]"


@pytest.mark.parametrize(("flops", "text"), [(1.5e6, "1.5 MFLOP"), (2e9, "2 GFLOP"), (3.21e15, "3.21 PFLOP")])
def test_operations_are_readable(flops: float, text: str) -> None:
    assert operations(flops) == text
