"""What the soak test asks, and what each request must get: a random mix from one seed, and a verdict on every reply."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

WORDS = [
    *("river", "stone", "market", "engine", "winter", "paper", "signal", "garden", "copper", "morning", "window"),
    *("bridge", "letter", "harbor", "candle", "forest", "number", "island", "thunder", "mirror", "pocket", "violin"),
]
SAMPLERS: Sequence[Any] = (
    {"strategy": "typical_p", "mass": 0.8},
    {"sampler": {"type": "top_p", "p": 0.9}},
    {"sampler": [{"type": "top_k", "k": 40}, {"type": "min_p", "p": 0.05}]},
    {"sampler": "mirostat"},
    {"sampler": {"type": "top_n_sigma", "n": 1.0}},
    {"sampler": "xtc", "penalty": {"type": "repetition_penalty", "penalty": 1.2}},
    {"penalty": "dry", "budget": {"output_tokens": 6}},
    {"budget": {"forward_tokens": 400, "seconds": 60}},
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
FINISH_REASONS = frozenset({"stop", "length", "tool_calls"})
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class SoakRequest:
    """One request. status: what the reply must have. leaves_after: seconds after which the client goes away, whatever
    has come by then; half_body: it sends only half of its body until then."""

    number: int
    kind: str
    path: str
    content: bytes
    status: int = 200
    choices: int = 1
    stream: bool = False
    leaves_after: float | None = None
    half_body: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, whole. headers: names in lower case."""

    status: int
    text: str
    headers: dict[str, str] = field(default_factory=dict)


class Mix:
    """Requests of every kind in a random order that the seed repeats.

    context: the server's limit in tokens. Text is made of words of at least one token each, so a prompt of that many
    words is too long.
    """

    KINDS = (
        ("plain", 20),
        ("choices", 10),
        ("logprobs", 10),
        ("echo", 5),
        ("sampler", 15),
        ("tools", 8),
        ("stop", 10),
        ("leave", 12),
        ("half_body", 2),
        ("malformed", 3),
        ("bad_field", 5),
        ("unknown_model", 2),
        ("too_long", 4),
        ("tokenize", 4),
    )

    def __init__(self, seed: int, context: int) -> None:
        self.random = random.Random(seed)
        self.context = context
        self.openings = [self._text(24) for _ in range(6)]

    def requests(self, count: int) -> Iterator[SoakRequest]:
        names, weights = zip(*self.KINDS, strict=True)
        for number in range(count):
            (kind,) = self.random.choices(names, weights)
            yield self._request(number, kind)

    def _text(self, words: int) -> str:
        return " ".join(self.random.choices(WORDS, k=words))

    def _prompt(self) -> str:
        """Every second one begins like others, so that the prefix cache has something to do."""
        opening = self.random.choice(self.openings) + " " if self.random.random() < 0.5 else ""
        return opening + self._text(self.random.randint(4, 40))

    def _generation(self, chat: bool) -> dict[str, Any]:
        prompt = self._prompt()
        body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body["max_tokens"] = self.random.randint(4, 24)
        if self.random.random() < 0.5:
            body["seed"] = self.random.getrandbits(40)
        if self.random.random() < 0.3:
            body["temperature"] = 0
        return body

    def _request(self, number: int, kind: str) -> SoakRequest:
        pick = self.random
        if kind == "tokenize":
            return SoakRequest(number, kind, "/tokenize", _json({"prompt": self._prompt()}))
        chat = kind == "tools" or (kind != "echo" and pick.random() < 0.5)
        path = CHAT if chat else COMPLETIONS
        if kind == "malformed":
            broken = (b"{", b"[]", b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "\xff"}', b"[" * 5000)
            return SoakRequest(number, kind, path, pick.choice(broken), status=400)
        body = self._generation(chat)
        stream = pick.random() < 0.5
        if stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        status, choices, leaves_after = 200, 1, None
        match kind:
            case "choices":
                choices = pick.randint(2, 3)
                body["n"] = choices
                if not chat and pick.random() < 0.3:
                    body["prompt"] = [body["prompt"], self._prompt()]
                    choices *= 2
            case "logprobs":
                body.update({"logprobs": True, "top_logprobs": 3} if chat else {"logprobs": pick.randint(0, 5)})
            case "echo":
                body.update(echo=True, logprobs=1)
            case "sampler":
                body["decoding"] = pick.choice(SAMPLERS)
            case "tools":
                body.update(tools=[TOOL], tool_choice=pick.choice(("auto", "none")))
            case "stop":
                body["stop"] = pick.choice((["the", "\n\n"], " a", ["zzzz", "."]))
            case "leave":
                body.update(max_tokens=120, n=pick.randint(1, 2))
                choices, leaves_after = body["n"], pick.choice((0.02, 0.1, 0.5, 2.0)) * pick.uniform(0.5, 2)
            case "half_body":
                leaves_after = pick.uniform(0.05, 0.5)
            case "bad_field":
                body |= pick.choice(({"temperature": -1}, {"n": 0}, {"decoding": {"sampler": "none"}}, {"stop": [""]}))
                status = 400
            case "unknown_model":
                body["model"], status = "no-such-model", 404
            case "too_long":
                words = self._text(self.context + 1)
                body |= {"messages": [{"role": "user", "content": words}]} if chat else {"prompt": words}
                status = 400
        return SoakRequest(
            number, kind, path, _json(body), status, choices, stream, leaves_after, half_body=kind == "half_body"
        )


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def fault(request: SoakRequest, reply: Reply) -> str | None:
    """Why this is not what the request must get, or None."""
    if reply.status != request.status:
        return f"status {reply.status}, not {request.status}: {reply.text[:200]}"
    if "x-request-id" not in reply.headers:
        return "no x-request-id"
    try:
        if request.status != 200:
            return _error_fault(json.loads(reply.text))
        if request.path == "/tokenize":
            return None if json.loads(reply.text)["count"] > 0 else "no tokens"
        if request.stream:
            return _stream_fault(request, reply.text)
        body = json.loads(reply.text)
        answers = [(choice["index"], *_answer(choice)) for choice in body["choices"]]
        return _answers_fault(answers, request.choices) or _usage_fault(body["usage"])
    except (ValueError, LookupError, TypeError) as error:
        return f"malformed reply ({type(error).__name__}: {error}): {reply.text[:200]}"


def _error_fault(body: dict[str, Any]) -> str | None:
    error = body["error"]
    if set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return f"not the error body: {body}"
    return None


def _answer(choice: dict[str, Any]) -> tuple[str, str | None]:
    """What a choice of a reply or chunk brings, and its finish reason."""
    message = choice.get("message") or choice.get("delta") or {}
    calls = json.dumps(message["tool_calls"]) if message.get("tool_calls") else ""
    return (choice.get("text") or message.get("content") or "") + calls, choice["finish_reason"]


def _answers_fault(answers: Sequence[tuple[int, str, str | None]], choices: int) -> str | None:
    """A stopped answer may be empty (the end-of-sequence token, or a stop string, came first); one that used up its
    tokens may not."""
    if sorted(index for index, _, _ in answers) != list(range(choices)):
        return f"{[index for index, _, _ in answers]} are not the indices of {choices} choices"
    for index, text, reason in answers:
        if reason not in FINISH_REASONS:
            return f"choice {index} has the finish reason {reason!r}"
        if reason == "length" and not text:
            return f"choice {index} is empty"
    return None


def _usage_fault(usage: dict[str, Any]) -> str | None:
    counts = usage["prompt_tokens"], usage["completion_tokens"]
    return None if min(counts) > 0 and sum(counts) == usage["total_tokens"] else f"usage is {usage}"


def _stream_fault(request: SoakRequest, text: str) -> str | None:
    events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
    if not events or events[-1] != "data: [DONE]":
        return f"the stream does not end with [DONE]: {text[-200:]!r}"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    failed = next((chunk for chunk in chunks if "error" in chunk), None)
    if failed is not None:
        return f"an error in the stream: {failed}"
    if len({chunk["id"] for chunk in chunks}) != 1:
        return "chunks have different ids"
    texts: dict[int, str] = {}
    reasons: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            piece, reason = _answer(choice)
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
            if reason is not None:
                reasons.setdefault(choice["index"], []).append(reason)
    if any(len(found) != 1 for found in reasons.values()) or set(reasons) != set(texts):
        return f"finish reasons are {reasons}"
    answers = [(index, text, reasons[index][0]) for index, text in texts.items()]
    return _answers_fault(answers, request.choices) or _usage_fault(chunks[-1]["usage"])
