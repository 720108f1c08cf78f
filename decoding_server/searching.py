"""What a search can be combined with: everything else is refused before anything runs."""

from collections.abc import Mapping

from decoding_server.errors import InvalidField
from decoding_server.protocol.generation import GenerationRequest
from strategies.runtime import SamplingParameters
from strategies.sampling.transform import Transform
from strategies.scoring.value import ValueFunction
from strategies.search.search import Search


def check_search(
    search: Search,
    request: GenerationRequest,
    sampling: SamplingParameters,
    choices: int,
    wants_logprobs: bool,
    scores_prompt: bool,
    structure: Transform | None,
    parsed: str | None,
    scorers: Mapping[str, ValueFunction],
) -> None:
    """Raises InvalidField. choices: answers per prompt; wants_logprobs: log-probabilities of the answer are wanted;
    scores_prompt: those of the prompt; parsed: the field for whose sake the whole answer is parsed."""
    name = search.name
    if request.decoding is not None and request.decoding.trace == "full":
        raise InvalidField(
            f"'decoding.trace' tells of the steps of one sequence; for {name!r} set 'decoding.search.trace'.",
            "decoding.trace",
        )
    if choices > request.choices_per_prompt:
        raise InvalidField(f"'best_of' can't be combined with the search {name!r}, which chooses itself.", "best_of")
    if choices > search.most_answers:
        raise InvalidField(f"'n' must be at most {search.most_answers} with this search ({name}).", "n")
    if scores_prompt:
        raise InvalidField(
            f"Log-probabilities of the prompt can't be combined with the search {name!r}.",
            "prompt_logprobs" if request.prompt_logprobs is not None else "echo",
        )
    if request.token_limit == 0:
        raise InvalidField(f"'max_tokens' must be at least 1 with the search {name!r}.", "max_tokens")
    if request.logprobs_mode == "processed":
        raise InvalidField(f"'logprobs_mode' must be 'raw' with the search {name!r}.", "logprobs_mode")
    if not search.whole_answers:
        if structure is not None or parsed is not None:
            field = parsed or ("response_format" if request.structured_outputs is None else "structured_outputs")
            raise InvalidField(f"'{field}' can't be combined with {name!r}, which goes step by step.", field)
        for transform in sampling.transforms:
            if transform.observes:
                message = f"{transform.name!r} adapts to every token drawn and can't be combined with {name!r}."
                raise InvalidField(f"'decoding.search': {message}", "decoding.search")
    search.check(scorers)
    speculation = None if request.decoding is None else request.decoding.speculation
    search.check_sampling(sampling, speculation, logprobs=wants_logprobs)
