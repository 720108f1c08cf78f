"""SVG files that are small, and the same bytes for the same numbers."""

from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small files
    "svg.hashsalt": "sampling-study",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
"""Told apart by readers who don't see all colours (Paul Tol's bright scheme)."""


def save(figure: Figure, target: Path | BinaryIO) -> None:
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
