"""The log of requests: one line of JSON each, whatever a request contains."""

import io
import json
import logging
import math
from dataclasses import asdict, dataclass

import pytest

from decoding_server.observability import Observability, RequestObserver
from decoding_server.request_log import configure_request_log
from strategies.budget import Budget, Meter, Spend
from strategies.errors import QueueFull, RequestFailed, RuntimeUnavailable
from strategies.runtime import Delta, RuntimeStatus

STATUS = RuntimeStatus("ready", "", 0, 0, 10, 0, 0, 0)


@dataclass
class AdmittedMeter(Meter):
    admitted: float | None = None


class Lines:
    """What has been written, parsed; every line must be one JSON object of printable ASCII."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def entries(self):
        text = self.stream.getvalue()
        assert text.isascii()
        assert text.replace("\n", "").isprintable()
        return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]

    @property
    def entry(self):
        (entry,) = self.entries
        return entry


@pytest.fixture
def lines():
    logger = logging.getLogger("decoding_server.requests")
    before = logger.handlers[:], logger.propagate, logger.level
    written = Lines()
    configure_request_log(written.stream)
    logger.setLevel(logging.INFO)
    yield written
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


def begin(request_id="req_1", **options) -> RequestObserver:
    seen = Observability("tiny", lambda: STATUS, strategies=("phi",), **options)
    return seen.begin(request_id, "completions", {})


def run(observer, meter=None, text="hi", model="tiny", prompts=("what",)):
    observer.described(model, "phi", stream=True, n=2)
    observer.submitted(meter or AdmittedMeter(), 5, 2, prompts)
    for choice, reason in enumerate(("stop", "length")):
        observer.delta(choice, Delta(text=text, tokens=[1, 2]))
        observer.delta(choice, Delta(text="!", finish_reason=reason))
    return observer


def test_a_finished_request(lines):
    meter = AdmittedMeter(
        Budget(flops=1e9, seconds=2.0),
        Spend(target_tokens=9, cached_tokens=3, output_tokens=4, forward_passes=2, flops=5e8),
        exhausted="flops",
    )
    observer = begin()
    meter.admitted = meter.started + 0.5
    run(observer, meter).finished()
    entry = lines.entry
    seconds = entry.pop("seconds")
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "id": "req_1",
        "endpoint": "completions",
        "model": "tiny",
        "strategy": "phi",
        "stream": True,
        "n": 2,
        "status": 200,
        "outcome": "finished",
        "client_disconnected": False,
        "finish_reasons": ["stop", "length"],
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "budget": {"flops": 1e9, "seconds": 2.0},
        "budget_exhausted": "flops",
        "spent": asdict(meter.spend),
    }
    assert set(seconds) == {"total", "to_first_token", "queue", "prefill", "decode"}
    assert seconds["queue"] == pytest.approx(0.5, abs=0.1)
    assert seconds["total"] >= seconds["to_first_token"] >= 0


def test_a_request_that_was_refused(lines):
    observer = begin()
    observer.close(400, client_gone=False)
    entry = lines.entry
    assert (entry["status"], entry["outcome"], entry["model"], entry["strategy"]) == (400, "failed", None, None)
    assert entry["spent"] is None
    assert entry["budget"] is None
    assert set(entry["seconds"]) == {"total"}


def test_a_client_that_went_while_waiting(lines):
    observer = begin()
    observer.described("tiny", "phi", n=3)
    observer.submitted(AdmittedMeter(), 5, 3)
    observer.close(200, client_gone=True)
    entry = lines.entry
    assert (entry["status"], entry["outcome"], entry["client_disconnected"]) == (499, "cancelled", True)
    assert entry["finish_reasons"] == [None] * 3
    assert set(entry["seconds"]) == {"total", "queue"}


@pytest.mark.parametrize(
    ("status", "error", "logged", "level"),
    [
        (200, RequestFailed("the prompt was SECRET"), 500, "ERROR"),
        (200, RuntimeUnavailable("the engine is down"), 503, "ERROR"),
        (200, None, 500, "ERROR"),  # the reply ended early, and nobody said why
        (500, RequestFailed("the prompt was SECRET"), 500, "ERROR"),
        (None, ValueError("SECRET"), 500, "ERROR"),
        (429, QueueFull("full"), 429, "INFO"),
    ],
)
def test_failures(lines, caplog, status, error, logged, level):
    logging.getLogger("decoding_server.requests").addHandler(caplog.handler)
    observer = begin()
    observer.described("tiny", "phi")
    observer.submitted(AdmittedMeter(), 5, 1, ["SECRET"])
    observer.delta(0, Delta(text="SECRET", tokens=[1]))
    if error is not None:
        observer.raised(error)
    observer.close(status, client_gone=False)
    entry = lines.entry
    assert (entry["status"], entry["outcome"], entry["client_disconnected"]) == (logged, "failed", False)
    assert entry.get("error") == (None if error is None else type(error).__name__)
    assert [record.levelname for record in caplog.records] == [level]
    assert "SECRET" not in lines.stream.getvalue()


ODD = 'a\nb\r\x00\u2028\x1b[31m\ud800 "quoted" \\ \U0001f600'


def test_text_only_when_asked_for(lines):
    run(begin(), text=ODD, prompts=[ODD]).finished()
    assert "quoted" not in lines.stream.getvalue()
    run(begin(log_prompts=True), text=ODD, prompts=[ODD]).finished()
    entry = lines.entries[1]
    assert entry["prompts"] == [ODD]
    assert entry["answers"] == [ODD + "!"] * 2


def test_switched_off_nothing_is_written_or_kept(lines):
    observer = run(begin(log_requests=False, log_prompts=True))
    observer.finished()
    assert lines.entries == []
    assert (observer.record.prompts, observer.record.answers) == ((), [])


def test_odd_names_and_numbers(lines):
    spend = Spend(flops=math.nan, target_tokens=2**70)
    run(begin(ODD), AdmittedMeter(Budget(flops=math.inf), spend), model="m" * 10_000).finished()
    entry = lines.entry
    assert entry["id"] == ODD
    assert entry["model"] == "m" * 256
    assert entry["spent"]["flops"] is None
    assert entry["spent"]["target_tokens"] == 2**70
    assert entry["budget"] == {"flops": None}


def test_phases_of_a_strategy_are_summed(lines):
    observer = run(begin())
    for start in range(1000):
        observer.phase("verify", start, start + 0.25, tokens=4)
    observer.finished()
    assert lines.entry["seconds"]["verify"] == 250
    assert observer.record.phases == []  # nobody traces


def test_one_line_per_request_whatever_comes_after(lines):
    observer = run(begin())
    observer.close(200, client_gone=False)
    observer.close(500, client_gone=True)
    observer.cancelled()
    assert lines.entry["outcome"] == "finished"


def test_what_cannot_be_recorded_is_reported_and_harms_nobody(lines, caplog):
    observer = run(begin())
    observer.record.started_ns = 10**40  # no such date
    with caplog.at_level(logging.ERROR, "decoding_server"):
        observer.finished()
    assert lines.entries == []
    assert "req_1 could not be recorded by RequestLog" in caplog.text
    run(begin("req_2")).finished()
    assert lines.entry["id"] == "req_2"


def test_a_quiet_log_level_shows_failures_only(lines):
    logging.getLogger("decoding_server.requests").setLevel(logging.WARNING)
    run(begin("fine")).finished()
    run(begin("bad")).failed(500)
    assert lines.entry["id"] == "bad"
