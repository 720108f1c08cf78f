"""The value functions that a study offers its searches."""

from pathlib import Path

from strategies.runtime import Runtime
from strategies.scoring.self_evaluation import SelfEvaluation
from strategies.scoring.value import ValueFunction
from strategies.scoring.value_head_file import load_head


def loaded(runtime: Runtime, head: Path | None) -> dict[str, ValueFunction]:
    """Self-evaluation, and the trained head of that folder. Raises ModelLoadError."""
    scorers: dict[str, ValueFunction] = {"self-eval": SelfEvaluation()}
    if head is not None:
        scorers["head"] = load_head(head, runtime.info, runtime.tokenizer)
    return scorers
