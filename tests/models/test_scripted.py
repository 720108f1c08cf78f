"""The scripted model is as strict as a real one: it knows of a context only what its slots hold."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.scripted import ByteTokenizer, ScriptedModel, play, scripted_runtime
from models.torch_runtime.batch import PackedBatch, Segment, tree_mask
from models.torch_runtime.kv_pool import SlotPool
from strategies.errors import InvalidRequest
from strategies.runtime import Generation
from strategies.sampling.standard import sampling

CPU = torch.device("cpu")
POOL = SlotPool(num_layers=1, num_slots=32, kv_heads=1, head_dim=1, dtype=torch.float32, device=CPU)


def recorder() -> tuple[ScriptedModel, list[list[int]]]:
    """A model, and the contexts it was asked about."""
    seen: list[list[int]] = []

    def distribution(context: Sequence[int]) -> Tensor:
        seen.append(list(context))
        return torch.arange(4.0) + len(context)

    return ScriptedModel(distribution, 4), seen


def contexts(model: ScriptedModel, seen: list[list[int]], *segments: Segment) -> list[list[int]]:
    """What each new token of a batch sees."""
    hidden = model.forward(PackedBatch(segments, CPU), POOL)
    seen.clear()
    model.logits(hidden)
    return list(seen)


def slots(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


def test_contexts_are_read_back_through_the_slots() -> None:
    model, seen = recorder()
    first = Segment.chain([10, 11, 12], slots(7, 3, 5), slots())
    second = Segment.chain([20], slots(4), slots())
    assert contexts(model, seen, first, second) == [[10], [10, 11], [10, 11, 12], [20]]
    assert contexts(model, seen, Segment.chain([13], slots(9), slots(7, 3, 5))) == [[10, 11, 12, 13]]
    # The wrong slot at the right position, and a slot that was written over, give a wrong context.
    assert contexts(model, seen, Segment.chain([21], slots(8), slots(7))) == [[10, 21]]
    contexts(model, seen, Segment.chain([99], slots(7), slots()))
    assert contexts(model, seen, Segment.chain([13], slots(9), slots(7, 3, 5))) == [[99, 11, 12, 13]]
    assert (model.passes, model.forward_tokens) == (5, 8)


def test_slots_of_other_positions_or_never_written_are_an_error() -> None:
    model, seen = recorder()
    contexts(model, seen, Segment.chain([10, 11], slots(0, 1), slots()))
    with pytest.raises(AssertionError, match="other positions"):
        model.forward(PackedBatch([Segment.chain([12], slots(2), slots(1, 0))], CPU), POOL)
    with pytest.raises(KeyError):
        model.forward(PackedBatch([Segment.chain([12], slots(2), slots(0, 30))], CPU), POOL)


def test_a_tree_token_sees_its_ancestors() -> None:
    model, seen = recorder()
    contexts(model, seen, Segment.chain([1, 2], slots(0, 1), slots()))
    mask = tree_mask([-1, 0, 0, -1, 2])
    tree = Segment(np.array([10, 11, 12, 13, 14]), np.array([2, 3, 3, 2, 4]), slots(5, 6, 7, 8, 9), slots(0, 1), mask)
    assert contexts(model, seen, tree) == [
        [1, 2, 10], [1, 2, 10, 11], [1, 2, 10, 12], [1, 2, 13], [1, 2, 10, 12, 14],
    ]  # fmt: skip


def test_logits_are_float32_of_the_rows_asked_for_and_safe_to_overwrite() -> None:
    constant = torch.zeros(4, dtype=torch.float64)
    model = ScriptedModel(lambda context: constant + len(context), 4)
    hidden = model.forward(PackedBatch([Segment.chain([1, 2, 3], slots(0, 1, 2), slots())], CPU), POOL)
    logits = model.logits(hidden[[2, 0]])
    assert logits.dtype == torch.float32
    assert logits[:, 0].tolist() == [3.0, 1.0]
    logits.fill_(-1.0)
    assert constant.tolist() == [0.0] * 4
    kept = torch.zeros(4)
    same = ScriptedModel(lambda context: kept, 4)
    same.logits(same.forward(PackedBatch([Segment.chain([1], slots(0), slots())], CPU), POOL)).fill_(9.0)
    assert kept.tolist() == [0.0] * 4


def test_play() -> None:
    script = play([5, 6], 300, prompt_length=3)
    for length, token in ((3, 5), (4, 6), (5, 256), (9, 256), (2, 256)):
        probabilities = torch.softmax(script([0] * length), -1)
        assert probabilities.shape == (300,)
        assert int(probabilities.argmax()) == token
        assert probabilities.max() > 0.999999
    assert int(play([], 10, prompt_length=0, end=7)([]).argmax()) == 7


async def test_the_runtime_plays_the_script() -> None:
    tokenizer = ByteTokenizer(pieces=[b"world"])
    prompt = tokenizer.encode("say:")
    runtime = scripted_runtime(play([*b"hello ", 260], tokenizer.vocab_size, len(prompt)), tokenizer, max_model_len=64)
    try:
        assert runtime.info.max_model_len == 64
        assert runtime.info.vocab_size == 261
        assert runtime.tokenizer is tokenizer
        stream = runtime.submit([Generation(prompt, sampling(temperature=0.0))])[0]
        deltas = [delta async for delta in stream]
    finally:
        runtime.close()
    assert "".join(delta.text for delta in deltas) == "hello world"
    assert (deltas[-1].finish_reason, deltas[-1].stop_token) == ("stop", True)


@given(st.text())
def test_text_survives_the_byte_tokenizer(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    if "<|" not in text:
        assert ids == list(text.encode())


def test_special_tokens() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("a<|user|>b<|end|>")
    assert ids == [97, 258, 98, 256]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<|user|>b<|end|>"
    assert tokenizer.eos_token_ids == {256}
    assert tokenizer.special_token_ids == {"<|end|>": 256, "<|system|>": 257, "<|user|>": 258, "<|assistant|>": 259}
    assert [tokenizer.is_special(i) for i in (255, 256, 259, 260)] == [False, True, True, False]
    assert (tokenizer.token_bytes(258), tokenizer.token_bytes(260), tokenizer.token_bytes(-1)) == (
        b"<|user|>",
        b"",
        b"",
    )


def test_pieces_are_ordinary_tokens_that_encoding_never_gives() -> None:
    tokenizer = ByteTokenizer(pieces=[b"ab", "é".encode()[:1]])
    assert tokenizer.vocab_size == 262
    assert tokenizer.encode("ab") == [97, 98]
    assert tokenizer.token_bytes(260) == b"ab"
    assert tokenizer.decode([260, 261, 0xA9]) == "abé"
    assert not tokenizer.is_special(260)


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogates"):
        ByteTokenizer().encode("a\ud800")


def test_render_chat() -> None:
    tokenizer = ByteTokenizer()
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = "<|system|>s<|end|><|user|>u<|end|>"
    assert tokenizer.render_chat(messages) == text + "<|assistant|>"
    assert tokenizer.render_chat(messages, add_generation_prompt=False) == text
    with pytest.raises(InvalidRequest, match="tool") as refused:
        tokenizer.render_chat([{"role": "tool", "content": "x"}])
    assert refused.value.param == "messages"
