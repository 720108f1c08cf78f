"""Whole sampled answers cut into steps, and the draw of the next step among them (Ma et al. 2024)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strategies.runtime import TokenLogprob
from strategies.search.node import Node
from strategies.search.phi_options import StepOptions
from strategies.search.plackett_luce import draw_without_replacement
from strategies.search.predictive import Rollout, first_line_distribution
from strategies.text import TextAssembler, Tokenizer


@dataclass(frozen=True, slots=True)
class DrawnStep:
    """The step to take, and the probability it was drawn with."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    probability: float


class RolloutPool:
    """Rollouts that begin with the path of chosen steps; those that don't are dropped. Starts at the empty path."""

    def __init__(self, tokenizer: Tokenizer, options: StepOptions, lines: int) -> None:
        """lines: steps, from where a rollout was sampled, that it is valued by."""
        self._tokenizer, self._options, self._lines = tokenizer, options, lines
        self._path: list[str] = []
        self._entries: list[tuple[Rollout, list[tuple[int, ...]], list[tuple[TokenLogprob, ...]], Node]] = []

    def add(self, nodes: Sequence[Node]) -> None:
        """Answers sampled from the end of the path."""
        before = len(self._path)
        for node in nodes:
            lengths = step_lengths(node.step, self._tokenizer, self._options)
            ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
            steps = [node.step[end - length : end] for length, end in zip(lengths, ends, strict=True)]
            logprobs = [node.logprobs[end - length : end] for length, end in zip(lengths, ends, strict=True)]
            ahead = [entry.logprob for entries in logprobs[: self._lines] for entry in entries]
            texts = [b"".join(map(self._tokenizer.token_bytes, step)).decode("utf-8", "replace") for step in steps]
            rollout = Rollout((*self._path, *texts), math.fsum(ahead), len(ahead))
            self._entries.append((rollout, [()] * before + steps, [()] * before + logprobs, node))

    def draw(self, tau: float, uniforms: Callable[[int], Sequence[float]]) -> DrawnStep | None:
        """Draws the next step, takes it into the path and keeps the rollouts that go on with it; None if no rollout
        goes on. uniforms: as many as it is asked for."""
        depth = len(self._path)
        lines, probabilities = first_line_distribution([entry[0] for entry in self._entries], self._path, tau)
        if not lines:
            return None
        logprobs = [math.log(p) if p > 0 else -math.inf for p in probabilities]
        (chosen,) = draw_without_replacement(logprobs, uniforms(len(lines)), 1)
        self._path.append(lines[chosen])
        self._entries = [entry for entry in self._entries if list(entry[0].lines[: depth + 1]) == self._path]
        _, steps, entries, _ = self._entries[0]
        return DrawnStep(steps[depth], entries[depth], probabilities[chosen])

    def answers(self, prefix: tuple[int, ...]) -> list[Node]:
        """The rollouts left whose tokens begin with `prefix`, the likeliest first."""
        kept = sorted(self._entries, key=lambda entry: -entry[0].value)
        return [node for *_, node in kept if node.tokens[: len(prefix)] == prefix]


def step_lengths(tokens: Sequence[int], tokenizer: Tokenizer, options: StepOptions) -> list[int]:
    """Tokens of each step of a text, as rollouts would have been cut: at the token that completes a step's end."""
    lengths: list[int] = []
    assembler, length = TextAssembler(step_ends=options.step_ends), 0
    for token in tokens:
        assembler.push(tokenizer.token_bytes(token))
        length += 1
        if assembler.step_end is not None or length == options.cap:
            lengths.append(length)
            assembler, length = TextAssembler(step_ends=options.step_ends), 0
    return [*lengths, length] if length else lengths
