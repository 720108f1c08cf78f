"""vLLM's engine doesn't notice that its server is gone: killed, or ended by a second signal. Its workers do, here."""

import os
import select
import signal
import threading

VARIABLE = "DECODING_SERVER_VLLM_SERVER"
"""Environment variable with the server's process id."""


def follow_the_server() -> None:
    """In a worker: when the server ends, so do this process and the engine, its parent."""
    server = os.environ.get(VARIABLE)
    if server is None or int(server) == os.getpid():
        return
    threading.Thread(target=_watch, args=(int(server), os.getppid()), name="orphan-watch", daemon=True).start()


def _watch(server: int, parent: int) -> None:
    try:
        descriptor = os.pidfd_open(server)
    except ProcessLookupError:
        pass
    except OSError:  # a kernel without them, or a worker on another machine
        return
    else:
        select.select([descriptor], [], [])
    if parent not in (server, 1) and os.getppid() == parent:
        os.kill(parent, signal.SIGKILL)
    os._exit(1)
