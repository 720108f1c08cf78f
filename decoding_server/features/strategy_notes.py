"""docs/strategies.toml: what the code can't say of a strategy; and the built-in strategies that it speaks of."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from strategies import registry


@dataclass(frozen=True, slots=True)
class Documented:
    """A built-in strategy that requests can name. slot: the field of `decoding` that takes it."""

    name: str
    slot: str
    kind: type[Any]
    summary: str
    runtimes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StrategyNote:
    """page: below docs/strategies, with its parameters. use: when to ask for it. cost: beside plain decoding.
    late: the answer comes in one piece at the end."""

    page: str
    use: str
    cost: str
    late: bool = False


@cache
def documented() -> Mapping[str, Documented]:
    """By name, in the order of slots and names; plug-ins are left out."""
    found = []
    for kind in get_args(registry.Kind):
        for name, strategy in registry.registered(kind).items():
            slot = getattr(strategy, "slot", kind)
            if slot is not None and strategy.__module__.startswith("strategies."):
                summary = " ".join((strategy.__doc__ or "").strip().split("\n\n")[0].split())
                runtimes = tuple(getattr(strategy, "runtimes", registry.RUNTIMES))
                found.append(Documented(name, slot, strategy, summary, runtimes))
    return {one.name: one for one in sorted(found, key=lambda one: (one.slot, one.name))}


def read_notes(path: Path) -> dict[str, StrategyNote]:
    """By strategy. Raises ValueError for a strategy that has none, or a note of none."""
    notes = {name: StrategyNote(**note) for name, note in tomllib.loads(path.read_text(encoding="utf-8")).items()}
    if unlike := set(notes) ^ set(documented()):
        raise ValueError(f"{path.name} and the strategies differ in: {', '.join(sorted(unlike))}")
    return notes
