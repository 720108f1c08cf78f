"""What a request cost: OpenAI's counts, and under `decoding` what the model really computed."""

from typing import NotRequired

from typing_extensions import TypedDict


class PromptTokensDetails(TypedDict):
    """cached_tokens never exceeds prompt_tokens, also when several choices took the prompt from the cache."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """Draft tokens that became output, and those that did not."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class DecodingUsage(TypedDict):
    """The request's spend over all its choices (`strategies.budget.Spend`).

    target_tokens: computed by the model. draft_tokens: computed by a draft. drafted_tokens: verified in `rounds`
    forward passes; accepted_tokens of them became output, by level of the draft tree in accepted_by_level.
    cached_tokens: taken from the prefix cache instead. output_tokens: generated. scorer_calls: values a search asked
    for; scorer_tokens: computed for them by a reward model of its own. seconds: wall time since submission.
    budget_exhausted: the unit that ended the request, or null. search: counts of a search (nodes, finished, depth,
    explored_tokens, calls), over all prompts. block_efficiency: tokens per round, when there were any. picked: with
    speculation `auto`, the steps for which it picked each draft tree, "off" for none.
    """

    target_tokens: int
    draft_tokens: int
    cached_tokens: int
    output_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    accepted_by_level: list[int]
    rounds: int
    scorer_calls: int
    scorer_tokens: int
    forward_passes: int
    flops: float
    seconds: float
    budget_exhausted: str | None
    search: NotRequired[dict[str, int]]
    block_efficiency: NotRequired[float]
    picked: NotRequired[dict[str, int]]


class Usage(TypedDict):
    """Prompts count once each, however many choices; completion_tokens include the end-of-sequence token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[PromptTokensDetails]
    completion_tokens_details: NotRequired[CompletionTokensDetails]
    decoding: NotRequired[DecodingUsage]
