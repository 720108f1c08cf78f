"""Beam search over tokens: the most likely answer, approximately (`beam_pool` has the rules).

Nothing is drawn: each step reads the most likely next tokens of every live hypothesis. By default they are those of
the request's own pipeline (penalties, bias, temperature, truncation), which is the distribution that a request without
a search samples from; at temperature 0, which would leave one token, temperature 1 is used. "raw" reads the model's
own probabilities, without any pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from strategies.answer_text import AnswerText
from strategies.errors import InvalidRequest
from strategies.runtime import SamplingParameters, TokenLogprob
from strategies.search.beam_pool import BeamPool, EarlyStopping, Hypothesis, offers_needed
from strategies.search.committed_prefix import committed_length
from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.search import Search

if TYPE_CHECKING:
    from strategies.speculative.speculation import Speculation

COMMIT_BLOCK = 8
"""Tokens that all hypotheses share are sent in blocks of at least so many: each block is a node."""


class Beam(Search):
    """Keeps the most likely token sequences of each length and returns the best that ended."""

    name: ClassVar = "beam"
    draws: ClassVar = False

    width: Annotated[int, Field(ge=1, le=32, description="Hypotheses that live at each length.")] = 4
    length_penalty: Annotated[
        float,
        Field(ge=-5, le=5, description="Scores are log p / length ** this: 0 ranks by probability, 1 by its mean."),
    ] = 1.0
    early_stopping: Annotated[
        EarlyStopping,
        Field(
            description="With `width` finished hypotheses, end at once; when no live one beats them at its present "
            "length; or when none can at any length."
        ),
    ] = "never"
    scores: Annotated[
        Literal["processed", "raw"],
        Field(description="Log-probabilities behind the request's pipeline, or the model's own."),
    ] = "processed"

    @property
    def most_answers(self) -> int:
        return self.width

    def check_sampling(
        self, sampling: SamplingParameters, speculation: "Speculation | None", *, logprobs: bool
    ) -> None:
        if speculation is not None:
            raise InvalidRequest(
                "'decoding.speculation' can't be combined with the search 'beam', which draws no tokens",
                "decoding.speculation",
            )
        if logprobs and self.pipeline(sampling) is not None:
            raise InvalidRequest(
                "'logprobs' are the model's own, which the search 'beam' only reads with \"scores\": \"raw\", or at "
                "temperature 1 without samplers and penalties",
                "logprobs",
            )
        demands = [one.name for one in sampling.transforms if one.slot is None]
        if self.scores == "raw" and demands:
            raise InvalidRequest(
                f"the model's own scores know nothing of {', '.join(demands)}; use 'processed'",
                "decoding.search.scores",
            )

    def pipeline(self, sampling: SamplingParameters) -> SamplingParameters | None:
        """What stands between the model and the scores; None for nothing."""
        temperature = sampling.temperature or 1.0
        if self.scores == "raw" or (temperature == 1.0 and not sampling.transforms):
            return None
        return replace(sampling, temperature=temperature)

    async def run(self, context: SearchContext) -> Sequence[Node]:
        beams = _Beams(self, context)
        try:
            while not beams.pool.done:
                await beams.step()
            context.tell(stopped_by="done")
        except BudgetExhausted:
            context.tell(stopped_by="budget")
        return beams.answers(context.n)


@dataclass(slots=True)
class _Beams:
    """One search's state beside the pool: log-probabilities by hypothesis, texts of the live ones, and what is sent."""

    search: Beam
    context: SearchContext
    pool: BeamPool = field(init=False)
    entries: dict[tuple[int, ...], tuple[TokenLogprob, ...]] = field(init=False)
    texts: list[AnswerText] = field(init=False)
    trunk: Node = field(init=False)
    sampling: SamplingParameters | None = field(init=False)

    def __post_init__(self) -> None:
        context, search = self.context, self.search
        self.pool = BeamPool(
            search.width,
            context.room(context.root),
            context.root.answer.stop_ids,
            search.length_penalty,
            search.early_stopping,
        )
        self.entries, self.texts, self.trunk = {(): ()}, [context.root.answer], context.root
        self.sampling = search.pipeline(context.generation.sampling)

    async def step(self) -> None:
        """One token more for every live hypothesis. Raises BudgetExhausted."""
        context, pool, root = self.context, self.pool, self.context.root
        vocabulary = context.runtime.info.vocab_size
        top = min(offers_needed(pool.width, len(pool.end_tokens)), vocabulary)
        live, texts = pool.live, self.texts
        read = await context.next_logprobs([(root, hypothesis.tokens) for hypothesis in live], top, self.sampling)
        context.trace.called("reads", len(live))
        too_early = len(live[0].tokens) + 1 <= context.generation.stopping.min_tokens
        offers = [
            [(token, p) for token, p in entry.top[:top] if not (too_early and token in pool.end_tokens)]
            for entry in read
        ]
        grown: dict[tuple[int, int], AnswerText] = {}

        def ends(beam: int, token: int) -> bool:
            text = grown[beam, token] = texts[beam].fork()
            text.push(token, None)
            return text.ended

        origins = pool.advance(offers, ends)
        before, wanted = self.entries, context.generation.logprobs or 0
        self.texts = [grown[origin.parent, origin.token] for origin in origins]
        self.entries = {}
        number = {hypothesis.tokens: beam for beam, hypothesis in enumerate(live)}
        for hypothesis in (*pool.live, *pool.finished):
            tokens = hypothesis.tokens
            if tokens in before:
                self.entries[tokens] = before[tokens]
                continue
            offered = read[number[tokens[:-1]]].top
            entry = TokenLogprob(tokens[-1], dict(offered)[tokens[-1]], offered[:wanted])
            self.entries[tokens] = (*before[tokens[:-1]], entry)
        self._commit()

    def answers(self, n: int) -> list[Node]:
        """The n best hypotheses as nodes."""
        nodes = []
        for hypothesis in self.pool.best(n):
            node = self._node(hypothesis, len(hypothesis.tokens))
            self.context.note(node, score=round(hypothesis.score(self.search.length_penalty), 6))
            nodes.append(node)
        return nodes

    def _commit(self) -> None:
        """Sends what every hypothesis that may still win begins with."""
        rivals = [*self.pool.live, *self.pool.finished]
        length = committed_length([hypothesis.tokens for hypothesis in rivals])
        if length >= len(self.trunk.tokens) + COMMIT_BLOCK:
            self.trunk = self._node(rivals[0], length)
            self.context.commit([self.trunk])

    def _node(self, hypothesis: Hypothesis, length: int) -> Node:
        """A node behind the trunk with the hypothesis's tokens up to a length."""
        start = len(self.trunk.tokens)
        entries = self.entries[hypothesis.tokens] if hypothesis.tokens else ()
        return self.context.append(self.trunk, hypothesis.tokens[start:length], entries[start:length])
