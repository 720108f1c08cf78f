"""What the server calls in vLLM's workers, and hidden states of the tokens that logits are computed for, kept there for
as long as a step lasts."""

from typing import Any

from torch import Tensor

from models.vllm_runtime.orphan import follow_the_server


class LastHidden:
    """hidden: [R, H] of the latest rows of logits, by the order of the batch; None where nobody looks."""

    hidden: Tensor | None = None

    def of(self, row: int) -> Tensor:
        if self.hidden is None:
            raise RuntimeError("no hidden states were kept")
        return self.hidden[row]


LAST = LastHidden()
"""One for a worker's process: vLLM makes the processors and the model apart from one another."""


class WorkerExtension:
    """Mixed into vLLM's worker (`worker_extension_cls`), whose methods can be called from outside."""

    model_runner: Any

    def end_with_the_server(self) -> None:
        follow_the_server()

    def keep_hidden_states(self) -> None:
        """From now on `LAST` has the hidden states of every step."""
        model = self.model_runner.model
        compute = model.compute_logits

        def compute_logits(hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
            LAST.hidden = hidden_states
            return compute(hidden_states, *arguments, **options)

        model.compute_logits = compute_logits
