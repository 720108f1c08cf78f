"""The torch runtime: the engine on its own thread, answering through the event loop, with a watchdog."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict

from models.request_check import check_generation
from models.torch_runtime.engine import Engine
from models.torch_runtime.sequence import Sequence as TokenSequence
from strategies.delta_queue import DeltaQueue, Item
from strategies.errors import (
    DecodingError,
    InvalidRequest,
    QueueFull,
    RequestFailed,
    RuntimeUnavailable,
)
from strategies.runtime import Generation, ModelInfo, RuntimeStatus
from strategies.text import Tokenizer

log = logging.getLogger(__name__)


class Stream(DeltaQueue):
    """The answer to one generation, fed from the engine thread. Implements `GenerationStream` and `Sink`."""

    def __init__(self, runtime: "TorchRuntime", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._runtime = runtime
        self._loop = loop
        self.sequence: TokenSequence | None = None
        self.ended = False  # set by whoever puts the last item

    def put(self, item: Item) -> None:
        """Called on the engine thread: queued for the event loop, and delivered once per engine step."""
        self.ended = isinstance(item, DecodingError) or item.finish_reason is not None
        self._runtime.outgoing.append((self, item))

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def cancel(self) -> None:
        """See `GenerationStream.cancel`. Whoever still iterates gets RequestFailed."""
        if self.sequence is not None and not self.ended and not self.sequence.cancelled:
            self.sequence.cancelled = True
            self._runtime.forget(self)
            self.deliver(RequestFailed("the generation was cancelled"))
            self._runtime.wake()


class TorchRuntime:
    """Serves one engine. Implements `Runtime`."""

    def __init__(
        self,
        engine: Engine,
        info: ModelInfo,
        tokenizer: Tokenizer,
        *,
        max_waiting: int = 1024,
        step_timeout: float = 300.0,
    ) -> None:
        """step_timeout: seconds after which a step that does not return is taken for a hang."""
        self._engine, self._info, self._tokenizer = engine, info, tokenizer
        self._max_waiting = max_waiting
        self._step_timeout = step_timeout
        self._incoming: deque[TokenSequence] = deque()
        self.outgoing: list[tuple[Stream, Item]] = []
        self._streams: set[Stream] = set()
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._closing = threading.Event()
        self._draining = False
        self._fatal: str | None = None
        self._step_started: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)
        self._thread.start()
        self._watchdog.start()

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def engine(self) -> Engine:
        """For tests and benchmarks; its state belongs to the engine thread."""
        return self._engine

    def submit(self, generations: Sequence[Generation], *, admitted: bool = False) -> list[Stream]:
        """See `Runtime.submit`."""
        if self._fatal is not None:
            raise RuntimeUnavailable(f"the engine is down: {self._fatal}")
        if (self._draining and not admitted) or self._closing.is_set():
            raise RuntimeUnavailable("the server is shutting down")
        for generation in generations:
            self._check(generation)
        waiting = len(self._engine.scheduler.waiting) + len(self._incoming)
        if waiting + len(generations) > self._max_waiting and not admitted:
            raise QueueFull(f"{waiting} sequences are waiting already (at most {self._max_waiting}); try again later")
        loop = asyncio.get_running_loop()
        streams = [Stream(self, loop) for _ in generations]
        limit = self._info.max_model_len
        for stream, generation in zip(streams, generations, strict=True):
            stream.sequence = TokenSequence(generation, self._tokenizer, self._info.eos_token_ids, stream, limit)
        with self._lock:
            if self._fatal is not None:
                raise RuntimeUnavailable(f"the engine is down: {self._fatal}")
            self._streams.update(streams)
            self._incoming.extend(s.sequence for s in streams if s.sequence is not None)
        self.wake()
        return streams

    def status(self) -> RuntimeStatus:
        """See `Runtime.status`. Numbers are a snapshot taken while the engine runs."""
        scheduler, pool = self._engine.scheduler, self._engine.pool
        state = "dead" if self._fatal is not None else "draining" if self._draining else "ready"
        return RuntimeStatus(
            state=state,  # type: ignore[arg-type]  # a conditional expression of the literals
            detail=self._fatal or "",
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(self._incoming),
            kv_slots=pool.num_slots,
            kv_slots_used=pool.num_slots - pool.num_free,
            kv_slots_cached=scheduler.cache.evictable,
            steps=self._engine.steps,
            **asdict(scheduler.totals),
        )

    def drain(self) -> None:
        self._draining = True

    def close(self) -> None:
        self._closing.set()
        self.wake()
        self._thread.join(timeout=30)
        self._die("the server was closed")
        self._watchdog.join(timeout=5)

    def wake(self) -> None:
        """Makes the engine thread look for work."""
        self._work.set()

    def forget(self, stream: Stream) -> None:
        """A cancelled stream hears nothing more."""
        with self._lock:
            self._streams.discard(stream)

    def _check(self, generation: Generation) -> None:
        """What can't be run is refused before it is queued."""
        check_generation(generation, self._info)
        speculation = generation.speculation
        if speculation is None:
            return
        self._engine.speculator.check(speculation)
        for transform in generation.sampling.transforms:
            if transform.observes:
                raise InvalidRequest(
                    f"{transform.name} adapts to every token drawn and can't follow draft trees", "decoding.speculation"
                )

    def _run(self) -> None:
        """The engine thread."""
        try:
            while not self._closing.is_set() and self._fatal is None:
                self._work.clear()
                while self._incoming:
                    self._engine.scheduler.add(self._incoming.popleft())
                self._step_started = time.monotonic()
                busy = self._engine.step()
                self._step_started = None
                self._deliver()
                if not busy and not self._incoming:
                    # Those who wait may run out of time; nobody else would wake the engine for that.
                    self._work.wait(timeout=0.1 if self._engine.scheduler.waiting else None)
        except Exception as error:
            log.exception("the engine stopped")
            self._die(f"{type(error).__name__}: {error}")

    def _deliver(self) -> None:
        """Hands a step's deltas to the event loops that wait for them, with one wake-up each."""
        if not self.outgoing:
            return
        items, self.outgoing = self.outgoing, []
        loops = {stream.loop for stream, _ in items}
        for loop in loops:
            batch = [(stream, item) for stream, item in items if stream.loop is loop]
            _call_soon(loop, batch)
        with self._lock:
            self._streams.difference_update(stream for stream, _ in items if stream.ended)

    def _watch(self) -> None:
        """The watchdog thread."""
        while not self._closing.wait(timeout=min(1.0, self._step_timeout / 4)):
            started = self._step_started
            if started is not None and time.monotonic() - started > self._step_timeout:
                self._die(f"a step has been running for more than {self._step_timeout:g} s")
                return
            if not self._thread.is_alive() and not self._closing.is_set():
                # What ends a thread without an Exception: SystemExit, raised into it from outside, or by a plug-in.
                self._die("its thread has ended")
                return

    def _die(self, reason: str) -> None:
        """Marks the runtime dead and fails everything that still waits for an answer."""
        with self._lock:
            if self._fatal is None:
                self._fatal = reason
            streams, self._streams = self._streams, set()
        for stream in streams:
            _call_soon(stream.loop, [(stream, RuntimeUnavailable(f"the engine is down: {self._fatal}"))])


def _call_soon(loop: asyncio.AbstractEventLoop, batch: list[tuple[Stream, Item]]) -> None:
    def deliver() -> None:
        for stream, item in batch:
            stream.deliver(item)

    try:
        loop.call_soon_threadsafe(deliver)
    except RuntimeError:
        log.debug("an event loop was closed before its answers arrived")
