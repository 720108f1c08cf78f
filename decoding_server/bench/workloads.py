"""What every engine is asked, and the prompts: token ids cut from `passages`, so all engines get the same tokens."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from decoding_server.bench.passages import PASSAGES

Kind = Literal["decode", "first-token", "shared-prefix", "start", "memory"]
Prompt = list[int]

STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "bregman": {"decoding": {"sampler": {"type": "bregman", "alpha": 1.5, "tau": 0.01}}},
    "grammar": {"decoding": {"penalty": {"type": "grammar", "language": "python"}}},
}
"""Strategies whose cost is measured, as fields of a request that is otherwise the plain one."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table.

    decode:        `concurrency` requests at once, distinct prompts; tokens per second over all, prefill included.
    first-token:   `requests` single requests one after another; seconds until the first token, their median.
    shared-prefix: `concurrency` requests at once that share `prefix_tokens` and end in `prompt_tokens` of their own,
                   after one untimed round over the same prefix; tokens per second.
    start:         seconds from the engine's command line to its first answer, files in the page cache.
    memory:        largest resident set of the engine's process tree over the session, bytes.

    strategy: one of `STRATEGIES`, for engines that have them. plain: the workload without it, empty where it is that.
    """

    name: str
    title: str
    kind: Kind
    unit: Literal["tokens/s", "s", "MiB"]
    prompt_tokens: int = 0
    new_tokens: int = 0
    concurrency: int = 1
    requests: int = 1
    prefix_tokens: int = 0
    strategy: str = ""
    plain: str = ""

    @property
    def higher_is_better(self) -> bool:
        return self.unit == "tokens/s"


def decode(concurrency: int, prompt_tokens: int, new_tokens: int, strategy: str = "") -> Workload:
    name = f"decode-{prompt_tokens}-{new_tokens}-c{concurrency}"
    title = f"{prompt_tokens}-token prompt, {new_tokens} new, concurrency {concurrency}"
    return Workload(
        name=f"{name}-{strategy}" if strategy else name,
        title=f"{title}, {strategy}" if strategy else title,
        kind="decode",
        unit="tokens/s",
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        concurrency=concurrency,
        requests=concurrency,
        strategy=strategy,
        plain=name if strategy else "",
    )


def first_token(prompt_tokens: int, requests: int) -> Workload:
    return Workload(
        name=f"first-token-{prompt_tokens}",
        title=f"time to first token, {prompt_tokens}-token prompt",
        kind="first-token",
        unit="s",
        prompt_tokens=prompt_tokens,
        new_tokens=1,
        requests=requests,
    )


def shared_prefix(concurrency: int, prefix_tokens: int, prompt_tokens: int, new_tokens: int) -> Workload:
    return Workload(
        name=f"shared-{prefix_tokens}-{new_tokens}-c{concurrency}",
        title=f"{concurrency} requests, one warm {prefix_tokens}-token prefix, {new_tokens} new each",
        kind="shared-prefix",
        unit="tokens/s",
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        concurrency=concurrency,
        requests=concurrency,
        prefix_tokens=prefix_tokens,
    )


START = Workload(
    name="start", title="warm start to first answer", kind="start", unit="s", prompt_tokens=37, new_tokens=1
)
MEMORY = Workload(name="memory", title="peak memory", kind="memory", unit="MiB")

FULL: tuple[Workload, ...] = (
    *(decode(concurrency, 37, 128) for concurrency in (1, 4, 16, 32)),
    first_token(37, 3),
    first_token(512, 3),
    shared_prefix(16, 512, 16, 64),
)
QUICK: tuple[Workload, ...] = (
    *(decode(concurrency, 37, 16) for concurrency in (1, 4)),
    first_token(37, 1),
    first_token(128, 1),
    shared_prefix(4, 128, 8, 8),
)


class PromptSource:
    """Prompts cut from the concatenated passages: a few tokens from one position, the rest from another.

    A prompt depends only on (workload, repeat, index), so all engines get the same one. Two prompts of a session have
    at most those first few tokens in common (the positions are drawn independently), so a prefix cache can't help
    except where the workload shares a prefix on purpose.
    """

    OPENING = 4
    """Tokens taken from the first position."""

    def __init__(self, passages: Sequence[Sequence[int]]) -> None:
        """`passages`: token ids of each text, without special tokens. Raises ValueError when they are too short."""
        self._tokens = [token for passage in passages for token in passage]
        if len(self._tokens) < 1024:
            raise ValueError(f"the passages have {len(self._tokens)} tokens; prompts need 1024")

    def _window(self, start: int, length: int) -> Prompt:
        """`length` tokens from `start`; the text wraps round at its end."""
        return [self._tokens[(start + offset) % len(self._tokens)] for offset in range(length)]

    def cut(self, length: int, *key: object) -> Prompt:
        """A prompt of `length` tokens, a pure function of `key`."""
        digest = hashlib.sha256(repr(key).encode()).digest()
        first, second = (int.from_bytes(half, "big") % len(self._tokens) for half in (digest[:16], digest[16:]))
        opening = min(self.OPENING, length)
        return self._window(first, opening) + self._window(second, length - opening)

    def prompts(self, workload: Workload, repeat: int) -> list[Prompt]:
        """The timed prompts of one cell, one per request."""
        prefix = self.cut(workload.prefix_tokens, workload.name, repeat, "prefix")
        return [
            prefix + self.cut(workload.prompt_tokens, workload.name, repeat, index)
            for index in range(workload.requests)
        ]

    def warming(self, workload: Workload, repeat: int) -> list[Prompt]:
        """The untimed prompts before a shared-prefix cell: same prefix, other endings."""
        prefix = self.cut(workload.prefix_tokens, workload.name, repeat, "prefix")
        return [
            prefix + self.cut(workload.prompt_tokens, workload.name, repeat, "warming", index)
            for index in range(workload.requests)
        ]


def tokenized(folder: str) -> PromptSource:
    """The passages under the tokenizer of the model in `folder` (a `tokenizer.json`)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    texts = [" ".join(passage.split("\n")) + " " for passage in PASSAGES]
    return PromptSource([tokenizer.encode(text, add_special_tokens=False).ids for text in texts])
