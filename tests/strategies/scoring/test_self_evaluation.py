"""Self-evaluation: exact probabilities from a scripted model, the chat turn it asks in, and answers that are none."""

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import pytest
import torch

from models.loading import resolve
from models.scripted import ByteTokenizer, scripted_runtime
from models.tokenizer import load_tokenizer
from models.torch_runtime.load import EngineOptions, load_runtime
from strategies.runtime import Generation, StopConditions
from strategies.scoring.self_evaluation import ORDERS, SelfEvaluation, behind, suffix, turn
from strategies.search.context import SearchContext

TOKENIZER = ByteTokenizer()
END = 256


@contextmanager
def asked(law: Callable[[str], dict[str, float]], *, chat: bool, max_model_len: int = 512):
    """A context over a model whose next byte, behind a text, is drawn from `law(text)`."""

    def distribution(context: Sequence[int]) -> torch.Tensor:
        text = TOKENIZER.decode(context, skip_special_tokens=False)
        seen.append(text)
        logits = torch.full((TOKENIZER.vocab_size,), -40.0)
        for letter, p in law(text).items():
            logits[ord(letter)] = math.log(p)
        return logits

    seen: list[str] = []
    runtime = scripted_runtime(distribution, TOKENIZER, max_model_len=max_model_len)
    prompt = TOKENIZER.render_chat([{"role": "user", "content": "2+2?"}]) if chat else "2+2?"
    generation = Generation(TOKENIZER.encode(prompt), stopping=StopConditions(max_tokens=100))
    try:
        yield SearchContext(runtime, generation, prompt_text=prompt, question="2+2?" if chat else None), seen
    finally:
        runtime.close()


def law(text: str) -> dict[str, float]:
    """A likes the letter A, and the right solution."""
    right = 0.8 if "=4" in text else 0.3
    yes, no = ("A", "B") if ORDERS[0] in text else ("B", "A")
    mass = {yes: right, no: 1 - right}
    mass["A"] *= 2
    total = sum(mass.values()) / 0.9
    return {letter: p / total for letter, p in mass.items()} | {"C": 0.1}


def expected(right: float) -> float:
    first = 2 * right / (2 * right + 1 - right)
    second = right / (right + 2 * (1 - right))
    return (first + second) / 2


@pytest.mark.parametrize("chat", [False, True])
async def test_values_are_the_mean_share_of_both_orders(chat):
    with asked(law, chat=chat) as (context, seen):
        good = context.append(context.root, TOKENIZER.encode("2+2=4"))
        bad = context.append(context.root, TOKENIZER.encode("2+2=5"))
        scorer = SelfEvaluation()
        values = await scorer.values(context, [good, bad, context.root])
        assert values == pytest.approx([expected(0.8), expected(0.3), expected(0.3)], abs=1e-5)
        assert scorer.invalid == 0
        read = [text for text in seen if "Judge" in text]
        assert len(set(read)) == 6
        if chat:
            assert all(text.endswith("<|end|><|assistant|>") and text.count("<|user|>") == 2 for text in read)
            assert "2+2=4<|end|><|user|>Judge" in "".join(read)
        else:
            assert all(text.endswith("\nReply:") for text in read)


async def test_an_end_of_sequence_is_not_repeated():
    with asked(law, chat=True) as (context, seen):
        open_node = context.append(context.root, TOKENIZER.encode("2+2=4"))
        closed = context.append(context.root, [*TOKENIZER.encode("2+2=4"), END])
        assert closed.finished
        values = await SelfEvaluation().values(context, [open_node, closed])
        assert values[0] == values[1]
        assert not any("<|end|><|end|>" in text for text in seen)
    assert behind(open_node, [1], frozenset({END})) == (open_node, [1])


async def test_what_is_no_answer_is_counted_and_worth_half():
    def silent(text: str) -> dict[str, float]:
        return {"C": 0.95, "A": 0.04, "B": 0.01} if ORDERS[0] in text else {"B": 0.6, "A": 0.4}

    with asked(silent, chat=True) as (context, _):
        scorer = SelfEvaluation()
        (value,) = await scorer.values(context, [context.root])
        assert value == pytest.approx((0.5 + 0.6) / 2, abs=1e-5)
        assert scorer.invalid == 1
        assert context.trace.summary()["self_eval_invalid"] == 1


async def test_a_node_that_leaves_no_room_is_worth_half():
    length = len(TOKENIZER.render_chat([{"role": "user", "content": "2+2?"}]))
    with asked(law, chat=True, max_model_len=length + 130) as (context, _):
        short = context.append(context.root, TOKENIZER.encode("=4"))
        long = context.append(context.root, TOKENIZER.encode("=4" * 45))
        values = await SelfEvaluation().values(context, [long, short])
        assert values == [0.5, pytest.approx(expected(0.8), abs=1e-5)]


def test_the_turn_is_what_the_template_writes():
    tokenizer = load_tokenizer(resolve(None).folder)
    assert turn(tokenizer, "Q?") == "<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
    tokens = suffix(tokenizer, ORDERS[0], chat=True)
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    before = tokenizer.render_chat(conversation[:1]) + "Hello"
    whole = tokenizer.decode(tokenizer.encode(before, add_special_tokens=False) + tokens, skip_special_tokens=False)
    question = whole.split("<|im_start|>user\n")[-1].split("<|im_end|>")[0]
    assert whole == tokenizer.render_chat([*conversation, {"role": "user", "content": question}])


def test_a_template_that_refuses_gets_a_paragraph():
    class Once(ByteTokenizer):
        def render_chat(self, messages, **options):
            from strategies.errors import InvalidRequest

            raise InvalidRequest("only one turn", "messages")

    assert turn(Once(), "Q?") is None
    assert TOKENIZER.decode(suffix(Once(), ORDERS[0], chat=True)).endswith("\nReply:")


async def test_the_embedded_model_answers_with_an_option():
    runtime = load_runtime(resolve(None), EngineOptions(max_model_len=512))
    try:
        tokenizer = runtime.tokenizer
        prompt = tokenizer.render_chat([{"role": "user", "content": "What is 2+2?"}])
        generation = Generation(
            tokenizer.encode(prompt, add_special_tokens=False), stopping=StopConditions(max_tokens=64)
        )
        context = SearchContext(runtime, generation, prompt_text=prompt, question="What is 2+2?")
        nodes = [context.append(context.root, tokenizer.encode(text)) for text in ("2+2 is 4.", "2+2 is 7.")]
        scorer = SelfEvaluation()
        values = await scorer.values(context, nodes)
        assert scorer.invalid == 0
        assert all(0 < value < 1 for value in values)
        assert values[0] != values[1]
    finally:
        runtime.close()
