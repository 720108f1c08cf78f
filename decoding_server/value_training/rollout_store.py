"""Solutions on disk, so that a second start goes on where the first one ended.

rollouts.json     what they were made with; a start with other settings is refused
rollouts.jsonl    one question a line, with all its solutions
features.f16      hidden states of all prefixes in the same order, float16 [rows, hidden_size], no header

A line is written after its features. What a cut left incomplete is dropped when the store is opened.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SETTINGS, ROWS, FEATURES = "rollouts.json", "rollouts.jsonl", "features.f16"


class StoreError(Exception):
    """The folder can't be used. One line that says why."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One solution. step_ends: lengths of its prefixes, the last is the whole. finish_reason: stop, or length: cut off,
    which counts as wrong. answer_key: canonical, None where none was found."""

    token_ids: list[int]
    step_ends: list[int]
    finish_reason: str
    answer_key: str | None
    correct: bool


@dataclass(frozen=True, slots=True)
class QuestionRollouts:
    """The solutions of one question. Its features are the root's, then each solution's prefixes in order."""

    qid: str
    gold: str
    rollouts: list[Rollout]

    @property
    def num_features(self) -> int:
        return 1 + sum(len(rollout.step_ends) for rollout in self.rollouts) if self.rollouts else 0


class RolloutStore:
    """An output folder, open for one process. Use as a context manager."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], hidden_size: int) -> None:
        """Raises StoreError: for other settings than those of the rollouts that are there (how many questions is free),
        a folder in use, damaged files."""
        self.folder = folder
        self.hidden_size = hidden_size
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / ROWS).open("a+b")
        self._features = (folder / FEATURES).open("a+b")
        try:
            self._lock()
            self._check_settings(settings)
            self.rows = self._recover()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._features.close()

    @property
    def done(self) -> set[str]:
        """Ids of the questions that have their solutions."""
        return {row.qid for row in self.rows}

    def append(self, row: QuestionRollouts, features: NDArray[np.float32]) -> None:
        """Adds a question: features [num_features, hidden_size]."""
        if features.shape != (row.num_features, self.hidden_size):
            raise ValueError(f"features {features.shape} for {row.num_features} prefixes")
        self._features.write(features.astype("<f2").tobytes())
        self._flush(self._features)
        self._lines.write(json.dumps(asdict(row), separators=(",", ":")).encode() + b"\n")
        self._flush(self._lines)
        self.rows.append(row)

    def features(self) -> dict[str, NDArray[np.float32]]:
        """Every question's features, float32 [num_features, hidden_size]."""
        self._features.seek(0)
        count = sum(row.num_features for row in self.rows)
        data = np.frombuffer(self._features.read(count * self._width), "<f2").reshape(count, self.hidden_size)
        ends = np.cumsum([row.num_features for row in self.rows])
        parts = np.split(data.astype(np.float32), ends[:-1]) if self.rows else []
        return dict(zip((row.qid for row in self.rows), parts, strict=True))

    @property
    def _width(self) -> int:
        return 2 * self.hidden_size

    def _lock(self) -> None:
        try:
            fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"another process is at work in {self.folder}") from error

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if self._lines.tell():
                raise StoreError(f"{self.folder} has {ROWS} but no {SETTINGS}; choose another --output")
            path.write_text(json.dumps(dict(settings), indent=2) + "\n", encoding="utf-8")
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} can't be read: {error}") from error
        for name in sorted({*known, *settings}):
            if known.get(name) != settings.get(name):
                raise StoreError(
                    f"{self.folder} holds solutions made with another {name} ({known.get(name)!r}, now "
                    f"{settings.get(name)!r}); choose another --output"
                )

    def _recover(self) -> list[QuestionRollouts]:
        """The complete rows; what follows them in either file is cut off."""
        self._lines.seek(0)
        whole, _, torn = self._lines.read().rpartition(b"\n")
        if torn:
            self._lines.truncate(len(whole) + bool(whole))
        try:
            rows = [_row(json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{self.folder / ROWS} is damaged ({error}); choose another --output") from error
        size = sum(row.num_features for row in rows) * self._width
        if os.fstat(self._features.fileno()).st_size < size:
            raise StoreError(f"{self.folder / FEATURES} is shorter than {ROWS} says; choose another --output")
        self._features.truncate(size)
        return rows

    @staticmethod
    def _flush(file: Any) -> None:
        file.flush()
        os.fsync(file.fileno())


def _row(content: dict[str, Any]) -> QuestionRollouts:
    return QuestionRollouts(content["qid"], content["gold"], [Rollout(**rollout) for rollout in content["rollouts"]])
