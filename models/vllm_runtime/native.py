"""Sampling by vLLM itself, for engines that speculate: vLLM refuses logits processors beside speculation, so requests
get what its own sampler has, in the same order as the pipeline's, and a 400 for the rest."""

from collections.abc import Callable, Mapping
from typing import Any

from strategies.errors import InvalidRequest
from strategies.randomness import Purpose, Stream
from strategies.runtime import Generation
from strategies.sampling.penalties import CountPenalty, RepetitionPenalty
from strategies.sampling.row import GREEDY_TEMPERATURE
from strategies.sampling.transform import Transform
from strategies.sampling.truncation import TopK, TopP

SEEDS = 2**63
REASON = "this server runs vLLM with speculation, where vLLM's own sampler draws"

FIELDS: Mapping[type[Transform], Callable[[Any], dict[str, Any]]] = {
    RepetitionPenalty: lambda stage: {"repetition_penalty": stage.penalty},
    CountPenalty: lambda stage: {"presence_penalty": stage.presence, "frequency_penalty": stage.frequency},
    TopK: lambda stage: {"top_k": stage.k},
    TopP: lambda stage: {"top_p": stage.p},
}


def native_parameters(generation: Generation) -> dict[str, Any]:
    """Fields of vLLM's SamplingParams. The seed is one of vLLM's: other tokens than the pipeline would draw, but the
    same ones every time. Raises InvalidRequest for what vLLM's sampler doesn't have."""
    sampling, stopping = generation.sampling, generation.stopping
    if sampling.order:
        raise InvalidRequest(
            f"{REASON}, in an order of its own; leave the order out, or use --runtime torch", "decoding"
        )
    if generation.logprobs_mode == "processed" and generation.logprobs is not None:
        raise InvalidRequest(f"{REASON}; it reports raw log-probabilities alone", "logprobs_mode")
    if generation.pooling is not None:
        raise InvalidRequest(f"{REASON}; there are no hidden states. --runtime torch has them", "pooling")
    seed = Stream(generation.seed, generation.branch, Purpose.SAMPLE).key(
        len(generation.prompt) + len(generation.answer)
    )
    fields: dict[str, Any] = {
        "temperature": 0.0 if sampling.temperature < GREEDY_TEMPERATURE else sampling.temperature,
        "seed": seed % SEEDS,
        "min_tokens": max(0, stopping.min_tokens - len(generation.answer)),
    }
    for transform in sampling.transforms:
        known = FIELDS.get(type(transform))
        counts = isinstance(transform, CountPenalty) and len(generation.answer) > 0  # vLLM would take it for prompt
        if known is None or counts:
            where = f"decoding.{transform.slot}" if transform.slot else transform.name
            raise InvalidRequest(f"{REASON}; it can't run {transform.name} here. --runtime torch can", where)
        fields |= known(transform)
    return fields
