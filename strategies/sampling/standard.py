"""The sampling fields that every OpenAI-compatible server knows, as a pipeline."""

from collections.abc import Mapping, Sequence

from strategies.runtime import SamplingParameters
from strategies.sampling.penalties import CountPenalty, LogitBias, RepetitionPenalty
from strategies.sampling.transform import Transform
from strategies.sampling.truncation import MinP, TopK, TopP


def sampling(
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    transforms: Sequence[Transform] = (),
    order: Sequence[str] = (),
) -> SamplingParameters:
    """Sampling parameters in the fields' own terms; every default switches its transform off.

    temperature: 0 is greedy (lowest id among equals). transforms: further ones. order: see `SamplingParameters`.
    """
    chosen: list[Transform] = []
    if repetition_penalty != 1.0:
        chosen.append(RepetitionPenalty(penalty=repetition_penalty))
    if presence_penalty or frequency_penalty:
        chosen.append(CountPenalty(presence=presence_penalty, frequency=frequency_penalty))
    if logit_bias:
        chosen.append(LogitBias(bias=logit_bias))
    if top_k > 0:
        chosen.append(TopK(k=top_k))
    if top_p < 1.0:
        chosen.append(TopP(p=top_p))
    if min_p > 0.0:
        chosen.append(MinP(p=min_p))
    return SamplingParameters(temperature, (*chosen, *transforms), tuple(order))
