"""The pages under docs/strategies: their generated blocks, the numbers behind them, and the plots."""

from collections.abc import Mapping
from pathlib import Path

from decoding_server.bench.sampling_study import plots, study, tables
from decoding_server.features.markers import replaced

PAGES = ("bregman.md", "grammar-penalty.md")
NUMBERS = "measured"
PLOTS = "plots"


def write(folder: Path, results: tables.Results) -> None:
    """Puts the results into the folder's pages, and their numbers beside them. Parts that were not measured now keep
    the numbers that are there. Raises OSError where a page is missing, MarkerError where a block is."""
    study.write(folder / NUMBERS, dict(results))
    if "bregman" in results:
        plots.of_distributions(results["bregman"], folder / PLOTS)
    if "repetition" in results:
        plots.of_loops(results["repetition"], folder / PLOTS)
    for page, text in pages(folder).items():
        (folder / page).write_text(text, encoding="utf-8")


def pages(folder: Path) -> Mapping[str, str]:
    """The pages as the numbers in the folder make them."""
    blocks = tables.blocks(study.read(folder / NUMBERS))
    return {page: replaced((folder / page).read_text(encoding="utf-8"), blocks, foreign=True) for page in PAGES}
