"""`python -m decoding_server.features --write`: brings the generated blocks of a checkout's documents up to date."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from decoding_server.features import operations, parameters, strategy_matrix
from decoding_server.features.comparison import Comparison, load
from decoding_server.features.fields import Notes, Reference
from decoding_server.features.markers import MarkerError, block, replaced
from decoding_server.features.strategy_notes import StrategyNote, read_notes

ROOT = Path(__file__).parents[2]
PAGES = "docs/strategies"
DOCUMENTS = (
    *("README.md", "docs/features.md", "docs/api.md"),
    *(f"{PAGES}/{page.name}" for page in sorted((ROOT / PAGES).glob("*.md"))),
)


def generators(root: Path = ROOT) -> Mapping[str, Callable[[], str]]:
    """What makes each block, by its name."""

    @cache
    def comparison() -> Comparison:
        return load(root / "docs/peers.toml")

    @cache
    def notes() -> dict[str, StrategyNote]:
        return read_notes(root / "docs/strategies.toml")

    return {
        **parameters.tables(),
        "strategy-matrix": lambda: strategy_matrix.matrix(notes()),
        "strategy-overview": lambda: strategy_matrix.overview(notes()),
        "features": lambda: comparison().compact(),
        "all-features": lambda: comparison().full(),
        "fields": lambda: Reference(Notes(root / "docs/fields.toml")).markdown(),
        "endpoints": operations.endpoints,
        "limits": operations.limits,
        "settings": operations.settings,
        "errors": operations.errors,
        "metrics": operations.metrics,
        "strategies": operations.strategies,
    }


def measured(path: Path) -> bool:
    """Whether a document holds measurements too: those blocks are other programs'."""
    return path.name == "README.md" or path.parent.name == "strategies"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 up to date or written, 1 stale, 2 a file that can't be used."""
    parser = argparse.ArgumentParser(prog="decoding_server.features", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", nargs="*", metavar="FILE", help="update these (default: all)")
    action.add_argument("--check", nargs="*", metavar="FILE", help="say which of these are stale")
    action.add_argument("--print", metavar="BLOCK", help="print one block with its markers")
    options = parser.parse_args(arguments)
    made = generators()
    if options.print is not None:
        if options.print not in made:
            parser.error(f"there is no block {options.print!r}; there are: {', '.join(made)}")
        print(block(options.print, made[options.print]()))
        return 0
    chosen = options.check if options.write is None else options.write
    stale = False
    for path in [Path(name) for name in chosen] or [ROOT / name for name in DOCUMENTS]:
        try:
            document = path.read_text(encoding="utf-8")
            current = replaced(document, made, foreign=measured(path))
        except (OSError, MarkerError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            return 2
        if current == document:
            continue
        if options.write is None:
            print(f"{path} is stale: python -m decoding_server.features --write")
            stale = True
        else:
            path.write_text(current, encoding="utf-8")
            print(f"{path} updated")
    return int(stale)


if __name__ == "__main__":
    raise SystemExit(main())
