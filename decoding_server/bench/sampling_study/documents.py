from pathlib import Path
from typing import Any


def write(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    pass
