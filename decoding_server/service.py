"""From a validated request to running sequences: model names, defaults, seeds, limits, and the runtime's answer."""

import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from decoding_server.config import ServerConfig
from decoding_server.decoding import SEPARATOR, resolved_decoding, split_model
from decoding_server.errors import InvalidField
from decoding_server.metrics import STANDARD
from decoding_server.observability import RequestObserver
from decoding_server.programs import ProgramSandbox, load_prompts
from decoding_server.protocol.decoding import BudgetOptions
from decoding_server.protocol.generation import GenerationRequest
from decoding_server.running import Prompt, RunningRequest
from decoding_server.sampling import sampling_of
from decoding_server.searching import check_search
from decoding_server.tools.formats import FORMATS, ToolCallFormat, detect_format
from decoding_server.values import Scorers, load_scorers
from decoding_server.verifier import HttpVerifier
from strategies.budget import Budget, Meter
from strategies.errors import ContextLengthExceeded, ModelNotFound, ProgramsUnavailable
from strategies.runtime import Generation, GenerationStream, Runtime, SamplingParameters, StopConditions
from strategies.sampling.transform import Transform
from strategies.search.run import SearchRun
from strategies.search.search import Asked, Search
from strategies.speculative.speculation import Speculation

ORDINARY = frozenset({"top_k", "top_p", "min_p", "repetition_penalty", "presence_frequency_penalty"})
"""Transforms that every server has, which are no strategy of their own."""

UINT64 = 2**64 - 1


class SeedSource:
    """Seeds for requests that give none: from the system, or, with a server seed, a stream that every start repeats."""

    def __init__(self, server_seed: int | None) -> None:
        self.server_seed = server_seed
        self.requests = itertools.count()

    def next(self) -> int:
        if self.server_seed is None:
            return (
                int.from_bytes(os.urandom(8), "little") >> 11
            )  # 53 bits: exact in any JSON reader, when it is reported
        text = f"{self.server_seed}:{next(self.requests)}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 11


@dataclass(frozen=True, slots=True)
class Scoring:
    """Which log-probabilities a request wants: of generated tokens, and (echo) of the prompt's. None is off."""

    generated: int | None = None
    prompt: int | None = None


class Service:
    """The served model, as the endpoints see it."""

    def __init__(self, runtime: Runtime, config: ServerConfig, scorers: Scorers | None = None) -> None:
        """scorers: value functions by name; loaded here if None."""
        self.runtime = runtime
        self.config = config
        self.served_names = tuple(config.served_model_name) or (runtime.info.name,)
        self.created = int(time.time())
        self.seeds = SeedSource(config.seed)
        self.scorers = load_scorers(runtime, config) if scorers is None else scorers
        self.sandbox = ProgramSandbox(config)
        self.prompts = load_prompts(config)
        self.tool_format = tool_format_of(config.tool_call_parser, runtime.tokenizer.chat_template)
        markers = () if self.tool_format is None else self.tool_format.markers
        special = runtime.tokenizer.special_token_ids
        self.tool_markers = frozenset(special[marker] for marker in markers if marker in special)
        self.sampling_defaults = dict(runtime.info.sampling_defaults) if config.generation_config == "auto" else {}

    async def close(self) -> None:
        """Closes connections to others and ends programs; the runtime is the caller's."""
        await self.sandbox.close()
        for scorer in self.scorers.values():
            verifier = getattr(scorer, "inner", scorer)
            if isinstance(verifier, HttpVerifier):
                await verifier.close()

    def model_name(self, requested: str | None) -> str:
        """The name to answer with: the client's own, or the first served one. Raises ModelNotFound."""
        if requested is None:
            return self.served_names[0]
        if split_model(requested, self.served_names)[0] not in self.served_names:
            raise self.no_such_model(requested)
        return requested

    @property
    def listed_names(self) -> list[str]:
        """What /v1/models lists: served names, and the first of them with each preset."""
        return [*self.served_names, *(f"{self.served_names[0]}{SEPARATOR}{preset}" for preset in self.config.presets)]

    def no_such_model(self, requested: str) -> ModelNotFound:
        return ModelNotFound(
            f"The model '{requested[:100]}' does not exist. This server serves: {', '.join(self.served_names)}."
        )

    async def prepare(
        self,
        request: GenerationRequest,
        prompts: list[Prompt],
        *,
        default_max_tokens: int | None = None,
        prompt_field: str = "prompt",
    ) -> list[Prompt]:
        """To be awaited before `submit`, which takes the prompts as they are then: opens what the request needs, and
        does what would stop other requests' streams there. Raises InvalidRequest, ProgramsUnavailable."""
        search = None if request.decoding is None else request.decoding.search
        if search is None:
            return prompts
        if search.runs_programs:
            await self.sandbox.ready()
        self._check_limits(request, prompts, len(prompts) * request.choices_per_prompt)
        most = self.stopping(request, default_max_tokens).max_tokens or None
        asked = [
            Asked(one.text if one.question is None else one.question, one.question is not None, most) for one in prompts
        ]
        with wire_names(request, prompt_field):
            found = await search.prepared(asked, self.runtime, self.prompts)
        return [replace(one, prepared=known) for one, known in zip(prompts, found, strict=True)]

    def submit(
        self,
        request: GenerationRequest,
        prompts: list[Prompt],
        scoring: Scoring,
        *,
        choices: int | None = None,
        default_max_tokens: int | None = None,
        prompt_field: str = "prompt",
        observer: RequestObserver,
        structure: Transform | None = None,
        visible_special_tokens: frozenset[int] = frozenset(),
        parsed: str | None = None,
    ) -> RunningRequest:
        """Queues `choices` (default: n) of every prompt, prompt by prompt. Raises InvalidRequest, QueueFull,
        KeyLimited, RuntimeUnavailable.

        Choice i of any prompt draws the noise of branch (i,), so a prompt's text doesn't depend on its batch.
        parsed: the field, if any, for whose sake the whole answer is parsed afterwards (tools).
        """
        choices = choices or request.choices_per_prompt
        search = None if request.decoding is None else request.decoding.search
        self._check_limits(request, prompts, len(prompts) * choices)
        sampling = self.sampling(request, structure)
        stopping = self.stopping(request, default_max_tokens)
        if search is not None:
            check_search(
                search,
                request,
                sampling,
                choices,
                scoring.generated is not None,
                scoring.prompt is not None,
                structure,
                parsed,
                self.scorers,
            )
        seed = self.seeds.next() if request.seed is None else request.seed & UINT64
        budget, leave = budget_of(request), observer.leave
        if leave is not None:
            budget = leave.key.capped(budget)
        meter = Meter(budget)
        generations = [
            Generation(
                prompt=prompt.tokens,
                sampling=sampling,
                stopping=stopping,
                seed=seed,
                branch=(choice,),
                logprobs=scoring.generated,
                prompt_logprobs=scoring.prompt,
                logprobs_mode=request.logprobs_mode or "raw",
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
                skip_special_tokens=request.skip_special_tokens is not False,
                visible_special_tokens=visible_special_tokens,
                speculation=speculation_of(request),
                tenant="" if leave is None else leave.key.tenant,
                traced=request.decoding is not None and request.decoding.trace == "full",
                meter=meter,
            )
            for prompt in prompts
            for choice in range(choices)
        ]
        searches: list[SearchRun] = []
        streams: Sequence[GenerationStream]
        if leave is not None:
            leave.queue(len(generations))
        with wire_names(request, prompt_field):
            if search is None:
                streams = self.runtime.submit(generations)
            else:
                searches = self._begin_searches(search, generations[::choices], prompts, choices)
                streams = [stream for run in searches for stream in run.streams]
        resolved = resolved_decoding(generations[0], self.runtime.info.eos_token_ids, search)
        observer.described(
            self.model_name(request.model),
            strategy_of(generations[0], search),
            stream=bool(request.stream),
            n=request.choices_per_prompt,
            max_tokens=stopping.max_tokens,
            temperature=sampling.temperature,
            top_p=request.top_p,
        )
        observer.submitted(meter, sum(len(p.tokens) for p in prompts), len(streams), [p.text for p in prompts])
        return RunningRequest(prompts, choices, streams, meter, resolved, observer, searches)

    def _begin_searches(
        self, search: Search, generations: Sequence[Generation], prompts: Sequence[Prompt], choices: int
    ) -> list[SearchRun]:
        """One for each prompt, or none. Raises as `submit`, and ProgramsUnavailable."""
        if search.runs_programs and self.sandbox.opened is None:
            raise ProgramsUnavailable("it has not been opened")
        runs: list[SearchRun] = []
        try:
            for generation, prompt in zip(generations, prompts, strict=True):
                runs.append(
                    SearchRun(
                        search,
                        self.runtime,
                        generation,
                        n=choices,
                        scorers=self.scorers,
                        sandbox=self.sandbox.opened if search.runs_programs else None,
                        prompts=self.prompts,
                        prompt_text=prompt.text,
                        question=prompt.question,
                        prepared=prompt.prepared,
                    )
                )
        except Exception:
            for run in runs:
                run.cancel()
            raise
        return runs

    def _check_limits(self, request: GenerationRequest, prompts: list[Prompt], sequences: int) -> None:
        config = self.config
        if request.choices_per_prompt > config.max_n:
            raise InvalidField(f"'n' must be at most {config.max_n}.", "n")
        if len(prompts) > config.max_prompts:
            raise InvalidField(f"'prompt' may hold at most {config.max_prompts} prompts.", "prompt")
        if sequences > config.max_waiting:
            raise InvalidField(
                f"The request asks for {sequences} sequences; at most {config.max_waiting} may wait at once.",
                "n" if request.choices_per_prompt > 1 else "prompt",
            )
        if len(request.stop) > config.max_stop:
            raise InvalidField(f"'stop' may have at most {config.max_stop} strings.", "stop")
        if (request.prompt_logprobs or 0) > config.max_logprobs:
            raise InvalidField(f"'prompt_logprobs' must be at most {config.max_logprobs}.", "prompt_logprobs")

    def sampling(self, request: GenerationRequest, structure: Transform | None = None) -> SamplingParameters:
        """The request's pipeline; see `sampling_of`. Raises InvalidField."""
        self.check_tokens(request.logit_bias, "logit_bias")
        self.check_tokens(request.allowed_token_ids or (), "allowed_token_ids")
        return sampling_of(request, self.sampling_defaults, self.runtime.tokenizer, structure)

    def stopping(self, request: GenerationRequest, default_max_tokens: int | None) -> StopConditions:
        limit = default_max_tokens if request.token_limit is None else request.token_limit
        least = request.min_tokens or 0
        if limit is not None and least > limit:
            raise InvalidField(f"'min_tokens' is {least}, more than the {limit} tokens allowed.", "min_tokens")
        stop_ids = frozenset(request.stop_token_ids or ())
        self.check_tokens(stop_ids, "stop_token_ids")
        return StopConditions(
            max_tokens=limit,
            min_tokens=least,
            stop=tuple(request.stop),
            stop_token_ids=stop_ids,
            ignore_eos=bool(request.ignore_eos),
            include_stop=bool(request.include_stop_str_in_output),
        )

    def truncated(self, request: GenerationRequest, tokens: list[int]) -> list[int]:
        """The prompt, cut to `truncate_prompt_tokens` if that is set. Raises InvalidField."""
        limit = request.truncate_prompt_tokens
        if limit is None:
            return tokens
        longest = self.runtime.info.max_model_len - max(1, request.token_limit or 0)
        if limit > longest:
            raise InvalidField(
                f"'truncate_prompt_tokens' is {limit}; the context has room for {longest} prompt tokens.",
                "truncate_prompt_tokens",
            )
        limit = max(1, longest) if limit == -1 else limit
        if limit == 0:
            raise InvalidField("'truncate_prompt_tokens' must not be 0.", "truncate_prompt_tokens")
        return tokens[:limit] if request.truncation_side == "right" else tokens[-limit:]

    def check_tokens(self, tokens: Iterable[int], param: str) -> None:
        """Raises InvalidField for an id that is not in the vocabulary."""
        size = self.runtime.info.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise InvalidField(f"'{param}': token id {token} is outside the vocabulary of {size} tokens.", param)


def strategy_of(generation: Generation, search: Search | None = None) -> str:
    """The label of a request in metrics: its search, else its speculation, else the transform that gives it its
    character."""
    if search is not None:
        return search.name
    if generation.speculation is not None:
        return generation.speculation.name
    special = [one.name for one in generation.sampling.transforms if one.slot and one.name not in ORDINARY]
    return special[-1] if special else STANDARD


def speculation_of(request: GenerationRequest) -> Speculation | None:
    asked = None if request.decoding is None else request.decoding.speculation
    return None if asked is None else asked.resolved(seeded=request.seed is not None)


def tool_format_of(parser: str, chat_template: str | None) -> ToolCallFormat | None:
    """The format of `--tool-call-parser`, or the one that the chat template shows."""
    name = detect_format(chat_template) if parser == "auto" else parser
    return FORMATS.get(name or "none")


@contextmanager
def wire_names(request: GenerationRequest, prompt_field: str) -> Iterator[None]:
    """A ContextLengthExceeded names the request's own fields."""
    try:
        yield
    except ContextLengthExceeded as error:
        names = {"prompt": prompt_field, "max_tokens": token_limit_param(request)}
        raise ContextLengthExceeded(str(error), names.get(error.param or "", error.param)) from error


def token_limit_param(request: GenerationRequest) -> str:
    """The field that sets the token limit of this request."""
    return "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"


def budget_of(request: GenerationRequest) -> Budget:
    """The limits of the request; of two time limits the shorter one."""
    options = (request.decoding.budget if request.decoding is not None else None) or BudgetOptions()
    limits = [options.seconds, None if request.t_max_predict_ms is None else request.t_max_predict_ms / 1000]
    seconds = min((limit for limit in limits if limit is not None), default=None)
    return Budget(options.forward_tokens, options.output_tokens, options.flops, seconds)


def sampling_origin(defaults: Mapping[str, float]) -> str:
    """One line for the log: which sampling values hold when a request gives none, and why."""
    if not defaults:
        return "OpenAI's (temperature 1, top_p 1)"
    values = ", ".join(f"{name} {value:g}" for name, value in sorted(defaults.items()))
    return f"the model's generation_config ({values}), then OpenAI's; --generation-config none ignores the model's"
