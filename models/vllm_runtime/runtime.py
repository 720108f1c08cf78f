"""The vLLM runtime: vLLM's AsyncLLM on an event loop and a thread of its own, answering through the callers' loops."""

import asyncio
import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from models.request_check import check_generation
from models.vllm_runtime.account import Account
from models.vllm_runtime.native import native_parameters
from models.vllm_runtime.notes import NoteReader
from models.vllm_runtime.sequence import Sequence as TokenSequence
from models.vllm_runtime.totals import Totals
from strategies.budget import Meter
from strategies.delta_queue import DeltaQueue, Item
from strategies.errors import DecodingError, InvalidRequest, QueueFull, RequestFailed, RuntimeUnavailable
from strategies.runtime import Generation, ModelInfo, RuntimeStatus
from strategies.sampling.row import Row, stages_of
from strategies.sampling.transform import Transform
from strategies.text import Tokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")

IDLE_ACCOUNTS = 128
"""Requests with a budget of which nothing runs now, and whose cached prefixes are remembered."""


class EngineThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Runs a coroutine there, and waits for it here."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=30)
        if not self._thread.is_alive():
            self.loop.close()


class Stream(DeltaQueue):
    """The answer to one generation, fed from the engine's loop. Implements `GenerationStream`."""

    def __init__(self, runtime: "VllmRuntime", loop: asyncio.AbstractEventLoop, generation: Generation) -> None:
        super().__init__()
        self._runtime = runtime
        self.loop = loop
        self.generation = generation
        self.task: asyncio.Task[None] | None = None  # on the engine's loop
        self.cancelled = False
        self.ended = False  # set on the engine's loop, with the last item

    def cancel(self) -> None:
        """See `GenerationStream.cancel`. Whoever still iterates gets RequestFailed."""
        if not self.cancelled and not self.ended:
            self.cancelled = True
            self._runtime.abandon(self)
            self.deliver(RequestFailed("the generation was cancelled"))


class VllmRuntime:
    """Serves one AsyncLLM. Implements `Runtime`."""

    def __init__(
        self,
        thread: EngineThread,
        llm: Any,
        info: ModelInfo,
        tokenizer: Tokenizer,
        notes: NoteReader,
        totals: Totals,
        *,
        kv_slots: int,
        block_size: int,
        max_num_seqs: int,
        max_waiting: int,
        native: bool = False,
    ) -> None:
        """llm: an AsyncLLM that was made on the thread. block_size: tokens, 0 without a prefix cache. native: vLLM
        samples by itself, since it speculates."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        self._thread, self._llm, self._info, self._tokenizer = thread, llm, info, tokenizer
        self._notes, self._totals = notes, totals
        self._kv_slots, self._block_size = kv_slots, block_size
        self._max_num_seqs, self._max_waiting, self._native = max_num_seqs, max_waiting, native
        self._parameters: Callable[..., Any] = SamplingParams
        self._delta_kind, self._dead_error = RequestOutputKind.DELTA, EngineDeadError
        self._keys = itertools.count(1)
        self._streams: set[Stream] = set()
        self._accounts: OrderedDict[int, Account] = OrderedDict()  # by the meter's identity
        self._outgoing: list[tuple[Stream, Item]] = []
        self._lock = threading.Lock()
        self._draining = False
        self._closed = False
        self._fatal: str | None = None

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def submit(self, generations: Sequence[Generation], *, admitted: bool = False) -> list[Stream]:
        """See `Runtime.submit`."""
        self._notice_death()
        if self._fatal is not None:
            raise RuntimeUnavailable(f"the engine is down: {self._fatal}")
        if (self._draining and not admitted) or self._closed:
            raise RuntimeUnavailable("the server is shutting down")
        for generation in generations:
            self._check(generation)
        loop = asyncio.get_running_loop()
        streams = [Stream(self, loop, generation) for generation in generations]
        with self._lock:
            if self._fatal is not None:
                raise RuntimeUnavailable(f"the engine is down: {self._fatal}")
            waiting = max(0, len(self._streams) - self._max_num_seqs)
            if waiting + len(streams) > self._max_waiting and not admitted:
                raise QueueFull(
                    f"{waiting} sequences are waiting already (at most {self._max_waiting}); try again later"
                )
            self._streams.update(streams)
        self._thread.loop.call_soon_threadsafe(self._start, tuple(streams))  # the list is the caller's from now on
        return streams

    def status(self) -> RuntimeStatus:
        """See `Runtime.status`. vLLM keeps cached blocks among the free ones, so none are counted as used."""
        self._notice_death()
        totals = self._totals
        with self._lock:
            live = len(self._streams)
        state = "dead" if self._fatal is not None else "draining" if self._draining else "ready"
        return RuntimeStatus(
            state=state,  # type: ignore[arg-type]  # a conditional expression of the literals
            detail=self._fatal or "",
            running=min(live, self._max_num_seqs),
            waiting=max(0, live - self._max_num_seqs),
            kv_slots=self._kv_slots,
            kv_slots_used=round(totals.kv_usage * self._kv_slots) if live else 0,
            kv_slots_cached=0,
            steps=totals.steps,
            prefix_cache_queries=totals.prefix_cache_queries,
            prefix_cache_hits=totals.prefix_cache_hits,
            preemptions=totals.preemptions,
            prompt_tokens=totals.prompt_tokens,
            generation_tokens=totals.generation_tokens,
            iteration_tokens=totals.iteration_tokens,
        )

    def drain(self) -> None:
        self._draining = True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._die("the server was closed")
        self._thread.call(self._shut_down())
        self._thread.stop()
        self._notes.close()

    def abandon(self, stream: Stream) -> None:
        """Ends the work for a cancelled stream."""
        with self._lock:
            self._streams.discard(stream)
        self._thread.loop.call_soon_threadsafe(lambda: None if stream.task is None else stream.task.cancel())

    def _check(self, generation: Generation) -> None:
        """What can't be run is refused before it is queued."""
        check_generation(generation, self._info)
        if generation.speculation is not None:
            raise InvalidRequest(
                "this server runs vLLM, which has no speculation per request; --runtime torch has",
                "decoding.speculation",
            )
        if generation.pooling == "mean":
            raise InvalidRequest(
                "this server runs vLLM, which gives the last hidden state alone: use 'last', or --runtime torch",
                "pooling",
            )
        length = len(generation.prompt) + len(generation.answer)
        if length == self._info.max_model_len:
            raise InvalidRequest(
                f"this server runs vLLM, which reads at most {length - 1} tokens where nothing is generated; "
                "--runtime torch reads all",
                "prompt",
            )
        for transform in generation.sampling.transforms:
            if "vllm" not in transform.runtimes:
                raise InvalidRequest(
                    f"this server runs vLLM, which can't run {transform.name}; --runtime torch can",
                    f"decoding.{transform.slot or 'sampler'}",
                )
        if self._native:
            native_parameters(generation)
        eos = self._info.eos_token_ids
        if any(type(stage).start is not Transform.start for stage in stages_of(generation, eos)):
            Row(generation, eos, self._tokenizer)  # raises for what a transform can't do; the worker makes its own

    # -- on the engine's loop ----------------------------------------------------------------------------------------

    def _start(self, streams: Sequence[Stream]) -> None:
        for stream in streams:
            if not stream.cancelled and self._fatal is None:
                stream.task = asyncio.create_task(self._run(stream))

    async def _run(self, stream: Stream) -> None:
        """One generation from its start to its end, whatever ends it. A task that is cancelled before it begins has
        nothing to give back."""
        sequence = TokenSequence(
            stream.generation,
            next(self._keys),
            self._account(stream.generation.meter),
            self._notes,
            self._tokenizer,
            self._info,
            native=self._native,
        )
        budget, expired = stream.generation.meter.budget.seconds, False
        timer: asyncio.TimerHandle | None = None

        def expire() -> None:
            nonlocal expired
            expired = True
            if stream.task is not None:
                stream.task.cancel()

        if budget is not None:
            timer = self._thread.loop.call_later(max(0.0, budget - stream.generation.meter.seconds), expire)
        try:
            unit = await sequence.reserve()
            if unit is not None:
                self._put(stream, sequence.over_budget(unit))
            else:
                await self._generate(stream, sequence)
        except asyncio.CancelledError:
            if expired and not stream.cancelled:
                self._put(stream, sequence.over_budget("seconds"))
        except self._dead_error as error:
            self._die(f"vLLM's engine died: {error}")
        except DecodingError as error:
            self._put(stream, error)
        except Exception as error:  # a fault met by one request must not take the others down
            log.exception("a request failed")
            self._put(stream, RequestFailed(f"internal error: {error}"))
        finally:
            if timer is not None:
                timer.cancel()
            sequence.release()
            self._release(sequence.account)
            with self._lock:
                self._streams.discard(stream)

    async def _generate(self, stream: Stream, sequence: TokenSequence) -> None:
        generation = stream.generation
        prompt: dict[str, Any] = {"type": "token", "prompt_token_ids": list(sequence.tokens)}
        if generation.cache_salt:
            prompt["cache_salt"] = generation.cache_salt
        parameters = self._parameters(output_kind=self._delta_kind, **sequence.parameters())
        outputs = self._llm.generate(prompt, parameters, str(sequence.key), priority=generation.priority)
        async with aclosing(outputs):  # closing it early aborts the request
            async for output in outputs:
                self._notes.receive()
                delta = sequence.take(output, self._totals.steps)
                self._put(stream, delta)
                if delta.finish_reason is not None:
                    return
        raise RequestFailed("vLLM ended the request without a reason")

    def _account(self, meter: Meter) -> Account:
        """The account of a request; a search's is kept between its steps."""
        account = self._accounts.get(id(meter))
        if account is None:
            account = self._accounts[id(meter)] = Account(meter, self._info, self._block_size)
        account.holders += 1
        return account

    def _release(self, account: Account) -> None:
        account.holders -= 1
        if account.holders:
            return
        if not account.limited:
            del self._accounts[id(account.meter)]
            return
        self._accounts.move_to_end(id(account.meter))
        idle = [key for key, one in self._accounts.items() if not one.holders]
        for key in idle[:-IDLE_ACCOUNTS]:
            del self._accounts[key]

    def _put(self, stream: Stream, item: Item) -> None:
        """Queues an item for the caller's loop; those of one step are delivered together."""
        stream.ended = isinstance(item, DecodingError) or item.finish_reason is not None
        if not self._outgoing:
            self._thread.loop.call_soon(self._deliver)
        self._outgoing.append((stream, item))

    def _deliver(self) -> None:
        items, self._outgoing = self._outgoing, []
        for loop in {stream.loop for stream, _ in items}:
            _call_soon(loop, [(stream, item) for stream, item in items if stream.loop is loop])

    async def _shut_down(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        self._llm.shutdown()
        # Its destructor does that again, which fails when the interpreter is half gone.
        self._llm.shutdown = lambda *arguments, **options: None
        self._llm = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- death -------------------------------------------------------------------------------------------------------

    def _notice_death(self) -> None:
        """vLLM notices by itself that a process of its own is gone; whoever asks next is told."""
        if self._fatal is None and self._llm is not None and self._llm.errored:
            self._die("vLLM's engine died")

    def _die(self, reason: str) -> None:
        """Marks the runtime dead and fails everything that still waits for an answer."""
        with self._lock:
            if self._fatal is None:
                self._fatal = reason
                log.log(logging.INFO if self._closed else logging.ERROR, "%s", reason)
            streams, self._streams = self._streams, set()
        for stream in streams:
            if not stream.ended:
                stream.ended = True
                _call_soon(stream.loop, [(stream, RuntimeUnavailable(f"the engine is down: {self._fatal}"))])


def _call_soon(loop: asyncio.AbstractEventLoop, batch: list[tuple[Stream, Item]]) -> None:
    def deliver() -> None:
        for stream, item in batch:
            stream.deliver(item)

    try:
        loop.call_soon_threadsafe(deliver)
    except RuntimeError:
        log.debug("an event loop was closed before its answers arrived")
