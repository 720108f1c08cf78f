"""A scripted model: plays back given tokens or distributions behind the real engine.

For tests and for authors of strategies: exact tokens, exact probabilities, milliseconds. It is a model like any other
to the engine, and as strict as one: it keeps only what was written to KV slots, and reads a token's context back
through the slots and the tree that the engine names. A wrong slot gives a wrong context.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.drafters import ModelDrafter
from models.torch_runtime.engine import Engine
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.model import ModelShape
from models.torch_runtime.runtime import TorchRuntime
from strategies.errors import InvalidRequest
from strategies.runtime import ModelInfo

Distribution = Callable[[Sequence[int]], Tensor]
"""Token ids of a context -> logits float32 [vocab_size] of the next token."""


class ByteTokenizer:
    """One token per UTF-8 byte (ids 0-255), then special tokens, then `pieces`: byte strings that only scripts emit."""

    SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

    def __init__(self, pieces: Sequence[bytes] = ()) -> None:
        self._table = [bytes([i]) for i in range(256)] + [name.encode() for name in self.SPECIAL] + list(pieces)

    @property
    def vocab_size(self) -> int:
        return len(self._table)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset({256})

    @property
    def bos_token_id(self) -> int | None:
        return None

    @property
    def eos_token(self) -> str | None:
        return self.SPECIAL[0]

    @property
    def special_token_ids(self) -> Mapping[str, int]:
        return {name: 256 + i for i, name in enumerate(self.SPECIAL)}

    @property
    def strips_leading_space(self) -> bool:
        return False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        tokens: list[int] = []
        while text:
            special = next((name for name in self.SPECIAL if text.startswith(name)), None)
            piece = special or text[0]
            try:
                tokens += [self.special_token_ids[special]] if special else list(piece.encode())
            except UnicodeEncodeError as error:
                raise InvalidRequest(f"the text is not valid Unicode: {error.reason}") from None
            text = text[len(piece) :]
        return tokens

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        kept = [self.token_bytes(i) for i in ids if not (skip_special_tokens and self.is_special(i))]
        return b"".join(kept).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return self._table[token] if 0 <= token < len(self._table) else b""

    def is_special(self, token: int) -> bool:
        return 256 <= token < 256 + len(self.SPECIAL)

    @property
    def chat_template(self) -> str | None:
        return None

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        text = ""
        for message in messages:
            name = f"<|{message['role']}|>"
            if name not in self.SPECIAL:
                raise InvalidRequest(f"role {message['role']!r} is unknown to the template", "messages")
            text += f"{name}{message['content']}<|end|>"
        if template is not None:
            text = f"{template}{text}"
        for key, value in variables.items():
            text = f"[{key}={value}]{text}"
        return text + ("<|assistant|>" if add_generation_prompt else "")


class ScriptedModel:
    """Implements `ForwardModel`: hidden states number the contexts, logits are what `distribution` says of them."""

    def __init__(self, distribution: Distribution, vocab_size: int, *, max_positions: int = 4096) -> None:
        self._distribution = distribution
        self._contexts: list[list[int]] = []
        self._written: dict[int, tuple[int, int]] = {}  # slot -> (token, position)
        self.forward_tokens = 0  # an independent count of what the engine computed
        self.passes = 0
        self.shape = ModelShape(
            architecture="scripted",
            vocab_size=vocab_size,
            max_positions=max_positions,
            num_layers=1,
            kv_heads=1,
            head_dim=1,
            hidden_size=1,
            matmul_parameters=1,
            kv_dtype=torch.float32,
            device=torch.device("cpu"),
            dtype="float32",
            kernels="scripted",
        )

    def forward(self, batch: PackedBatch, pool: SlotPool) -> Tensor:
        self.passes += 1
        self.forward_tokens += batch.num_tokens
        self._contexts = [context for segment in batch.segments for context in self._read(segment)]
        return torch.arange(len(self._contexts), dtype=torch.float32)[:, None]

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.stack([self._distribution(self._contexts[int(i)]).float() for i in hidden[:, 0]])

    def _read(self, segment: Segment) -> list[list[int]]:
        """The tokens that each new token sees, itself included, in order of position."""
        for token, position, slot in zip(segment.tokens, segment.positions, segment.slots, strict=True):
            self._written[int(slot)] = (int(token), int(position))
        past = [self._written[int(slot)] for slot in segment.context]
        if [position for _, position in past] != list(range(len(past))):
            raise AssertionError("the context's slots hold tokens of other positions")
        length = len(segment.tokens)
        mask = np.tri(length, dtype=np.bool_) if segment.tree is None else segment.tree
        prefix = [token for token, _ in past]
        return [prefix + [int(segment.tokens[j]) for j in np.flatnonzero(mask[i])] for i in range(length)]


def play(tokens: Sequence[int], vocab_size: int, prompt_length: int, end: int = 256) -> Distribution:
    """A distribution that puts all mass on tokens[0], tokens[1], … after a prompt of that length, then on `end`."""

    def distribution(context: Sequence[int]) -> Tensor:
        index = len(context) - prompt_length
        token = tokens[index] if 0 <= index < len(tokens) else end
        logits = torch.full((vocab_size,), -30.0)
        logits[token] = 30.0
        return logits

    return distribution


def scripted_runtime(
    distribution: Distribution,
    tokenizer: ByteTokenizer,
    *,
    max_model_len: int = 512,
    num_slots: int = 4096,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 256,
    max_waiting: int = 1024,
    prefix_cache: bool = True,
    step_timeout: float = 60.0,
    drafts: Mapping[str, Distribution] | None = None,
) -> TorchRuntime:
    """The real engine and runtime around a `ScriptedModel`, with scripted draft models. The caller closes it."""
    model = ScriptedModel(distribution, tokenizer.vocab_size, max_positions=max_model_len)
    info = ModelInfo(
        name="scripted",
        source="scripted",
        architecture="scripted",
        max_model_len=max_model_len,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=tokenizer.eos_token_ids,
        dtype="float32",
        device="cpu",
        num_layers=1,
        hidden_size=1,
        matmul_parameters=1,
        fingerprint="scripted",
    )
    engine = Engine(
        model,
        info,
        num_slots=num_slots,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        prefix_cache=prefix_cache,
        drafters=lambda pool: [
            ModelDrafter(
                name,
                ScriptedModel(draft, tokenizer.vocab_size, max_positions=max_model_len),
                replace(info, name=name),
                pool,
                tokenizer.vocab_size,
            )
            for name, draft in (drafts or {}).items()
        ],
    )
    return TorchRuntime(engine, info, tokenizer, max_waiting=max_waiting, step_timeout=step_timeout)
