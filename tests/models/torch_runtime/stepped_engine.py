"""The real engine, stepped by hand around a scripted model, with every invariant checked after every step.

Nothing here runs on a thread: a test submits generations, steps, and reads what came out.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.scripted import ByteTokenizer, Distribution, ScriptedModel
from models.torch_runtime.batch import PackedBatch
from models.torch_runtime.engine import Engine
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.prefix_cache import Node, PrefixCache
from models.torch_runtime.scheduler import Scheduler, slots_in_use
from models.torch_runtime.sequence import Sequence as TokenSequence
from strategies.errors import DecodingError
from strategies.randomness import gumbel_argmax
from strategies.runtime import Delta, Generation, ModelInfo, TokenLogprob
from strategies.sampling.pipeline import process, sample
from strategies.sampling.row import Row

END = 256


def random_distribution(vocab_size: int = 260, *, end: float = -1.0, salt: int = 0) -> Distribution:
    """Logits that look random but are a function of the whole context. Letters a-h are likely; `end` is the logit of
    the end of sequence (-inf: never)."""

    def distribution(context: Sequence[int]) -> Tensor:
        seed = zlib.crc32(np.asarray(context, np.int64).tobytes(), salt)
        logits = np.random.RandomState(seed).standard_normal(vocab_size).astype(np.float32)
        logits[97:105] += 5.0
        logits[256:260] = -20.0
        logits[END] = end
        return torch.from_numpy(logits)

    return distribution


def model_info(max_model_len: int, vocab_size: int = 260, **changes: int) -> ModelInfo:
    return ModelInfo(
        name="scripted", source="scripted", architecture="scripted", max_model_len=max_model_len,
        vocab_size=vocab_size, eos_token_ids=frozenset({END}), dtype="float32", device="cpu",
        num_layers=changes.get("num_layers", 3), hidden_size=changes.get("hidden_size", 7),
        matmul_parameters=changes.get("matmul_parameters", 11), fingerprint="scripted",
    )  # fmt: skip


class CheckedModel(ScriptedModel):
    """A scripted model that refuses a batch whose new tokens share a slot, or are written over what a segment reads."""

    def __init__(self, distribution: Distribution, vocab_size: int) -> None:
        super().__init__(distribution, vocab_size)
        self.batches: list[list[int]] = []  # new tokens of each segment, per pass

    def forward(self, batch: PackedBatch, pool: SlotPool) -> Tensor:
        self.batches.append(list(batch.lengths))
        written = batch.host_slots.tolist()
        assert len(set(written)) == len(written), "two new tokens share a slot"
        for segment in batch.segments:
            assert not set(segment.context.tolist()) & set(written), "a new token overwrites a context"
        return super().forward(batch, pool)


@dataclass
class Answer:
    """A synchronous sink: everything one generation produced."""

    deltas: list[Delta] = field(default_factory=list)
    error: DecodingError | None = None

    def put(self, item: Delta | DecodingError) -> None:
        assert not self.ended, "something came after the end"
        if isinstance(item, DecodingError):
            self.error = item
        else:
            self.deltas.append(item)

    @property
    def ended(self) -> bool:
        return self.error is not None or any(delta.finish_reason for delta in self.deltas)

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.tokens]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [entry for delta in self.deltas for entry in delta.logprobs or []]

    @property
    def prompt_logprobs(self) -> list[TokenLogprob | None] | None:
        given = [delta.prompt_logprobs for delta in self.deltas if delta.prompt_logprobs is not None]
        assert len(given) <= 1
        return given[0] if given else None

    @property
    def finish(self) -> tuple[str | None, str | int | None]:
        """(finish_reason, stop_reason)."""
        return self.deltas[-1].finish_reason, self.deltas[-1].stop_reason


class SteppedEngine:
    """Engine, scheduler and checked model, driven by the test."""

    def __init__(
        self,
        distribution: Distribution,
        *,
        num_slots: int = 4096,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 256,
        prefix_cache: bool = True,
        max_model_len: int = 512,
        tokenizer: ByteTokenizer | None = None,
    ) -> None:
        self.tokenizer = tokenizer or ByteTokenizer()
        self.model = CheckedModel(distribution, self.tokenizer.vocab_size)
        self.info = model_info(max_model_len, self.tokenizer.vocab_size)
        self.engine = Engine(
            self.model, self.info, num_slots=num_slots, max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens, prefix_cache=prefix_cache,
        )  # fmt: skip
        self.scheduler = self.engine.scheduler
        self.sequences: list[TokenSequence] = []

    def submit(self, generation: Generation) -> Answer:
        answer = Answer()
        sequence = TokenSequence(generation, self.tokenizer, self.info.eos_token_ids, answer, self.info.max_model_len)
        self.sequences.append(sequence)
        self.scheduler.add(sequence)
        return answer

    def step(self) -> bool:
        busy = self.engine.step()
        check_slots(self.scheduler)
        return busy

    def run(self, max_steps: int = 5000) -> int:
        """Steps until nothing is left; fails when that takes more than `max_steps`. Returns the number of steps."""
        steps = 0
        while self.scheduler.waiting or self.scheduler.running:
            assert steps < max_steps, "no end in sight"
            self.step()
            steps += 1
        return steps

    def answers(self, generations: Iterable[Generation], max_steps: int = 5000) -> list[Answer]:
        answers = [self.submit(generation) for generation in generations]
        self.run(max_steps)
        assert all(answer.ended for answer in answers)
        return answers


def nodes(cache: PrefixCache) -> list[Node]:
    """All nodes below the root."""
    found, stack = [], [cache.root]
    while stack:
        children = list(stack.pop().children.values())
        found += children
        stack += children
    return found


def path(cache: PrefixCache, node: Node) -> list[Node]:
    """From below the root to the node; fails when the node has left the tree."""
    way: list[Node] = []
    current: Node | None = node
    while current is not None and current is not cache.root:
        assert current.parent is not None
        assert current.parent.children.get(int(current.tokens[0])) is current, "the node is not in the tree"
        way.append(current)
        current = current.parent
    assert current is cache.root
    return way[::-1]


def check_slots(scheduler: Scheduler) -> None:
    """Each slot is free, cached, or owned by one running sequence; counts and references are what a recount gives."""
    pool, cache = scheduler.pool, scheduler.cache
    free = pool._free[: pool.num_free]
    held = np.concatenate([free, cache.slots_held(), slots_in_use(scheduler)])
    assert np.array_equal(np.sort(held), np.arange(pool.num_slots)), "a slot is lost or owned twice"
    paths: list[list[Node]] = []
    for sequence in scheduler.running:
        assert sequence.node is not None
        way = path(cache, sequence.node)
        paths.append(way)
        shared = [slot for node in way for slot in node.slots.tolist()]
        assert sequence.slots[: sequence.shared].tolist() == shared
        assert sequence.tokens[: sequence.shared].tolist() == [t for node in way for t in node.tokens.tolist()]
    check_counts(cache, paths)


def check_counts(cache: PrefixCache, locked: Sequence[Sequence[Node]]) -> None:
    """References, size and evictable by recount; `locked` holds the path of every lock."""
    found = nodes(cache)
    expected = {id(node): sum(any(node is other for other in way) for way in locked) for node in found}
    for node in found:
        assert node.references == expected[id(node)]
        assert len(node.tokens) == len(node.slots) > 0
    assert cache.size == sum(len(node.tokens) for node in found)
    assert cache.evictable == sum(len(node.tokens) for node in found if expected[id(node)] == 0)


def direct(
    distribution: Distribution,
    generation: Generation,
    *,
    max_model_len: int = 512,
    draw: Callable[[Tensor, Tensor], Tensor] = gumbel_argmax,
) -> list[int]:
    """The tokens of a generation without stop strings, by the plain loop: no engine, no slots, no cache."""
    stopping, row = generation.stopping, Row(generation, frozenset({END}))
    context, output = list(generation.prompt), list[int]()
    ends = set(stopping.stop_token_ids) | (set() if stopping.ignore_eos else {END})
    limit = max_model_len - len(context)
    limit = limit if stopping.max_tokens is None else min(limit, stopping.max_tokens)
    while len(output) < limit:
        logits = process(distribution(context).clone()[None], [row])
        token = int(sample(logits, [row], [len(context)], draw)[0])
        row.append(token)
        context.append(token)
        output.append(token)
        if token in ends and len(output) > stopping.min_tokens:
            break
    return output
