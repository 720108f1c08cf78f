"""A logits processor of transformers as a transform: one class, run in the pipeline like any other."""

from typing import ClassVar

import torch
from sampling_reference import make_row, random_logits
from transformers import NoRepeatNGramLogitsProcessor, SequenceBiasLogitsProcessor

from strategies.sampling import pipeline
from strategies.sampling.processor import LogitsProcessor, ProcessorTransform
from strategies.sampling.row import Row
from strategies.sampling.transform import Stage


class WrappedNgrams(ProcessorTransform):
    name: ClassVar = "wrapped_ngrams"
    slot: ClassVar = "penalty"
    stage: ClassVar = Stage.BIAS

    size: int

    def processor(self, row: Row) -> LogitsProcessor:
        return NoRepeatNGramLogitsProcessor(self.size)


class WrappedBias(ProcessorTransform):
    name: ClassVar = "wrapped_bias"
    stage: ClassVar = Stage.BIAS

    def processor(self, row: Row) -> LogitsProcessor:
        return SequenceBiasLogitsProcessor([[[3], 5.0], [[1, 4], -float("inf")]])


def test_a_wrapped_processor_sees_prompt_and_output() -> None:
    logits = random_logits(3, 12, seed=1)
    rows = [
        make_row(prompt=[1, 2, 3], output=[1, 2], transforms=[WrappedNgrams(size=3)]),
        make_row(prompt=[7], output=[1], transforms=[WrappedBias()]),
        make_row(prompt=[1], output=[1], temperature=0.5, transforms=[WrappedNgrams(size=1), WrappedBias()]),
    ]
    found = pipeline.process(logits.clone(), rows)
    expected = [
        NoRepeatNGramLogitsProcessor(3)(torch.tensor([[1, 2, 3, 1, 2]]), logits[:1].clone()),
        SequenceBiasLogitsProcessor([[[3], 5.0], [[1, 4], -float("inf")]])(torch.tensor([[7, 1]]), logits[1:2].clone()),
    ]
    assert torch.equal(found[0], expected[0][0])
    assert torch.isneginf(found[0]).tolist() == [token == 3 for token in range(12)]
    assert torch.equal(found[1], expected[1][0])
    assert torch.isneginf(found[2, 1])
    assert found[2, 3] == (logits[2, 3] + 5.0) / 0.5


def test_forks_have_processors_of_their_own() -> None:
    row = make_row(prompt=[1, 2], output=[1], transforms=[WrappedNgrams(size=2)])
    fork = row.fork()
    row.append(2)
    fork.append(9)
    logits = torch.zeros(2, 12)
    found = pipeline.process(logits, [row, fork])
    assert [torch.isneginf(one).nonzero()[:, 0].tolist() for one in found] == [[1], []]
    assert row.states["wrapped_ngrams"] is not fork.states["wrapped_ngrams"]
