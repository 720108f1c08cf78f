"""Prometheus metrics under vLLM's names with our prefix, so that its dashboards need one replacement.

Two sources: the runtime's status, read at each scrape, and the requests, observed as they run. The registry belongs to
one application; nothing here is global. Label values come from the configuration and the strategy registry, never
from a request, so that clients can't create series.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from decoding_server.request_record import RequestRecord
from strategies.runtime import RuntimeStatus
from strategies.sandbox.outcome import Outcome, Result

PREFIX = "decoding:"
STANDARD = "standard"
"""The strategy of a request that names none."""
OTHER = "other"
"""The label of a strategy that is not registered, and of a request that failed before its strategy was known."""

STATES = ("loading", "ready", "draining", "dead")
BUDGET_UNITS = ("forward_tokens", "output_tokens", "flops", "seconds")
FINISHED_REASONS = ("stop", "length", "tool_calls", "abort")

SECONDS_TO_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
SECONDS_BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
SECONDS_OF_A_REQUEST = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
SECONDS_OF_A_PHASE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 1, 1.5, 2.5, 5, 10, 20, 30, 60, 120, 240, 480, 960)
SECONDS_OF_A_PROGRAM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
PROGRAMS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 64, 128)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


class RuntimeCollector(Collector):
    """The runtime's status as metrics, as of the last `refresh`: a runtime is asked on the event loop, whereas the text
    is written in a thread."""

    def __init__(self, model_name: str, status: Callable[[], RuntimeStatus], config: Mapping[str, str]) -> None:
        self.model_name = model_name
        self.config = config
        self._ask = status
        self._status = status()

    def refresh(self) -> None:
        self._status = self._ask()

    def collect(self) -> Iterable[Metric]:
        status = self._status
        yield self._gauge("num_requests_running", "Sequences in the running batch.", status.running)
        yield self._gauge("num_requests_waiting", "Sequences that wait for admission.", status.waiting)
        in_use = status.kv_slots_used - status.kv_slots_cached
        share = in_use / status.kv_slots if status.kv_slots else 0.0
        yield self._gauge("kv_cache_usage_perc", "KV slots that can't be evicted, as a share: 1 is full.", share)
        yield self._gauge("kv_cache_slots", "KV slots, one a token.", status.kv_slots)
        yield self._gauge("kv_cache_cached_slots", "KV slots of the prefix cache alone.", status.kv_slots_cached)
        queries, hits = status.prefix_cache_queries, status.prefix_cache_hits
        yield self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", queries)
        yield self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", hits)
        yield self._counter("num_preemptions", "Sequences set back to make room for others.", status.preemptions)
        yield self._counter("prompt_tokens", "Prompt tokens processed, cached ones included.", status.prompt_tokens)
        yield self._counter("generation_tokens", "Tokens sampled, in answers or not.", status.generation_tokens)
        yield self._iteration_tokens(status)
        yield self._state(status)
        yield self._config(status)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self.model_name], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self.model_name], value)
        return family

    def _iteration_tokens(self, status: RuntimeStatus) -> Metric:
        """A histogram, as in vLLM, though with one bucket: the engine keeps the sum and the number of steps."""
        text = "Tokens computed by each forward pass."
        family = HistogramMetricFamily(PREFIX + "iteration_tokens_total", text, labels=["model_name"])
        family.add_metric([self.model_name], [("+Inf", status.steps)], status.iteration_tokens)
        return family

    def _state(self, status: RuntimeStatus) -> Metric:
        family = GaugeMetricFamily(PREFIX + "engine_state", "1 for the engine's state.", labels=["model_name", "state"])
        for state in STATES:
            family.add_metric([self.model_name, state], float(state == status.state))
        return family

    def _config(self, status: RuntimeStatus) -> Metric:
        """Static facts; a slot is a block of one token, in vLLM's terms."""
        facts = {"block_size": "1", "num_gpu_blocks": str(status.kv_slots), **self.config}
        family = GaugeMetricFamily(PREFIX + "cache_config_info", "The KV cache.", labels=["model_name", *facts])
        family.add_metric([self.model_name, *facts.values()], 1)
        return family


class ProgramMetrics:
    """What became of the programs of searches. Implements `SandboxListener`; `searched` hears of whole searches."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        def histogram(name: str, text: str) -> Histogram:
            series = Histogram(PREFIX + name, text, ("model_name",), registry=registry, buckets=SECONDS_OF_A_PROGRAM)
            return series.labels(model_name)

        tests = Counter(
            PREFIX + "program_tests", "Tests of programs in the sandbox.", ("model_name", "outcome"), registry=registry
        )
        failures = Counter(
            PREFIX + "sandbox_failures", "Failures of the sandbox itself.", ("model_name",), registry=registry
        )
        self._tests = {outcome: tests.labels(model_name, str(outcome)) for outcome in Outcome}
        self._failures = failures.labels(model_name)
        self._seconds = histogram("program_run_seconds", "All tests of one program, the wait included.")
        self._model_name = model_name
        labels = ("model_name", "strategy")
        self._duplicates = Counter(
            PREFIX + "program_duplicates",
            "Programs that a search had evaluated before, white space and comments aside, and so did not run.",
            labels,
            registry=registry,
        )
        self._solved_at = Histogram(
            PREFIX + "programs_until_solved",
            "Programs that a search evaluated up to the first that passed all its tests; of those that found one.",
            labels,
            registry=registry,
            buckets=PROGRAMS,
        )
        self._waits = histogram("program_wait_seconds", "Until a sandbox was ready: its turn, and its start.")

    def waited(self, seconds: float) -> None:
        self._waits.observe(seconds)

    def ran(self, results: Sequence[Result], seconds: float) -> None:
        self._seconds.observe(seconds)
        for result in results:
            self._tests[result.outcome].inc()

    def failed(self) -> None:
        self._failures.inc()

    def searched(self, strategy: str, duplicates: int, solved_at: int | None) -> None:
        """A search has ended. strategy: its registered name. solved_at: see the series; None if nothing passed all."""
        self._duplicates.labels(self._model_name, strategy).inc(duplicates)
        if solved_at is not None:
            self._solved_at.labels(self._model_name, strategy).observe(solved_at)


class RequestMetrics:
    """What requests experienced and cost, by strategy."""

    def __init__(self, registry: CollectorRegistry, model_name: str, strategies: Iterable[str] = ()) -> None:
        self.registry = registry
        self.model_name = model_name
        self.names = frozenset(strategies) | {STANDARD}
        self._by_strategy: dict[str, StrategyMetrics] = {}
        histogram, counter = self._histogram, self._counter
        self.first_token = histogram("time_to_first_token_seconds", "Arrival to first token.", SECONDS_TO_FIRST_TOKEN)
        self.between_tokens = histogram(
            "inter_token_latency_seconds",
            "Time between tokens of one sequence; tokens that come together share it evenly.",
            SECONDS_BETWEEN_TOKENS,
        )
        self.latency = histogram("e2e_request_latency_seconds", "Arrival to end of the reply.", SECONDS_OF_A_REQUEST)
        self.phases = {
            phase: histogram(f"request_{phase}_time_seconds", f"Time in the phase {phase}.", SECONDS_OF_A_PHASE)
            for phase in ("queue", "prefill", "decode")
        }
        self.prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self.generation_tokens = histogram("request_generation_tokens", "Tokens of a request's answers.", TOKENS)
        self.success = counter("request_success", "Requests that were answered, or aborted.", "finished_reason")
        self.failures = counter("request_failures", "Requests that were refused or failed.", "status")
        self.flops = counter("estimated_flops_per_gpu", "Floating-point operations, by the model's formula.")
        self.forward_tokens = counter("forward_tokens", "Tokens computed by the target model.")
        self.explored_tokens = counter("explored_tokens", "Tokens generated, dead ends included.")
        self.committed_tokens = counter("committed_tokens", "Tokens that reached an answer.")
        self.exhausted = counter("budget_exhausted", "Requests that a budget ended.", "unit")
        self.rounds = counter("spec_decode_num_drafts", "Rounds of speculation: a draft and its verification.")
        self.drafted = counter("spec_decode_num_draft_tokens", "Draft tokens that were verified.")
        self.accepted = counter("spec_decode_num_accepted_tokens", "Draft tokens that were accepted.")
        self.accepted_at = counter(
            "spec_decode_num_accepted_tokens_per_pos", "Accepted draft tokens by level of the draft.", "position"
        )
        self.of(STANDARD)

    def of(self, strategy: str) -> "StrategyMetrics":
        """The series of one strategy, made on first use."""
        label = strategy if strategy in self.names else OTHER
        series = self._by_strategy.get(label)
        if series is None:
            series = self._by_strategy[label] = StrategyMetrics.label(self, label)
        return series

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(PREFIX + name, text, ("model_name", "strategy"), registry=self.registry, buckets=buckets)

    def _counter(self, name: str, text: str, *more: str) -> Counter:
        return Counter(PREFIX + name, text, ("model_name", "strategy", *more), registry=self.registry)


@dataclass(frozen=True, slots=True)
class StrategyMetrics:
    """Series with their labels set: looking them up would cost more than observing."""

    first_token: Histogram
    between_tokens: Histogram
    latency: Histogram
    phases: Mapping[str, Histogram]
    prompt_tokens: Histogram
    generation_tokens: Histogram
    success: Mapping[str, Counter]
    failures: Callable[[int], Counter]
    costs: Sequence[Counter]
    exhausted: Mapping[str, Counter]
    accepted_at: Callable[[int], Counter]

    @classmethod
    def label(cls, parent: RequestMetrics, strategy: str) -> "StrategyMetrics":
        labels = (parent.model_name, strategy)
        costs = (parent.flops, parent.forward_tokens, parent.explored_tokens, parent.committed_tokens)
        speculation = (parent.rounds, parent.drafted, parent.accepted)
        return cls(
            parent.first_token.labels(*labels),
            parent.between_tokens.labels(*labels),
            parent.latency.labels(*labels),
            {phase: histogram.labels(*labels) for phase, histogram in parent.phases.items()},
            parent.prompt_tokens.labels(*labels),
            parent.generation_tokens.labels(*labels),
            {reason: parent.success.labels(*labels, reason) for reason in FINISHED_REASONS},
            lambda status: parent.failures.labels(*labels, str(status)),
            [counter.labels(*labels) for counter in (*costs, *speculation)],
            {unit: parent.exhausted.labels(*labels, unit) for unit in BUDGET_UNITS},
            lambda level: parent.accepted_at.labels(*labels, str(level)),
        )

    def tokens(self, seconds: float, count: int) -> None:
        """`count` tokens came together, `seconds` after the one before them."""
        for _ in range(count):
            self.between_tokens.observe(seconds / count)

    def ended(self, record: RequestRecord) -> None:
        """Costs count whatever became of the request; latencies and sizes only if it was answered."""
        if record.meter is not None:
            spend, exhausted = record.meter.spend, record.meter.exhausted
            flops = spend.flops + spend.scorer_flops
            costs = (flops, spend.target_tokens, spend.output_tokens, record.completion_tokens)
            speculation = (spend.rounds, spend.drafted_tokens, spend.accepted_tokens)
            for counter, amount in zip(self.costs, (*costs, *speculation), strict=True):
                counter.inc(amount)
            for level, accepted in enumerate(spend.accepted_by_level):
                self.accepted_at(level).inc(accepted)
            if exhausted is not None:
                self.exhausted[exhausted].inc()
        if record.outcome == "failed":
            self.failures(record.status or 500).inc()
        elif record.outcome == "cancelled":
            self.success["abort"].inc()
        else:
            self._finished(record)

    def _finished(self, record: RequestRecord) -> None:
        reasons = record.finish_reasons
        reason = "length" if "length" in reasons else "tool_calls" if "tool_calls" in reasons else "stop"
        self.success[reason].inc()
        self.latency.observe(record.seconds)
        self.prompt_tokens.observe(record.prompt_tokens)
        self.generation_tokens.observe(record.completion_tokens)
        for phase in record.engine_phases():
            self.phases[phase.name].observe(phase.seconds)


class KeyMetrics:
    """What API keys use, by the names that the key file gives them; keys without one share a label."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self.model_name = model_name
        labels = ("model_name", "key")
        self.requests = Counter(
            PREFIX + "key_requests",
            "Requests of a key that were let in, or refused by its limits.",
            (*labels, "outcome"),
            registry=registry,
        )
        self.forward_tokens = Counter(
            PREFIX + "key_forward_tokens", "Tokens computed for a key's requests.", labels, registry=registry
        )
        self.reloads = Counter(
            PREFIX + "api_key_reloads", "Readings of a changed key file.", ("model_name", "outcome"), registry=registry
        )
        for outcome in ("done", "failed"):
            self.reloads.labels(model_name, outcome)

    def of(self, key: str) -> tuple[Counter, Counter, Counter]:
        """A key's requests let in, those refused, and its tokens."""
        requests = [self.requests.labels(self.model_name, key, outcome) for outcome in ("admitted", "refused")]
        return requests[0], requests[1], self.forward_tokens.labels(self.model_name, key)

    def reloaded(self, well: bool) -> None:
        self.reloads.labels(self.model_name, "done" if well else "failed").inc()


def exposition(registry: CollectorRegistry, accept: str, names: Sequence[str] = ()) -> tuple[bytes, str]:
    """The metrics as text, and its content type: OpenMetrics for a client that accepts it, else Prometheus' format.

    names: only these series. Our names are valid in both formats, so the escaping that a client may ask for has nothing
    to do; asking the library for it would turn the colon of samples, but not of their metadata, into an underscore.
    """
    source = registry.restricted_registry(names) if names else registry
    _, content_type = choose_encoder(accept)
    if content_type.startswith("application/openmetrics-text"):
        body: bytes = openmetrics.generate_latest(source, escaping=openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return body, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(source), CONTENT_TYPE_PLAIN_0_0_4
