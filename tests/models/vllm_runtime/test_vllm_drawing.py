"""The draw inside vLLM, on rows of logits: what the torch engine would draw becomes the only choice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.scripted import ByteTokenizer
from models.vllm_runtime.drawing import UNKNOWN, Drawing, draw_rows
from models.vllm_runtime.notes import Kind, NoteReader, NoteWriter
from models.vllm_runtime.wire import Decoder, encode
from strategies.randomness import gumbel_argmax
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.grammar_repetition.transform import GrammarRepetition
from strategies.sampling.penalties import CountPenalty
from strategies.sampling.pipeline import process, sample
from strategies.sampling.row import Row
from strategies.sampling.structured import compile_structure
from strategies.sampling.structured_grammar import Regex
from strategies.sampling.truncation import TopK

TOKENIZER = ByteTokenizer()
EOS = TOKENIZER.eos_token_ids
SIZE = TOKENIZER.vocab_size


class Worker:
    """A reader, and what a processor would do with generations."""

    def __init__(self) -> None:
        self.reader = NoteReader()
        self.writer = NoteWriter(str(self.reader.path))
        self.decoder = Decoder(TOKENIZER)
        self.keys = 0

    def drawing(self, generation: Generation, outputs: list[int] | None = None) -> Drawing:
        self.keys += 1
        self.reader.expect(self.keys)
        sent = self.decoder.decode(encode(generation, self.keys))
        assert sent is not None
        return Drawing(sent, generation.tokens, [] if outputs is None else outputs, EOS, TOKENIZER)

    def draw(self, logits: Tensor, picked: Sequence[int], drawings: Sequence[Drawing], hidden: Any = None) -> list[int]:
        for drawing in drawings:
            drawing.follow()
        draw_rows(logits, picked, drawings, gumbel_argmax, self.writer, hidden)
        self.reader.receive()
        return logits.argmax(-1).tolist()


@pytest.fixture
def worker() -> Any:
    worker = Worker()
    yield worker
    worker.reader.close()


def expected(generation: Generation, logits: Tensor) -> int:
    row = Row(generation, EOS, TOKENIZER)
    return int(sample(process(logits[None].clone(), [row]), [row], [len(generation.tokens)])[0])


def random_logits(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def test_rows_of_others_are_left_alone(worker: Worker) -> None:
    logits = random_logits(5)
    before = logits.clone()
    generations = [
        Generation([1, 2], SamplingParameters(0.8, (TopK(k=30),)), seed=seed, branch=(seed,)) for seed in range(3)
    ]
    chosen = worker.draw(logits, [1, 2, 4], [worker.drawing(one) for one in generations])
    assert [chosen[i] for i in (1, 2, 4)] == [
        expected(one, before[i]) for i, one in zip((1, 2, 4), generations, strict=True)
    ]
    assert torch.equal(logits[[0, 3]], before[[0, 3]])


def test_a_whole_batch(worker: Worker) -> None:
    logits = random_logits(4)
    before = logits.clone()
    generations = [Generation([1], SamplingParameters(t), seed=7) for t in (0.0, 0.5, 1.0, 2.0)]
    chosen = worker.draw(logits, range(4), [worker.drawing(one) for one in generations])
    assert chosen == [expected(one, row) for one, row in zip(generations, before, strict=True)]
    assert chosen[0] == int(before[0].argmax())


def test_a_drawing_follows_the_output(worker: Worker) -> None:
    """Tokens that vLLM has not copied yet are awaited; noise and penalties depend on those there are."""
    sampling = SamplingParameters(1.0, (CountPenalty(presence=2.0),))
    generation = Generation([1, 2], sampling, seed=3)
    outputs: list[int] = []
    drawing = worker.drawing(generation, outputs)
    for step in range(5):
        logits = random_logits(1, step)
        before = logits.clone()
        token = worker.draw(logits, [0], [drawing])[0]
        so_far = Generation([1, 2], sampling, seed=3, answer=outputs)
        assert token == expected(so_far, before[0])
        assert drawing.position == 2 + step
        outputs.append(UNKNOWN)
        drawing.follow()
        assert drawing.followed == step
        outputs[-1] = token


def test_the_answer_so_far_counts_as_generated(worker: Worker) -> None:
    sampling = SamplingParameters(1.0, (CountPenalty(presence=2.0, frequency=2.0),))
    generation = Generation([1, 2], sampling, StopConditions(min_tokens=3), seed=3, answer=[5, 5, 6])
    drawing = worker.drawing(generation)
    assert (list(drawing.row.prompt_ids), drawing.row.output, drawing.position) == ([1, 2], [5, 5, 6], 5)


def test_processed_logprobs_are_reported(worker: Worker) -> None:
    logits = random_logits(2)
    before = logits.clone()
    generation = Generation([1], SamplingParameters(0.7, (TopK(k=4),)), logprobs=3, logprobs_mode="processed")
    quiet = Generation([1], SamplingParameters(0.7))
    token = worker.draw(logits, [0, 1], [worker.drawing(quiet), worker.drawing(generation)])[1]
    assert worker.reader.take(1, Kind.LOGPROBS, 1) is None
    note = worker.reader.take(2, Kind.LOGPROBS, 1)
    assert note is not None
    scores = process(before[1:].clone(), [Row(generation, EOS, TOKENIZER)]).log_softmax(-1)[0]
    values, ids = scores.topk(3)
    assert note.ids.tolist() == [token, *ids.tolist()]
    assert np.allclose(note.values, [float(scores[token]), *values.tolist()])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_a_fault_of_its_request(worker: Worker, value: float) -> None:
    logits = random_logits(3)
    before = logits.clone()
    logits[1, 40] = value
    generations = [Generation([1], SamplingParameters(1.0), seed=seed) for seed in range(3)]
    chosen = worker.draw(logits, range(3), [worker.drawing(one) for one in generations])
    assert [chosen[0], chosen[2]] == [expected(generations[i], before[i]) for i in (0, 2)]
    assert [worker.reader.fault(key) is not None for key in (1, 2, 3)] == [False, True, False]
    assert not torch.isnan(logits).any()


def test_a_grammar_that_refuses_its_beginning_is_a_fault(worker: Worker) -> None:
    structure = compile_structure(Regex("[0-9]+"), TOKENIZER)
    drawing = worker.drawing(Generation([1], SamplingParameters(1.0, (structure,)), answer=[ord("x")]))
    worker.draw(random_logits(1), [0], [drawing])
    assert worker.reader.fault(1) is not None


def test_a_transform_that_can_not_start_is_a_fault_and_no_exception(worker: Worker) -> None:
    """An exception in vLLM's worker would end the engine, and every request with it."""
    sampling = SamplingParameters(1.0, (GrammarRepetition(language="python"),))
    worker.reader.expect(9)
    sent = worker.decoder.decode(encode(Generation([1], sampling), 9))
    assert sent is not None
    drawing = Drawing(sent, [1], [], EOS, None)  # type: ignore[arg-type]  # without a tokenizer it can't
    worker.draw(random_logits(1), [0], [drawing])
    assert "tokenizer" in (worker.reader.fault(9) or "")


def test_hidden_states_go_to_who_asked(worker: Worker) -> None:
    states = torch.arange(6, dtype=torch.float32).view(3, 2)
    asked = Generation([1, 2], stopping=StopConditions(max_tokens=0), pooling="last")
    drawings = [worker.drawing(Generation([1])), worker.drawing(asked)]
    worker.draw(random_logits(3), [0, 2], drawings, lambda row: states[row])
    note = worker.reader.take(2, Kind.HIDDEN, 2)
    assert note is not None
    assert note.values.tolist() == states[2].tolist()
    assert worker.reader.take(1, Kind.HIDDEN, 1) is None
