"""The Runtime protocol: what a decoding strategy, and the HTTP layer, may ask of a model.

`strategies` defines the interface, `models` implements it. The interface is stateless: a caller passes token ids, and
the runtime finds out by itself what it has already computed.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from strategies.budget import Meter
from strategies.text import Tokenizer

if TYPE_CHECKING:
    from strategies.sampling.transform import Transform
    from strategies.speculative.speculation import Speculation

FinishReason = Literal["stop", "length"]
LogprobsMode = Literal["raw", "processed"]
Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """The sampling pipeline of one sequence.

    temperature: 0 is greedy (lowest id among equals). transforms: configured stages, at most one of a kind; they run
    in the default order (`strategies.sampling.transform.Stage`), but that those named in `order` take one another's
    places. See `strategies.sampling.standard.sampling` for the usual fields.
    """

    temperature: float = 1.0
    transforms: tuple["Transform", ...] = ()
    order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StopConditions:
    """When a sequence ends.

    max_tokens: None means up to the context limit; 0 generates nothing (scoring of the prompt only).
    min_tokens: below it, end-of-sequence ids and `stop_token_ids` are masked and stop strings do not count.
    stop: strings, excluded from the text unless include_stop. stop_token_ids: ids, excluded from the text unless
    include_stop, in addition to the model's end-of-sequence ids, which `ignore_eos` switches off.
    step_ends: strings that end a step of a search: the first of them behind a non-blank character of this generation's
    own text. The step keeps the string and whatever its last token adds behind it; `min_tokens` doesn't hold it back.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop: bool = False
    step_ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """One sequence to generate.

    answer: tokens of the answer that are there already, behind the prompt: the sequence goes on from them, and every
    transform, minimum length and grammar takes them for generated ones. max_tokens counts what comes after them.
    seed and branch key the counter-based noise: equal (seed, branch, number of tokens before) gives equal noise,
    whatever else runs. `branch` is the choice index, then, for searches, the path in the tree.
    logprobs: None is off, 0 is the chosen token only, N adds the N most likely. logprobs_mode: "raw" are the model's
    own (before the pipeline), "processed" those of the distribution the token was drawn from. prompt_logprobs: raw ones
    of the prompt's own tokens (which then are all computed, no cache).
    priority: smaller ones are admitted first; among equals the earlier. cache_salt: prompts share cached prefixes only
    with prompts of an equal salt. skip_special_tokens: whether special tokens have no text in the answer, but for
    visible_special_tokens. pooling: the mean or the last of the prompt's hidden states is wanted (after the final
    norm); mean computes them all, no cache. speculation: how draft tokens are proposed and verified, None for one token
    at a time; either way the output has the same distribution. tenant: whose it is; sequences of equal priority are
    admitted so that tenants have equally many running. traced: deltas tell of every token's candidates and of every
    round of speculation.
    """

    prompt: Sequence[int]
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    stopping: StopConditions = field(default_factory=StopConditions)
    seed: int = 0
    branch: tuple[int, ...] = (0,)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    meter: Meter = field(default_factory=Meter)
    logprobs_mode: LogprobsMode = "raw"
    priority: int = 0
    cache_salt: str = ""
    skip_special_tokens: bool = True
    visible_special_tokens: frozenset[int] = frozenset()
    pooling: Pooling | None = None
    speculation: "Speculation | None" = None
    answer: Sequence[int] = ()
    tenant: str = ""
    traced: bool = False

    @property
    def tokens(self) -> list[int]:
        """What the sequence starts from: prompt and answer so far."""
        return [*self.prompt, *self.answer]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability, and the most likely tokens, best first (the same float where they coincide).

    rank: of the token, 1 is the most likely; known for prompt tokens only, else 0.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


@dataclass(slots=True)
class Delta:
    """What one step adds to a sequence.

    text: text that is final (never half a character, never part of what may still become a stop string).
    tokens: the sampled ids, text or not, the stopping one included. logprobs: entries whose text is out by now, when
    asked for.
    prompt_logprobs: in the first delta only, when asked for; its first entry is None.
    finish_reason: on the last delta. stop_reason: the stop string or stop id that matched (None for end of sequence),
    or "budget:<unit>". stop_token: the last id in `tokens` ended the sequence and has no text.
    embedding: in the first delta only, when pooling was asked for; float32 [hidden_size].
    trace: records of the step, or of a search, when asked for.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    stop_token: bool = False
    embedding: list[float] | None = None
    step_end: bool = False
    trace: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is served. `fingerprint` identifies weights, dtype and kernels: a seed is reproducible while it is equal.

    matmul_parameters: weights that multiply each token (embedding look-up excluded, output head included).
    config_sha256, weights_index_sha256: of config.json, and of the weights whatever their precision here; empty where
    there are no files.
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
    config_sha256: str = ""
    weights_index_sha256: str = ""

    def flops(self, tokens: int, context: int) -> float:
        """Operations of a forward over `tokens` new tokens that follow `context` earlier ones: a multiply and an add
        per weight and token, plus scores and weighted values of attention (4 * hidden per layer and visible token)."""
        visible = tokens * context + tokens * (tokens + 1) // 2
        return 2.0 * self.matmul_parameters * tokens + 4.0 * self.num_layers * self.hidden_size * visible


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """A snapshot for health checks and metrics.

    kv_slots_used counts running sequences and the prefix cache; kv_slots_cached is what of it could be evicted. The
    last six are totals since the start, in tokens but for preemptions: prefix_cache_queries looked up,
    prefix_cache_hits found, prompt_tokens admitted, generation_tokens sampled, iteration_tokens computed.
    """

    state: Literal["loading", "ready", "draining", "dead"]
    detail: str
    running: int
    waiting: int
    kv_slots: int
    kv_slots_used: int
    kv_slots_cached: int
    steps: int
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    iteration_tokens: int = 0


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

    def submit(self, generations: Sequence[Generation], *, admitted: bool = False) -> Sequence[GenerationStream]:
        """Queues all of them, or none.

        admitted: they belong to a request that runs already (the next step of a search), so neither a full queue nor
        draining refuses them. Raises ContextLengthExceeded, InvalidRequest, QueueFull, RuntimeUnavailable.
        """

    def status(self) -> RuntimeStatus: ...

    def drain(self) -> None:
        """Refuses new work from now on; what runs goes on."""

    def close(self) -> None:
        """Stops the engine; unfinished streams raise RuntimeUnavailable."""
