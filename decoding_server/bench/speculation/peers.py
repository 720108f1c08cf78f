"""transformers' own speculation on the same prompts: assisted generation and prompt lookup, one prompt at a time."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

LOOKUP_TOKENS = 10
MODES = ("transformers", "transformers prompt lookup", "transformers assisted")


class TransformersPeer:
    """The target, and the draft if there is one, in the same precision."""

    def __init__(self, target: Path, draft: Path | None, dtype: str) -> None:
        from transformers import AutoModelForCausalLM  # a slow import, wanted for this peer only

        def load(folder: Path) -> Any:
            return AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
            ).eval()

        self._target = load(target)
        self._draft = None if draft is None else load(draft)

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES if self._draft is not None else MODES[:2]

    @torch.inference_mode()
    def run(
        self, mode: str, prompts: Sequence[Sequence[int]], temperature: float, max_tokens: int
    ) -> tuple[int, float]:
        """(tokens, seconds) of all prompts in turn, prefill included: `generate` keeps no cache between calls."""
        options: dict[str, Any] = {"max_new_tokens": max_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        if mode == MODES[1]:
            options["prompt_lookup_num_tokens"] = LOOKUP_TOKENS
        if mode == MODES[2]:
            options["assistant_model"] = self._draft
        tokens, started = 0, time.perf_counter()
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            output = self._target.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            tokens += output.shape[1] - ids.shape[1]
        return tokens, time.perf_counter() - started
