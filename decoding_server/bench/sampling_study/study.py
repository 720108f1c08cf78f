"""The run: every missing wave of every part and model, then results, and documentation where it is asked for."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from decoding_server import __version__
from decoding_server.bench import machine
from decoding_server.bench.rows import Row, RowFile
from decoding_server.bench.sampling_study import distributions, humaneval, loops, summary, texts
from decoding_server.bench.sampling_study.subject import Subject
from decoding_server.bench.sampling_study.waves import Wave
from models.loading import resolve

PARTS = ("bregman", "repetition", "harm")
RESULTS: dict[str, Callable[[Sequence[Row]], list[dict[str, Any]]]] = {
    "bregman": summary.of_distributions,
    "repetition": summary.of_loops,
    "harm": summary.of_harm,
}
PACKAGES = ("torch", "transformers", "tokenizers", "tree-sitter")


@dataclass(frozen=True, slots=True)
class Settings:
    """output: the folder of rows and results. models: what `serve` takes, None is the embedded one. humaneval: its
    file, None leaves `harm` out. limit: at most so many prompts of each part. seconds: no wave begins after that."""

    output: Path
    models: tuple[str | None, ...] = (None,)
    parts: tuple[str, ...] = PARTS
    humaneval: Path | None = None
    limit: int | None = None
    concurrency: int = 32
    max_tokens: int = 256
    harm_tokens: int = 300
    seconds: float | None = None


Report = Callable[[str, int, int], None]
"""What is being done, how many waves are done, how many there are."""


class Study:
    """Raises ModelLoadError; OSError and ValueError where HumanEval's file can't be read."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self.settings = settings
        self._report = report
        settings.output.mkdir(parents=True, exist_ok=True)
        self.parts = [part for part in settings.parts if part != "harm" or settings.humaneval is not None]
        self.files = [resolve(model) for model in settings.models]
        self.rows = {part: RowFile(settings.output / f"{part}.jsonl") for part in self.parts}
        self.runs = RowFile(settings.output / "runs.jsonl")
        self.waves = {(files.name, part): self._waves(part, files.name) for files in self.files for part in self.parts}

    def _waves(self, part: str, model: str) -> list[Wave]:
        settings = self.settings
        if part == "bregman":
            return distributions.waves(model, texts.contexts(settings.limit), min(settings.concurrency, 8))
        if part == "repetition":
            programs = texts.programs(settings.limit)
            return loops.waves(model, programs, settings.concurrency, settings.max_tokens)
        assert settings.humaneval is not None
        tasks = texts.tasks(settings.humaneval, settings.limit)
        return humaneval.waves(model, tasks, settings.concurrency, settings.harm_tokens)

    def missing(self) -> int:
        """Waves that have not been measured."""
        return sum(not self.rows[part].has(wave.keys) for (_, part), waves in self.waves.items() for wave in waves)

    def run(self) -> bool:
        """Measures what is missing; False when the time was up before the end."""
        began = time.monotonic()
        total = sum(map(len, self.waves.values()))
        done = total - self.missing()
        if done < total:
            self.runs.append([self._facts()])
        for files in self.files:
            todo = [
                (part, wave)
                for part in self.parts
                for wave in self.waves[files.name, part]
                if not self.rows[part].has(wave.keys)
            ]
            if todo:
                self._report(f"{files.name}: loading", done, total)
            if not todo:
                continue
            subject = Subject(files, self.settings.concurrency)
            try:
                for part, wave in todo:
                    if self.settings.seconds is not None and time.monotonic() - began > self.settings.seconds:
                        return False
                    self._report(wave.title, done, total)
                    self.rows[part].append(asyncio.run(wave.run(subject)))
                    done += 1
            finally:
                subject.close()
        self._report("done", done, total)
        return True

    def _facts(self) -> Row:
        return {
            "key": f"{time.time():.3f}",
            "date": time.strftime("%Y-%m-%d"),
            "commit": machine.commit(),
            "parts": self.parts,
            "models": [files.name for files in self.files],
            "versions": {"decoding-server": __version__, **{package: version(package) for package in PACKAGES}},
            "machine": machine.describe(),
        }

    def results(self) -> dict[str, dict[str, Any]]:
        """Part -> its numbers and what they were measured on, for parts with rows; written to `results` too."""
        found: dict[str, dict[str, Any]] = {}
        for part in self.parts:
            keys = {key for (_, one), waves in self.waves.items() if one == part for wave in waves for key in wave.keys}
            rows = [row for row in self.rows[part].rows if row["key"] in keys]
            runs = [row for row in self.runs.rows if part in row["parts"]]
            if rows and runs:
                found[part] = {
                    "rows": len(rows),
                    "missing": len(keys) - len(rows),
                    "commits": list(dict.fromkeys(row["commit"] for row in runs)),
                    "dates": sorted({row["date"] for row in runs}),
                    "versions": runs[-1]["versions"],
                    "machine": {**runs[-1]["machine"], "load_average_at_start": None},
                    "results": RESULTS[part](rows),
                }
        write(self.settings.output / "results", found)
        return found


def write(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    """One JSON file per part."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, result in results.items():
        (folder / f"{part}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The parts whose files are there."""
    return {
        part: json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
        for part in PARTS
        if (folder / f"{part}.json").exists()
    }
