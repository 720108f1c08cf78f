"""One row of a batch of logits: the stages it asked for, and the token history and states that they read."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from strategies.randomness import Purpose, Stream
from strategies.runtime import Generation
from strategies.sampling.penalties import MinTokens
from strategies.sampling.transform import Transform, TransformState
from strategies.sampling.truncation import Temperature

if TYPE_CHECKING:
    from strategies.text import Tokenizer

GREEDY_TEMPERATURE = 1e-5
"""Below this temperature decoding is greedy: dividing by it would overflow float32 logits."""


class Row:
    """Sampling state of one sequence (or of one node of its draft tree).

    stages: its transforms in order. states: by transform name. output: ids of the answer in order, those that were
    there before included; counts: how often each occurs. prompt_ids: the prompt in order.
    """

    __slots__ = ("_prompt", "counts", "greedy", "output", "prompt_ids", "stages", "states", "stream", "tokenizer")

    def __init__(
        self, generation: Generation, eos_token_ids: frozenset[int], tokenizer: "Tokenizer | None" = None
    ) -> None:
        """Raises InvalidRequest when a transform can't work with this model or this request."""
        self.greedy = generation.sampling.temperature < GREEDY_TEMPERATURE
        self.stream = Stream(generation.seed, generation.branch, Purpose.SAMPLE)
        self.prompt_ids: Sequence[int] = generation.prompt
        self.output: list[int] = []
        self.counts: Counter[int] = Counter()
        self.tokenizer = tokenizer
        self._prompt: frozenset[int] | None = None
        self.stages = stages_of(generation, eos_token_ids)
        self.states: dict[str, TransformState] = {}
        for stage in self.stages:
            state = stage.start(self)
            if state is not None:
                self.states[stage.name] = state
        for token in generation.answer:
            self.append(token)

    @property
    def num_outputs(self) -> int:
        return len(self.output)

    @property
    def prompt(self) -> frozenset[int]:
        """Distinct ids of the prompt; built on first use, since only the repetition penalty reads it."""
        if self._prompt is None:
            self._prompt = frozenset(self.prompt_ids)
        return self._prompt

    def append(self, token: int) -> None:
        """Records a generated token."""
        self.output.append(token)
        self.counts[token] += 1
        for state in self.states.values():
            state.advance(token)

    def fork(self) -> "Row":
        """An independent copy, for another continuation of the same tokens."""
        copy = Row.__new__(Row)
        copy.greedy, copy.stream, copy.stages, copy.tokenizer = self.greedy, self.stream, self.stages, self.tokenizer
        copy.prompt_ids, copy._prompt = self.prompt_ids, self._prompt
        copy.output, copy.counts = self.output.copy(), self.counts.copy()
        copy.states = {name: state.fork() for name, state in self.states.items()}
        return copy


def stages_of(generation: Generation, eos_token_ids: frozenset[int]) -> tuple[Transform, ...]:
    """All stages of a generation in the order in which they run: its transforms, minimum length, temperature."""
    sampling, stopping = generation.sampling, generation.stopping
    stages = [*sampling.transforms]
    endings = (frozenset() if stopping.ignore_eos else eos_token_ids) | stopping.stop_token_ids
    if stopping.min_tokens and endings:
        stages.append(MinTokens(min_tokens=stopping.min_tokens, endings=tuple(sorted(endings))))
    if sampling.temperature < GREEDY_TEMPERATURE:
        stages = [stage for stage in stages if stage.greedy]
    elif sampling.temperature != 1.0:
        stages.append(Temperature(temperature=sampling.temperature))
    return ordered(stages, sampling.order)


def ordered(stages: Sequence[Transform], order: Sequence[str]) -> tuple[Transform, ...]:
    """Stages in the default order, but that those named in `order` take the places of one another in that order."""
    stages = sorted(stages, key=lambda stage: stage.order())
    wanted = {name: place for place, name in enumerate(order)}
    places = [i for i, stage in enumerate(stages) if stage.name in wanted]
    moved = sorted((stages[i] for i in places), key=lambda stage: wanted[stage.name])
    for place, stage in zip(places, moved, strict=True):
        stages[place] = stage
    return tuple(stages)
