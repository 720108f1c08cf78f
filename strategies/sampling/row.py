"""One row of a batch of logits: the parameters and the token history that transforms read."""

from collections import Counter

from strategies.randomness import Purpose, Stream
from strategies.runtime import Generation

GREEDY_TEMPERATURE = 1e-5
"""Below this temperature decoding is greedy: dividing by it would overflow float32 logits."""


class Row:
    """Sampling state of one sequence. `output` counts its generated tokens; `prompt` is the set of prompt ids."""

    __slots__ = (
        "_prompt",
        "_prompt_ids",
        "greedy",
        "masked_until",
        "min_tokens",
        "num_outputs",
        "output",
        "parameters",
        "stream",
    )

    def __init__(self, generation: Generation, eos_token_ids: frozenset[int]) -> None:
        self.parameters = generation.sampling
        self.greedy = generation.sampling.temperature < GREEDY_TEMPERATURE
        self.stream = Stream(generation.seed, generation.branch, Purpose.SAMPLE)
        self.min_tokens = generation.stopping.min_tokens
        stopping = generation.stopping
        eos = frozenset() if stopping.ignore_eos else eos_token_ids
        self.masked_until = sorted(eos | stopping.stop_token_ids)
        self.output: Counter[int] = Counter()
        self.num_outputs = 0
        self._prompt_ids = generation.prompt
        self._prompt: frozenset[int] | None = None

    @property
    def prompt(self) -> frozenset[int]:
        """Distinct ids of the prompt; built on first use, since only the repetition penalty reads it."""
        if self._prompt is None:
            self._prompt = frozenset(self._prompt_ids)
        return self._prompt

    def append(self, token: int) -> None:
        """Records a generated token."""
        self.output[token] += 1
        self.num_outputs += 1
