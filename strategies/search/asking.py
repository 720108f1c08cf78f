"""Questions that a search asks the served model in prompts of its own, and the replies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from strategies.errors import InvalidRequest, RequestFailed
from strategies.runtime import Delta, Generation, StopConditions
from strategies.text import Tokenizer

ReplyEnd = Literal["stop", "length", "budget", "context"]
"""The model ended; its length limit; the budget ran out; the question did not fit the context, so it wasn't asked."""


@dataclass(frozen=True, slots=True)
class Question:
    """messages: (role, text), the system's first. seed: of its noise, 64 bits. temperature: None is the request's.
    scored: whether the reply's log-probabilities are wanted. prefix: what the reply is made to begin with. stop:
    strings that end it, and are not part of it."""

    messages: tuple[tuple[str, str], ...]
    seed: int
    temperature: float | None = None
    max_tokens: int | None = None
    scored: bool = False
    prefix: str = ""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """pieces: where asked for, (text, raw log-probability) of each token that has text."""

    text: str
    tokens: int
    end: ReplyEnd
    pieces: tuple[tuple[str, float], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, deltas: Sequence[Delta], tokenizer: Tokenizer, *, scored: bool, prefix: str = "") -> "Reply":
        last = deltas[-1]
        if last.finish_reason is None:
            raise RequestFailed("the model stopped without finishing a reply")
        budget = isinstance(last.stop_reason, str) and last.stop_reason.startswith("budget:")
        end: ReplyEnd = "budget" if budget else "stop" if last.finish_reason == "stop" else "length"
        pieces: list[tuple[str, float]] = []
        if scored:
            entries = [entry for delta in deltas for entry in delta.logprobs or ()]
            pieces = [(prefix, 0.0)] if prefix else []
            pieces += [(tokenizer.decode([entry.token]), entry.logprob) for entry in entries]
        text = prefix + "".join(delta.text for delta in deltas)
        return cls(text, sum(len(delta.tokens) for delta in deltas), end, tuple(pieces))

    def logprob_of(self, text: str) -> float:
        """The log-probability of the part of the reply that says this; of the whole if it isn't there as it stands."""
        start = self.text.find(text[:40]) if text else -1
        if start < 0:
            return sum(logprob for _, logprob in self.pieces)
        total, place = 0.0, 0
        for piece, logprob in self.pieces:
            if start <= place < start + len(text):
                total += logprob
            place += len(piece)
        return total


def rendered(tokenizer: Tokenizer, question: Question, *, chat: bool) -> list[int]:
    """The prompt's tokens, then the reply's prefix."""
    return tokenized(tokenizer, rendered_text(tokenizer, question, chat=chat), chat=chat)


def tokenized(tokenizer: Tokenizer, text: str, *, chat: bool) -> list[int]:
    """A chat template writes its special tokens itself."""
    return tokenizer.encode(text, add_special_tokens=not chat)


def rendered_text(tokenizer: Tokenizer, question: Question, *, chat: bool) -> str:
    """By the chat template (one without a system's turn gets its text in the user's), or as plain paragraphs."""
    if not chat:
        return "\n\n".join(text for _, text in question.messages) + "\n\n" + question.prefix
    turns: list[Mapping[str, str]] = [{"role": role, "content": text} for role, text in question.messages]
    try:
        text = tokenizer.render_chat(turns)
    except InvalidRequest:
        joined = "\n\n".join(text for _, text in question.messages)
        text = tokenizer.render_chat([{"role": "user", "content": joined}])
    return text + question.prefix


def generation_of(question: Question, request: Generation, tokens: list[int], room: int) -> Generation:
    """A question as the runtime takes it, sampled as the request is. tokens: of the prompt, see `rendered`; room: for
    the reply, in the model's context."""
    heat = question.temperature
    return replace(
        request,
        prompt=tokens,
        answer=(),
        sampling=request.sampling if heat is None else replace(request.sampling, temperature=heat),
        stopping=StopConditions(
            max_tokens=room if question.max_tokens is None else min(room, question.max_tokens), stop=question.stop
        ),
        seed=question.seed,
        branch=(0,),
        logprobs=0 if question.scored else None,
        logprobs_mode="raw",
        prompt_logprobs=None,
    )
