"""The Runtime protocol: what a decoding strategy, and the HTTP layer, may ask of a model.

`strategies` defines the interface, `models` implements it. The interface is stateless: a caller passes token ids, and
the runtime finds out by itself what it has already computed.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from strategies.budget import Meter
from strategies.text import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """One row of the sampling pipeline; every default switches its transform off.

    temperature: 0 is greedy (lowest id among equals). top_k: 0 is off. top_p in (0, 1]. min_p in [0, 1].
    repetition_penalty > 0 counts prompt and output (Keskar et al. 2019, CTRL); presence and frequency penalties count
    output only (OpenAI's definition). logit_bias is added to the logits of the given ids.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StopConditions:
    """When a sequence ends.

    max_tokens: None means up to the context limit; 0 generates nothing (scoring of the prompt only).
    min_tokens: below it, end-of-sequence ids and `stop_token_ids` are masked and stop strings do not count.
    stop: strings, excluded from the text. stop_token_ids: ids, excluded from the text, in addition to the model's
    end-of-sequence ids, which `ignore_eos` switches off.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """One sequence to generate.

    seed and branch key the counter-based noise: equal (seed, branch, prompt length) gives equal noise, whatever else
    runs. `branch` is the choice index, then, for searches, the path in the tree.
    logprobs: None is off, 0 is the chosen token only, N adds the N most likely. They are raw model log-probabilities
    (before the pipeline). prompt_logprobs likewise for the prompt's own tokens (which then are all computed, no cache).
    """

    prompt: Sequence[int]
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    stopping: StopConditions = field(default_factory=StopConditions)
    seed: int = 0
    branch: tuple[int, ...] = (0,)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    meter: Meter = field(default_factory=Meter)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability, and the most likely tokens, best first (the same float where they coincide)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Delta:
    """What one step adds to a sequence.

    text: text that is final (never half a character, never part of what may still become a stop string).
    tokens: the sampled ids, text or not, the stopping one included. logprobs: entries whose text is out by now, when
    asked for.
    prompt_logprobs: in the first delta only, when asked for; its first entry is None.
    finish_reason: on the last delta. stop_reason: the stop string or stop id that matched (None for end of sequence),
    or "budget:<unit>". stop_token: the last id in `tokens` ended the sequence and has no text.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    stop_token: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is served. `fingerprint` identifies weights, dtype and kernels: a seed is reproducible while it is equal.

    matmul_parameters: weights that multiply each token (embedding look-up excluded, output head included).
    """

    name: str
    source: str
    architecture: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    dtype: str
    device: str
    num_layers: int
    hidden_size: int
    matmul_parameters: int
    fingerprint: str
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)

    def flops(self, tokens: int, context: int) -> float:
        """Operations of a forward over `tokens` new tokens that follow `context` earlier ones: a multiply and an add
        per weight and token, plus scores and weighted values of attention (4 * hidden per layer and visible token)."""
        visible = tokens * context + tokens * (tokens + 1) // 2
        return 2.0 * self.matmul_parameters * tokens + 4.0 * self.num_layers * self.hidden_size * visible


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """A snapshot for health checks and metrics. kv_slots_used counts running sequences and the prefix cache."""

    state: Literal["loading", "ready", "draining", "dead"]
    detail: str
    running: int
    waiting: int
    kv_slots: int
    kv_slots_used: int
    kv_slots_cached: int
    steps: int


class GenerationStream(Protocol):
    """The answer to one `Generation`: iterate for deltas; the last has a finish_reason.

    Iteration raises RequestFailed (this request only) or RuntimeUnavailable (the engine died).
    """

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def cancel(self) -> None:
        """Frees the sequence before the next step; iteration then raises RequestFailed. Safe at any time, also after
        the end."""


class Runtime(Protocol):
    """A served model. All methods are called on the event loop and return at once."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def submit(self, generations: Sequence[Generation]) -> Sequence[GenerationStream]:
        """Queues all of them, or none.

        Raises ContextLengthExceeded, InvalidRequest, QueueFull, RuntimeUnavailable.
        """

    def status(self) -> RuntimeStatus: ...

    def drain(self) -> None:
        """Refuses new work from now on; what runs goes on."""

    def close(self) -> None:
        """Stops the engine; unfinished streams raise RuntimeUnavailable."""
