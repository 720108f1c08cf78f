"""The sandbox of the server: opened once, in the background or when the first request needs it."""

import asyncio
import logging
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from decoding_server.config import ServerConfig
from strategies.errors import ModelLoadError, ProgramsUnavailable
from strategies.sandbox.outcome import Limits, SandboxUnavailable
from strategies.sandbox.sandbox import Sandbox, SandboxListener, open_sandbox
from strategies.search.program_prompts import Prompts

logger = logging.getLogger(__name__)

ALLOWED = {"auto": ["bwrap", "lsm"], "bwrap": ["bwrap"], "landlock": ["lsm"], "off": []}
OUTPUT_KB = 64
"""What a program may print."""


State = Literal["closed", "opening", "ready", "unavailable"]


class SandboxState(TypedDict):
    """Whether programs can be run, by which backend, whether that confines them, and why not.

    closed: nothing has needed it yet. unavailable, but with a backend: it has failed; the next program has it tried
    again.
    """

    state: State
    backend: str | None
    confines: bool | None
    reason: str | None


class ProgramSandbox:
    """Belongs to one event loop from the first call of `start` or `ready` on."""

    def __init__(self, config: ServerConfig) -> None:
        self.allow = [*ALLOWED[config.sandbox]]
        self.off = config.sandbox == "off"
        self.unsandboxed = config.allow_unsandboxed_programs and not self.off
        if self.unsandboxed:
            self.allow.append("process")
        self.limits = Limits(config.sandbox_test_seconds, config.sandbox_memory >> 20, OUTPUT_KB)
        self.opened: Sandbox | None = None
        self.listener: SandboxListener | None = None
        self._opening: asyncio.Task[Sandbox] | None = None
        self._reason: str | None = "programs are switched off (--sandbox off)" if self.off else None

    def start(self) -> None:
        """Begins to open it; says in the log what came of it."""
        if self._opening is None and not self.off:
            self._opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add_done_callback(_told)

    async def ready(self) -> Sandbox:
        """Raises ProgramsUnavailable with the reason. What has failed is not tried again."""
        self.start()
        if self._opening is None:
            raise ProgramsUnavailable(self._reason)
        return await asyncio.shield(self._opening)

    @property
    def described(self) -> SandboxState:
        if self.opened is None:
            state: State = "unavailable" if self._reason else "closed" if self._opening is None else "opening"
            return {"state": state, "backend": None, "confines": None, "reason": self._reason}
        return {
            "state": "ready" if self.opened.broken is None else "unavailable",
            "backend": self.opened.backend.name,
            "confines": self.opened.backend.confines,
            "reason": self.opened.broken,
        }

    async def close(self) -> None:
        """Ends all programs."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self.opened is not None:
            await self.opened.close()
            self.opened = None

    async def _open(self) -> Sandbox:
        try:
            self.opened = await open_sandbox(self.allow, allow_unsandboxed=self.unsandboxed, limits=self.limits)
        except (SandboxUnavailable, OSError) as error:
            self._reason = str(error)
            raise ProgramsUnavailable(self._reason) from error
        self.opened.listener = self.listener
        return self.opened


def _told(opening: "asyncio.Task[Sandbox]") -> None:
    if opening.cancelled():
        return
    error = opening.exception()
    if error is None:
        logger.info("programs run in the sandbox %s", opening.result().backend.name)
    else:
        logger.warning("no sandbox is usable, so requests that run programs are refused: %s", error)


def load_prompts(config: ServerConfig) -> Prompts:
    """The operator's words, or ours. Raises ModelLoadError."""
    if config.program_prompts is None:
        return Prompts()
    try:
        return Prompts.load(Path(config.program_prompts))
    except ValueError as error:
        raise ModelLoadError(f"--program-prompts: {error}") from None
