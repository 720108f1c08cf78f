"""Runs the application: listens at once, loads the model meanwhile, and drains on SIGTERM or SIGINT."""

import asyncio
import contextlib
import gc
import json
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType

import uvicorn
from fastapi import FastAPI

from decoding_server.api_keys import configured_keys
from decoding_server.app import create_app
from decoding_server.config import ConfigError, LoadedConfig
from decoding_server.decoding import check_configured
from decoding_server.gate import Gate
from decoding_server.request_log import configure_request_log
from decoding_server.service import sampling_origin
from decoding_server.values import Scorers, load_scorers
from decoding_server.wire import protocol_class
from strategies.errors import ModelLoadError
from strategies.runtime import Runtime

logger = logging.getLogger("decoding_server")

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than the 60 s after which load balancers drop theirs."""
UNREAD_SECONDS = 120
"""How long a client may leave what was sent to it unread."""
MOST_FILES = 65536
DEAD_SECONDS = 1.0
"""How often the engine's state is looked at, with --exit-when-dead."""
EXIT_DEAD = 70
CLOSE_SECONDS = 5
"""How long connections may take to close after the last answer."""


class JsonLines(logging.Formatter):
    """One line of ASCII JSON for each message, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, separators=(",", ":"))


def configure_logging(level: str, style: str = "text") -> None:
    """Everything goes to stderr; uvicorn's own lines only from warnings up."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(asctime)s %(message)s")
    if style == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    for name in ("decoding_server", "models", "strategies"):
        logging.getLogger(name).setLevel(level.upper())


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError with one clear line, for instance when the port is in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        give_up_on_the_lost(listener)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}") from error
    listener.setblocking(False)
    return listener


def give_up_on_the_lost(listener: socket.socket) -> None:
    """Connections inherit it: the kernel cuts those whose client takes no data for `UNREAD_SECONDS` (a process that is
    stopped, or reads no more), or doesn't answer at all although nothing is under way (a machine that is gone). The
    request then ends like that of any client that leaves, instead of holding memory and a drain for ever."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_USER_TIMEOUT", UNREAD_SECONDS * 1000),
        ("TCP_KEEPIDLE", 60),
        ("TCP_KEEPINTVL", 15),
        ("TCP_KEEPCNT", 4),
    ):
        option = getattr(socket, name, None)  # as far as the system has it
        if option is not None:
            with contextlib.suppress(OSError):
                listener.setsockopt(socket.IPPROTO_TCP, option, value)


def raise_file_limit() -> None:
    """Every connection is a file; systems start processes with a low limit that they may raise themselves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server(uvicorn.Server):
    """uvicorn with signals that drain: the first starts it, the second ends the process's work at once."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[int], None]) -> None:
        super().__init__(config)
        self.on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.on_signal(sig)


class Serving:
    """One run of the server, from the listening socket to the exit code."""

    def __init__(self, loaded: LoadedConfig, load: Callable[[], Runtime], listener: socket.socket) -> None:
        self.loaded = loaded
        self.config = loaded.config
        self.load = load
        self.listener = listener
        self.gate = Gate(self.config.cors_origin)
        self.runtime: Runtime | None = None
        self.app: FastAPI | None = None
        self.exit_code = 0
        self.loop = asyncio.get_running_loop()
        self.stop_task: asyncio.Task[None] | None = None
        self.watching: list[asyncio.Task[None]] = []
        self.signals = 0
        self.server = Server(
            uvicorn.Config(
                self.gate,
                http=protocol_class(),
                lifespan="off",
                log_config=None,
                access_log=False,
                ws="none",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            ),
            self._on_signal,
        )

    async def run(self) -> int:
        """Serves until a signal or a fatal error; the process's exit code."""
        host, port = self.listener.getsockname()[:2]
        logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        loading = asyncio.create_task(self._load())
        try:
            await self.server.serve(sockets=[self.listener])
        finally:
            tasks = [loading, *self.watching]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.runtime is not None:
                self.runtime.close()
            if self.app is not None:
                await self.app.state.service.close()
                await asyncio.to_thread(self.app.state.observability.close)
        return self.exit_code

    async def _load(self) -> None:
        """Loads in a thread of its own, so that /health answers meanwhile, then opens the gate."""
        started = time.monotonic()
        arrived: asyncio.Future[tuple[Runtime, Scorers]] = self.loop.create_future()

        def deliver(loaded: tuple[Runtime, Scorers] | None, error: BaseException | None) -> None:
            if arrived.cancelled():
                return
            if error is not None:
                arrived.set_exception(error)
            elif loaded is not None:
                arrived.set_result(loaded)

        def load() -> None:
            try:
                runtime = self.load()
                try:
                    scorers = load_scorers(runtime, self.config)
                except BaseException:
                    runtime.close()
                    raise
            except BaseException as error:
                self.loop.call_soon_threadsafe(deliver, None, error)
            else:
                self.loop.call_soon_threadsafe(deliver, (runtime, scorers), None)

        # A daemon: a signal must be able to end the process in the middle of a download.
        threading.Thread(target=load, name="load-model", daemon=True).start()
        try:
            self.runtime, scorers = await arrived
            app = create_app(self.runtime, self.config, scorers)
        except ModelLoadError as error:
            print(f"error: {error}", file=sys.stderr)
            self._stop(1)
            return
        except Exception:
            logger.exception("the model could not be loaded")
            self._stop(1)
            return
        self.app = app
        # What is there now stays. A full collection of it takes 0.3 s, in which no token comes.
        gc.collect()
        gc.freeze()
        app.state.service.sandbox.start()
        self.gate.open(app)
        self._watch(app)
        info = self.runtime.info
        logger.info("value functions for searches: %s", ", ".join(scorers))
        defaults = app.state.service.sampling_defaults
        logger.info("default sampling values are %s", sampling_origin(defaults))
        logger.info(
            "ready in %.1f s: %s (%s, %s on %s, context %d) served as %s",
            time.monotonic() - started,
            info.source,
            info.architecture,
            info.dtype,
            info.device,
            info.max_model_len,
            ", ".join(app.state.service.served_names),
        )

    def _watch(self, app: FastAPI) -> None:
        """What goes on beside the requests: looking for changed keys, and for the engine's end."""
        if self.config.api_key_file is not None:
            self.watching.append(self.loop.create_task(app.state.keys.watch()))
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
                self.loop.add_signal_handler(signal.SIGHUP, app.state.keys.reload)
        if self.config.exit_when_dead:
            self.watching.append(self.loop.create_task(self._exit_when_dead()))

    async def _exit_when_dead(self) -> None:
        assert self.runtime is not None
        while (status := self.runtime.status()).state != "dead" or self.stop_task is not None:
            await asyncio.sleep(DEAD_SECONDS)
        logger.critical("the engine is dead (%s): the process ends", status.detail)
        # Running requests have been failed; a moment, so that their clients hear of it.
        await self.gate.drain(CLOSE_SECONDS)
        self._stop(EXIT_DEAD)

    def _stop(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.server.should_exit = True

    def _on_signal(self, sig: int) -> None:
        """Called by the signal handler, in the middle of anything: only hands over to the loop."""
        self.signals += 1
        if self.runtime is None or self.signals > 2:
            # Nothing to finish (or nothing helps): the loader thread may be deep inside a library call. Processes that
            # a runtime has begun to start would outlive this one.
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + sig)
        self.loop.call_soon_threadsafe(self._begin_stop, sig)

    def _begin_stop(self, sig: int) -> None:
        if self.stop_task is None:
            self.stop_task = self.loop.create_task(self._drain())
        else:
            logger.warning("second signal: stopping at once")
            self.stop_task.cancel()
            self._abandon()
            self.server.force_exit = True
            self._stop(128 + sig)

    async def _drain(self) -> None:
        timeout = self.config.shutdown_timeout
        logger.info("draining: %d running requests may take %.0f s to finish", self.gate.running, timeout)
        if self.runtime is not None:
            self.runtime.drain()
        if await self.gate.drain(timeout):
            logger.info("drained")
        else:
            logger.warning("%d requests had not finished in time and were ended", self.gate.running)
            self._abandon()
        self._stop(0)

    def _abandon(self) -> None:
        """Ends what still runs: its streams fail, so that clients get an error instead of a cut connection."""
        if self.runtime is not None:
            self.runtime.close()


def run(loaded: LoadedConfig, load: Callable[[], Runtime]) -> int:
    """Serves the runtime that `load` makes; returns the exit code. Raises ConfigError when it can't listen, and for
    wrong keys and presets."""
    configure_logging(loaded.config.log_level, loaded.config.log_format)
    configure_request_log()
    configured_keys(loaded.config)
    check_configured(loaded.config.decoding, loaded.config.presets)
    raise_file_limit()
    listener = listen(loaded.config.host, loaded.config.port)
    logger.info("configuration\n  %s", "\n  ".join(loaded.lines()))

    async def serve() -> int:
        return await Serving(loaded, load, listener).run()

    with asyncio.Runner(loop_factory=_event_loop()) as runner:
        return runner.run(serve())


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's loop where it is installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        from asyncio import new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop
    return factory
