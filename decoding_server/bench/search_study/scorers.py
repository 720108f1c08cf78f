"""The value functions that a study offers its searches."""

from pathlib import Path

from strategies.runtime import Runtime
from strategies.scoring.self_evaluation import SelfEvaluation
from strategies.scoring.value import ValueFunction


def loaded(runtime: Runtime, head: Path | None) -> dict[str, ValueFunction]:
    """Self-evaluation, and the trained head of that folder. Raises ModelLoadError."""
    return {"self-eval": SelfEvaluation()}
