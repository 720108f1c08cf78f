"""From a validated request to running sequences: model names, defaults, seeds, limits, and the runtime's answer."""

import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from decoding_server.config import ServerConfig
from decoding_server.errors import InvalidField
from decoding_server.protocol.generation import BudgetOptions, GenerationRequest
from decoding_server.running import Prompt, RunningRequest
from strategies.budget import Budget, Meter
from strategies.errors import ContextLengthExceeded, ModelNotFound
from strategies.runtime import Generation, Runtime, SamplingParameters, StopConditions

UINT64 = 2**64 - 1


class SeedSource:
    """Seeds for requests that give none: from the system, or, with a server seed, a stream that every start repeats."""

    def __init__(self, server_seed: int | None) -> None:
        self.server_seed = server_seed
        self.requests = itertools.count()

    def next(self) -> int:
        if self.server_seed is None:
            return int.from_bytes(os.urandom(8), "little")
        text = f"{self.server_seed}:{next(self.requests)}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Scoring:
    """Which log-probabilities a request wants: of generated tokens, and (echo) of the prompt's. None is off."""

    generated: int | None = None
    prompt: int | None = None


class Service:
    """The served model, as the endpoints see it."""

    def __init__(self, runtime: Runtime, config: ServerConfig) -> None:
        self.runtime = runtime
        self.config = config
        self.served_names = tuple(config.served_model_name) or (runtime.info.name,)
        self.created = int(time.time())
        self.seeds = SeedSource(config.seed)
        self.sampling_defaults = dict(runtime.info.sampling_defaults) if config.generation_config == "auto" else {}

    def model_name(self, requested: str | None) -> str:
        """The name to answer with: the client's own, or the first served one. Raises ModelNotFound."""
        if requested is None:
            return self.served_names[0]
        if requested not in self.served_names:
            raise ModelNotFound(
                f"The model '{requested[:100]}' does not exist. This server serves: {', '.join(self.served_names)}."
            )
        return requested

    def submit(
        self,
        request: GenerationRequest,
        prompts: list[Prompt],
        scoring: Scoring,
        *,
        default_max_tokens: int | None = None,
        prompt_field: str = "prompt",
    ) -> RunningRequest:
        """Queues n choices of every prompt, prompt by prompt. Raises InvalidRequest, QueueFull, RuntimeUnavailable.

        Choice i of any prompt draws the noise of branch (i,), so a prompt's text doesn't depend on its batch.
        """
        choices = request.choices_per_prompt
        self._check_limits(request, len(prompts) * choices)
        sampling = self.sampling(request)
        stopping = self.stopping(request, default_max_tokens)
        seed = self.seeds.next() if request.seed is None else request.seed & UINT64
        meter = Meter(_budget(request))
        generations = [
            Generation(
                prompt=prompt.tokens,
                sampling=sampling,
                stopping=stopping,
                seed=seed,
                branch=(choice,),
                logprobs=scoring.generated,
                prompt_logprobs=scoring.prompt,
                meter=meter,
            )
            for prompt in prompts
            for choice in range(choices)
        ]
        try:
            streams = self.runtime.submit(generations)
        except ContextLengthExceeded as error:
            wire_names = {"prompt": prompt_field, "max_tokens": token_limit_param(request)}
            raise ContextLengthExceeded(str(error), wire_names.get(error.param or "", error.param)) from error
        return RunningRequest(prompts, choices, streams, meter)

    def _check_limits(self, request: GenerationRequest, sequences: int) -> None:
        config = self.config
        if request.choices_per_prompt > config.max_n:
            raise InvalidField(f"'n' must be at most {config.max_n}.", "n")
        if sequences > config.max_waiting:
            raise InvalidField(
                f"The request asks for {sequences} sequences; at most {config.max_waiting} may wait at once.",
                "n" if request.choices_per_prompt > 1 else "prompt",
            )
        if len(request.stop) > config.max_stop:
            raise InvalidField(f"'stop' may have at most {config.max_stop} strings.", "stop")

    def sampling(self, request: GenerationRequest) -> SamplingParameters:
        """The request's values, else the model's own defaults (generation_config), else OpenAI's."""
        defaults = self.sampling_defaults

        def value(given: float | None, name: str, fallback: float) -> float:
            return given if given is not None else defaults.get(name, fallback)

        self.check_tokens(request.logit_bias, "logit_bias")
        return SamplingParameters(
            temperature=value(request.temperature, "temperature", 1.0),
            top_k=max(0, min(int(value(request.top_k, "top_k", 0)), self.runtime.info.vocab_size)),
            top_p=value(request.top_p, "top_p", 1.0),
            min_p=value(request.min_p, "min_p", 0.0),
            repetition_penalty=value(request.repetition_penalty, "repetition_penalty", 1.0),
            presence_penalty=value(request.presence_penalty, "presence_penalty", 0.0),
            frequency_penalty=value(request.frequency_penalty, "frequency_penalty", 0.0),
            logit_bias=request.logit_bias,
        )

    def stopping(self, request: GenerationRequest, default_max_tokens: int | None) -> StopConditions:
        limit = default_max_tokens if request.token_limit is None else request.token_limit
        least = request.min_tokens or 0
        if limit is not None and least > limit:
            raise InvalidField(f"'min_tokens' is {least}, more than the {limit} tokens allowed.", "min_tokens")
        stop_ids = frozenset(request.stop_token_ids or ())
        self.check_tokens(stop_ids, "stop_token_ids")
        return StopConditions(limit, least, tuple(request.stop), stop_ids, bool(request.ignore_eos))

    def check_tokens(self, tokens: Iterable[int], param: str) -> None:
        """Raises InvalidField for an id that is not in the vocabulary."""
        size = self.runtime.info.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise InvalidField(f"'{param}': token id {token} is outside the vocabulary of {size} tokens.", param)


def token_limit_param(request: GenerationRequest) -> str:
    """The field that sets the token limit of this request."""
    return "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"


def _budget(request: GenerationRequest) -> Budget:
    options = (request.decoding.budget if request.decoding is not None else None) or BudgetOptions()
    return Budget(options.forward_tokens, options.output_tokens, options.flops, options.seconds)


def sampling_origin(defaults: Mapping[str, float]) -> str:
    """One line for the log: which sampling values hold when a request gives none, and why."""
    if not defaults:
        return "OpenAI's (temperature 1, top_p 1)"
    values = ", ".join(f"{name} {value:g}" for name, value in sorted(defaults.items()))
    return f"the model's generation_config ({values}), then OpenAI's; --generation-config none ignores the model's"
