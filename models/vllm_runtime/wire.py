"""A generation on its way to the processor that samples it, in another process: text inside of vLLM's `extra_args`.

Only what the pipeline needs travels; the tokens themselves the processor has from vLLM.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.registry import registered
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.transform import Transform
from strategies.text import Tokenizer

KEY = "decoding_server"
"""The entry of `extra_args`."""
KEPT = 256
"""Transforms that a decoder remembers."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a processor is told of one request.

    key: its number. generation: without prompt, to be put in by `with_tokens`. answer: tokens at the end of vLLM's
    prompt that are answer already. processed: how many of the most likely tokens of the distribution drawn from are to
    be reported with every token, None for nothing. hidden: whether the last hidden state is.
    """

    key: int
    generation: Generation
    answer: int
    processed: int | None
    hidden: bool


def encode(generation: Generation, key: int) -> dict[str, str]:
    """The `extra_args` of a request."""
    sampling, stopping = generation.sampling, generation.stopping
    processed = generation.logprobs if generation.logprobs_mode == "processed" else None
    fields = {
        "key": key,
        "seed": generation.seed,
        "branch": generation.branch,
        "temperature": sampling.temperature,
        "transforms": [(transform.name, transform.encoded()) for transform in sampling.transforms],
        "order": sampling.order,
        "min_tokens": stopping.min_tokens,
        "stop_token_ids": sorted(stopping.stop_token_ids),
        "ignore_eos": stopping.ignore_eos,
        "answer": len(generation.answer),
        "processed": processed,
        "hidden": generation.pooling is not None,
    }
    return {KEY: json.dumps(fields, separators=(",", ":"))}


class Decoder:
    """The inverse of `encode`, for the tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: OrderedDict[tuple[str, str], Transform] = OrderedDict()

    def decode(self, extra_args: Mapping[str, Any] | None) -> Sent | None:
        """None for a request that isn't ours (vLLM warms up with some of its own)."""
        text = (extra_args or {}).get(KEY)
        if text is None:
            return None
        fields = json.loads(text)
        generation = Generation(
            prompt=(),
            sampling=SamplingParameters(
                fields["temperature"],
                tuple(self._transform(name, text) for name, text in fields["transforms"]),
                tuple(fields["order"]),
            ),
            stopping=StopConditions(
                min_tokens=fields["min_tokens"],
                stop_token_ids=frozenset(fields["stop_token_ids"]),
                ignore_eos=fields["ignore_eos"],
            ),
            seed=fields["seed"],
            branch=tuple(fields["branch"]),
        )
        return Sent(fields["key"], generation, fields["answer"], fields["processed"], fields["hidden"])

    def _transform(self, name: str, text: str) -> Transform:
        """Requests of one search, and of one client, repeat theirs."""
        known = self._known.pop((name, text), None)
        if known is None:
            known = registered("transform")[name].decoded(text, self._tokenizer)
        self._known[name, text] = known
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return known


def split(tokens: Sequence[int], answer: int) -> tuple[Sequence[int], Sequence[int]]:
    """vLLM's prompt as prompt and answer so far."""
    end = len(tokens) - answer
    return tokens[:end], tokens[end:]
