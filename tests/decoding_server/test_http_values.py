"""Value functions behind a real server: the operator's verifier over HTTP, calibration files, what is listed."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from scripted_server import make_runtime

from decoding_server.app import create_app
from decoding_server.config import ConfigError, load_config
from decoding_server.verifier import VerifierError, checked
from strategies.errors import ModelLoadError
from strategies.scoring.calibration import Calibrated, Platt
from strategies.search.best_of_n import BestOfN

COMPLETIONS = "/v1/completions"


class Verifier(ThreadingHTTPServer):
    """Answers each call with the next of `replies`, then with `values_of`; keeps the bodies."""

    daemon_threads = True

    def __init__(self, values_of=None, replies=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.values_of = values_of or (lambda items: [0.5] * len(items))
        self.replies = list(replies)
        self.bodies = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/value"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        status, content = 200, {"values": self.server.values_of(body["items"])}
        if self.server.replies:
            status, content = self.server.replies.pop(0)
        if content == "slow":
            time.sleep(1.0)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        if status == 302:
            self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def verifying(**options) -> Iterator[Verifier]:
    verifier = Verifier(**options)
    thread = threading.Thread(target=verifier.serve_forever, daemon=True)
    thread.start()
    try:
        yield verifier
    finally:
        verifier.shutdown()
        thread.join()
        verifier.server_close()


def search(server, prompt="?|", **fields):
    decoding = {"search": {"type": "best-of-n", "samples": 3, "value": "http", "trace": "full"}}
    body = {"prompt": prompt, "max_tokens": 6, "seed": 5, "decoding": decoding, **fields}
    return server.post(COMPLETIONS, body)


def tree(reply):
    return reply.json()["trace"][0]["tree"]


def test_the_verifier_chooses(serve):
    """The answer is the one it values most; the trace has its values; it is told the question and the steps."""
    with verifying(values_of=lambda items: [(i == 1) * 0.5 + 0.25 for i in range(len(items))]) as verifier:
        server = serve({"verifier_url": verifier.url})
        reply = search(server)
        assert reply.status_code == 200, reply.text
        nodes = tree(reply)
        assert [node["value"] for node in nodes] == [0.25, 0.75, 0.25]
        assert reply.json()["choices"][0]["text"] == nodes[1]["text"]
        (body,) = verifier.bodies
        assert body["version"] == 1
        assert body["items"] == [
            {"id": i, "question": "?|", "steps": [node["text"]], "text": node["text"], "complete": True}
            for i, node in enumerate(nodes)
        ]


def test_the_documentation_shows_what_a_verifier_is_told(serve):
    page = (Path(__file__).parents[2] / "docs/strategies/values.md").read_text(encoding="utf-8")
    shown = json.loads(page.partition("The server sends this")[2].partition("```json\n")[2].partition("```")[0])
    with verifying() as verifier:
        assert search(serve({"verifier_url": verifier.url})).status_code == 200
        told = verifier.bodies[0]
    assert set(shown) == set(told)
    assert {name: type(value) for name, value in shown["items"][0].items()} == {
        name: type(value) for name, value in told["items"][0].items()
    }


def test_the_question_of_a_chat_is_its_last_user_turn(serve):
    with verifying() as verifier:
        server = serve({"verifier_url": verifier.url})
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "two + two"}]
        decoding = {"search": {"type": "best-of-n", "samples": 2, "value": "http"}}
        reply = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4, "decoding": decoding})
        assert reply.status_code == 200, reply.text
        assert {item["question"] for item in verifier.bodies[0]["items"]} == {"two + two"}


FAULTS = [
    (500, {"values": [0.1, 0.2, 0.3]}),
    (302, {"values": [0.1, 0.2, 0.3]}),
    (200, "no JSON"),
    (200, {"values": [0.1, 0.2]}),
    (200, {"values": [0.1, 0.2, 1.5]}),
    (200, "slow"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_one_failure_is_tried_again_two_are_an_error(serve, fault):
    with verifying(replies=[fault]) as verifier:
        server = serve({"verifier_url": verifier.url, "verifier_timeout": 0.4})
        assert search(server).status_code == 200
        assert len(verifier.bodies) == 2
        verifier.replies = [fault, fault]
        reply = search(server)
        assert reply.status_code == 500
        assert "verifier" in reply.json()["error"]["message"]
        assert len(verifier.bodies) == 4
        assert search(server).status_code == 200, "the next search asks again"


def test_a_neutral_policy_goes_on(serve):
    with verifying(replies=[FAULTS[0]] * 2) as verifier:
        server = serve({"verifier_url": verifier.url, "verifier_failure": "neutral"})
        reply = search(server)
        assert reply.status_code == 200
        assert [node["value"] for node in tree(reply)] == [0.5] * 3


def test_nobody_listens(serve):
    with verifying() as verifier:
        url = verifier.url
    reply = search(serve({"verifier_url": url}))
    assert (reply.status_code, reply.headers["x-should-retry"]) == (500, "false")


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"values": 1},
        {"values": ["1"]},
        {"values": [True]},
        {"values": [float("nan")]},
        {"values": [-0.1]},
    ],
)
def test_values_are_checked(content):
    with pytest.raises(VerifierError):
        checked(content, 1)


@pytest.mark.parametrize("field", ["verifier_url", "url", "verifier"])
def test_a_request_can_not_name_a_verifier(server, field):
    decoding = {"search": {"type": "best-of-n", "value": "http", field: "http://127.0.0.1:9/"}}
    reply = server.post(COMPLETIONS, {"prompt": "?|", "decoding": decoding})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, f"decoding.search.{field}")
    with pytest.raises(ConfigError, match="--verifier-url: must be an http"):
        load_config({"verifier_url": "file:///etc/passwd"})


def calibration(tmp_path, **changes):
    path = tmp_path / "calibration.json"
    content = {"kind": "http", "model": "scripted", "method": "platt", "a": 2.0, "b": 1.0, **changes}
    path.write_text(json.dumps(content))
    return str(path)


def test_a_calibration_file_makes_values_probabilities(serve, tmp_path):
    with verifying(values_of=lambda items: [0.0, 0.5, 0.75]) as verifier:
        server = serve({"verifier_url": verifier.url, "value_calibration": [calibration(tmp_path)]})
        nodes = tree(search(server))
        # sigmoid(2 logit(v) + 1); v = 0 is taken for 1e-6
        assert nodes[0]["value"] == pytest.approx(0.0, abs=1e-9)
        assert [node["value"] for node in nodes[1:]] == pytest.approx([0.7310585786, 0.9607297], abs=1e-6)
        listed = {value["id"]: value for value in server.get("/v1/strategies").json()["values"]}
        assert listed == {
            "self-eval": {"id": "self-eval", "calibrated": False, "automatic": True},
            "http": {"id": "http", "calibrated": True, "automatic": True},
        }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "prm"}, "'prm', which is not loaded"),
        ({"model": "another"}, "fitted with the model 'another'"),
        ({"method": "isotonic"}, "platt"),
        ({"a": 0}, "above 0"),
        ({"b": "1"}, "finite"),
        ({"kind": 3}, "'kind'"),
    ],
)
def test_an_unfit_calibration_file_stops_the_start(tmp_path, changes, words):
    flags = {"verifier_url": "http://127.0.0.1:9/", "value_calibration": [calibration(tmp_path, **changes)]}
    runtime = make_runtime()
    try:
        with pytest.raises(ModelLoadError, match=words):
            create_app(runtime, load_config(flags).config)
    finally:
        runtime.close()


def test_auto_takes_the_first_that_may_be_taken():
    class Value:
        calibrated = False

        def __init__(self, automatic):
            self.automatic = automatic

        async def values(self, context, nodes):
            return [0.5] * len(nodes)

    yes, no = Value(True), Value(False)
    auto, named = BestOfN(), BestOfN(value="head")
    assert auto.value_kind({"self-eval": yes, "http": yes, "prm": yes, "head": yes}) == "head"
    assert auto.value_kind({"self-eval": yes, "http": yes, "prm": yes, "head": no}) == "prm"
    assert auto.value_kind({"self-eval": yes, "http": yes, "head": Calibrated(no, Platt())}) == "self-eval"
    assert named.value_kind({"self-eval": yes, "head": no}) == "head"
