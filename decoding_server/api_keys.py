"""API keys: whom each belongs to and what it may use, from flags and from a file that is read again when it changes.

A key file has one key a line, or, if its name ends with .yaml or .yml, a list of entries:

    - name: team-a                # shown in metrics and the log, which never show the key
      key: a-long-random-text
      concurrent_requests: 8
      requests_per_minute: 120
      tokens_per_minute: 200000   # tokens computed by forward passes
      tokens_per_day: 20000000
      budget: {forward_tokens: 50000, seconds: 60}   # of each request, at most
"""

import asyncio
import hashlib
import hmac
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from decoding_server.config import ConfigError, ServerConfig
from decoding_server.protocol.decoding import BudgetOptions
from strategies.budget import Budget

logger = logging.getLogger("decoding_server")

WATCH_SECONDS = 5.0
"""How often the key file is looked at."""
UNNAMED = "unnamed"
"""The label of keys without a name, together."""

Limit = Annotated[int, Field(ge=1)]
Number = TypeVar("Number", int, float)


class ApiKey(BaseModel):
    """A key. Limits that are absent don't exist. Unnamed keys are told apart by a digest, which is never shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key: SecretStr
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    concurrent_requests: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    budget: BudgetOptions | None = None

    @property
    def label(self) -> str:
        return self.name or UNNAMED

    @property
    def tenant(self) -> str:
        """What tells keys apart in the queue: a name may stay the same while the key changes."""
        return self.name or hashlib.sha256(self.key.get_secret_value().encode()).hexdigest()

    def capped(self, budget: Budget) -> Budget:
        """The request's budget, in no unit above the key's."""
        if self.budget is None:
            return budget
        limit = self.budget
        return Budget(
            _least(budget.forward_tokens, limit.forward_tokens),
            _least(budget.output_tokens, limit.output_tokens),
            _least(budget.flops, limit.flops),
            _least(budget.seconds, limit.seconds),
        )


def _least(one: Number | None, other: Number | None) -> Number | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


def configured_keys(config: ServerConfig) -> list[ApiKey]:
    """The keys of flags and file. Raises ConfigError for a key file that can't be read, holds none, or is wrong."""
    keys = [ApiKey(key=key) for key in config.api_key]
    if config.api_key_file is not None:
        keys += read_key_file(config.api_key_file)
    for what, values in (
        ("name", [key.name for key in keys if key.name]),
        ("key", [key.key.get_secret_value() for key in keys if key.name]),
    ):
        if repeated := [value for value, count in Counter(values).items() if count > 1]:
            shown = f" '{repeated[0]}'" if what == "name" else ""
            raise ConfigError(f"--api-key-file {config.api_key_file}: the {what}{shown} occurs twice")
    return keys


def read_key_file(path: str) -> list[ApiKey]:
    """Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path}: {error}") from error
    if path.endswith((".yaml", ".yml")):
        keys = _entries(path, text)
    else:
        lines = [line.strip() for line in text.splitlines()]
        keys = [ApiKey(key=SecretStr(line)) for line in lines if line and not line.startswith("#")]
    if not keys:
        # An empty file must not mean a server that is open to all.
        raise ConfigError(f"--api-key-file {path}: it holds no key")
    return keys


def _entries(path: str, text: str) -> list[ApiKey]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the message itself may quote a key
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"--api-key-file {path}: not valid YAML{where}") from error
    if content is None:
        return []
    if not isinstance(content, list):
        raise ConfigError(f"--api-key-file {path}: must be a list of entries")
    return [_entry(path, number, entry) for number, entry in enumerate(content, 1)]


def _entry(path: str, number: int, entry: Any) -> ApiKey:
    try:
        key = ApiKey.model_validate(entry)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "it"
        raise ConfigError(f"--api-key-file {path}: entry {number}: {where}: {fault['msg'].lower()}") from error
    if not key.key.get_secret_value().strip() or key.name is None:
        raise ConfigError(f"--api-key-file {path}: entry {number}: name and key must not be empty")
    return key


class KeyRing:
    """The keys in force. `reloaded` hears how each reading went, True for well."""

    def __init__(self, config: ServerConfig, reloaded: Callable[[bool], None] = lambda well: None) -> None:
        """Raises ConfigError."""
        self._config = config
        self._reloaded = reloaded
        self._seen = self._signature()
        self.keys: Sequence[ApiKey] = configured_keys(config)

    def find(self, given: bytes) -> ApiKey | None:
        """The key with these bytes. All are compared, each in constant time, so that timing tells nothing."""
        found = None
        for key in self.keys:
            if hmac.compare_digest(given, key.key.get_secret_value().encode()):
                found = key
        return found

    def reload(self) -> bool:
        """Reads the file again. A faulty one changes nothing; its fault is logged."""
        self._seen = self._signature()
        try:
            keys = configured_keys(self._config)
        except ConfigError as error:
            logger.error("the API keys stay as they were: %s", error)
            self._reloaded(False)
            return False
        before, self.keys = self.keys, keys
        changed = sum(key not in before for key in keys)
        logger.info("API keys were read again: %d, of which %d are new or changed", len(keys), changed)
        self._reloaded(True)
        return True

    async def watch(self, seconds: float = WATCH_SECONDS) -> None:
        """Reads the file again whenever it has changed, until cancelled. A file system that hangs holds up nobody."""
        while self._config.api_key_file is not None:
            await asyncio.sleep(seconds)
            if await asyncio.to_thread(self._signature) != self._seen:
                self.reload()

    def _signature(self) -> tuple[int, ...] | None:
        """What changes with the file: also where a secret is mounted, which Kubernetes swaps by a symbolic link."""
        if self._config.api_key_file is None:
            return None
        try:
            status = os.stat(self._config.api_key_file)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
